"""Every arm of the shipped baseline study, run whole on the tiny configuration."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mgsr.study.run import run_study
from mgsr.study.study import load_study

STUDY = Path(__file__).parents[2] / "experiments" / "baselines" / "study.yaml"


@pytest.fixture(scope="module")
def summary(tiny_file: Path, shared_root: Path) -> dict[str, Any]:
    """Of all arms, which have run below the study's folder in `shared_root`."""
    study = load_study(STUDY, base=str(tiny_file))
    return run_study(study, [0], [f"run_root={shared_root}", "train.epochs=1"])


def test_every_baseline_trains_from_the_same_student(
    summary: dict[str, Any], tiny_file: Path, shared_root: Path
) -> None:
    study = load_study(STUDY, base=str(tiny_file))
    folder = shared_root / study.name
    assert json.loads((folder / "metrics.json").read_text()) == summary
    runs = {arm: json.loads((folder / arm / "seed=0" / "metrics.json").read_text()) for arm in study.arms}
    assert len({run["sft_start"]["test"]["rouge_l"] for run in runs.values()}) == 1
    assert {run["steps"] for run in runs.values()} == {4}
    assert all(math.isfinite(run["val"]["loss"]) for run in runs.values())
    # the losses differ, so the students do
    assert len({run["val"]["loss"] for run in runs.values()}) == len(runs)


@pytest.mark.parametrize(
    ("arm", "written", "corrected"),
    [("full", 0.5, True), ("gkd", 0.5, False), ("imitkd", 0.5, False), ("seqkd", 1.0, False), ("skd", 1.0, False)],
)
def test_the_share_and_kind_of_text(
    arm: str, written: float, corrected: bool, summary: dict[str, Any], tiny_file: Path, shared_root: Path
) -> None:
    rounds = shared_root / load_study(STUDY, base=str(tiny_file)).name / arm / "seed=0" / "scrg"
    entries = [json.loads(line) for path in rounds.glob("round=0/shard-*.jsonl") for line in path.open()]
    assert len(entries) == round(32 * written)
    assert any(entry["corrections"] for entry in entries) == corrected
