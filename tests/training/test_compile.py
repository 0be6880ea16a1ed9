"""Compiled forwards: the same student, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

import mgsr.models.preflight
from mgsr.config.schema import ExperimentConfig
from mgsr.runtime.errors import ConfigError
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train
from tests.reading import weights

Make = Callable[..., ExperimentConfig]


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("aot_eager", marks=[pytest.mark.stands_in] if shutil.which("g++") else []),
        pytest.param("inductor", marks=pytest.mark.long),
    ],
)
@pytest.mark.timeout(900)
def test_a_compiled_forward_trains_the_same_student(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler")
    if backend == "aot_eager":
        # the same graphs are captured, and run as they are
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
        monkeypatch.setattr(mgsr.models.preflight, "check_compiler", lambda device: None)
    runs = []
    counters.clear()
    for compiled in ("false", "true"):
        config = make_config(
            f"arm=compile_{compiled}",
            "train.epochs=1",
            f"trainer.compile={compiled}",
            "student.architecture.num_layers=1",
        )
        train(config)
        runs.append(weights(run_folder(config)))
        assert (counters["stats"]["unique_graphs"] > 0) == (compiled == "true")
    for name, value in runs[0].items():
        torch.testing.assert_close(runs[1][name], value, atol=1e-4, rtol=1e-3)


def test_compiling_without_a_compiler_is_refused_before_anything_is_written(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    config = make_config("trainer.compile=true")
    with pytest.raises(ConfigError, match=r"trainer\.compile=false"):
        train(config)
    assert not run_folder(config).exists()
