"""Steps whose loss is not a number are left out, up to a limit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mgsr.training.checkpoint
from mgsr.config.schema import ExperimentConfig
from mgsr.losses import Objective
from mgsr.runtime.errors import NonFiniteLossError
from mgsr.training.checkpoint import newest_whole, resume_points
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train

Make = Callable[..., ExperimentConfig]
Capture = pytest.CaptureFixture[str]


def _poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """The token-level loss of these steps of the main job becomes NaN."""
    original, calls = Objective.__call__, [-1]

    def call(self: Objective, *args: Any, **kwargs: Any) -> Any:
        terms = original(self, *args, **kwargs)
        if not self.needs_teacher or "collect_rows" not in kwargs:
            return terms
        calls[0] += 1
        if calls[0] not in steps:
            return terms
        return terms._replace(total=terms.total * float("nan"), dac_kl=terms.dac_kl * float("nan"))

    monkeypatch.setattr(Objective, "__call__", call)


def test_steps_with_nan_are_left_out_up_to_a_limit(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    _poison(monkeypatch, {3, 5})
    metrics = train(make_config("train.max_nonfinite_steps=2"))
    assert metrics["steps_left_out"] == 2 and metrics["steps"] == 12
    assert "step 3: loss_dac_kl became nan: left out (1 of 2)" in capsys.readouterr().out
    _poison(monkeypatch, {3, 5, 6})
    config = make_config("arm=three", "train.max_nonfinite_steps=2", "trainer.checkpoint_every_n_steps=1")
    with pytest.raises(NonFiniteLossError, match=r"step 6: loss_dac_kl became nan"):
        train(config)
    newest = newest_whole(run_folder(config))
    assert newest is not None and newest.name == "resume-00000006.ckpt"
    state = torch.load(newest, weights_only=True)
    assert state["figures"]["skipped"] == 2
    assert all(bool(v.isfinite().all()) for v in state["state_dict"].values())


def test_a_step_that_is_left_out_changes_no_weight(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, {2})
    config = make_config(
        "train.max_nonfinite_steps=1", "trainer.checkpoint_every_n_steps=1", "train.epochs=1", "train.lr=0.1"
    )
    kept: dict[int, dict[str, torch.Tensor]] = {}
    original = mgsr.training.checkpoint.prune

    def keep(folder: Path) -> None:
        for path in resume_points(folder):
            content = torch.load(path, weights_only=True)
            kept[content["global_step"]] = content["state_dict"]
        original(folder)

    monkeypatch.setattr(mgsr.training.checkpoint, "prune", keep)
    train(config)
    name = next(n for n in kept[3] if n.startswith("student."))
    assert torch.equal(kept[2][name], kept[3][name]) and not torch.equal(kept[1][name], kept[2][name])
