"""A run that is stopped and taken up again ends as one that nobody stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mgsr.training.checkpoint
import mgsr.training.train
from mgsr.config.load import load_config
from mgsr.config.schema import ExperimentConfig
from mgsr.runtime.errors import RunInterruptedError
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train
from tests.reading import weights

Make = Callable[..., ExperimentConfig]
Whole = tuple[Callable[[str], ExperimentConfig], Path, dict[str, Any]]


def numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    """Everything but wall-clock times."""
    kept = {k: v for k, v in metrics.items() if not k.startswith("seconds")}
    # the tokens of a resumed run are those of the uninterrupted one
    kept |= {name: _rateless(metrics[name]) for name in ("dac", "costs")}
    return kept


def _rateless(values: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in values.items() if "seconds" not in k}


@pytest.fixture(scope="module")
def whole(tiny_file: Path, shared_root: Path) -> Whole:
    """How an arm is configured, the folder of one that nobody stops, and its metrics."""

    def make(arm: str) -> ExperimentConfig:
        dropout = ["student.architecture.family=gpt2", "student.architecture.dropout=0.1"]
        return load_config(tiny_file, [f"run_root={shared_root}", "experiment=stopped", f"arm={arm}", *dropout])

    metrics = train(make("whole"))
    return make, run_folder(make("whole")), metrics


@pytest.mark.parametrize("stop_at", [8, 6, 11, 12], ids=["epoch_end", "mid_epoch", "before_last", "last"])
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(
    whole: Whole, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    make, folder, expected = whole
    halved = make(f"stopped_at_{stop_at}")
    with monkeypatch.context() as patch:
        original = mgsr.training.checkpoint.ResumePoint.on_train_batch_end

        def stop(self: Any, trainer: Any, module: Any, *args: Any) -> None:
            if trainer.global_step == stop_at and module.objective.needs_teacher:
                self.stop.asked = 15
            original(self, trainer, module, *args)

        patch.setattr(mgsr.training.checkpoint.ResumePoint, "on_train_batch_end", stop)
        with pytest.raises(RunInterruptedError, match="--resume") as stopped:
            train(halved)
    assert stopped.value.exit_code == 143
    assert not (run_folder(halved) / "metrics.json").exists()
    resumed = train(halved, resume=True)
    left, right = weights(folder), weights(run_folder(halved))
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name
    assert numbers(expected) | {"arm": ""} == numbers(resumed) | {"arm": ""}
