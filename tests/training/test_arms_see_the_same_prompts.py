"""What makes arms of a study comparable: the same seed shows every one of them the same prompts at the same time.

Within a window of `bucket_steps` steps rows are sorted by length, ground truth and written text each for itself.
Text is of another length in every arm, so the steps of a window share its prompts out otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path

import pytest

from mgsr.config.schema import ExperimentConfig
from mgsr.rounds import store
from mgsr.study.study import load_study
from tests.training.epochs import data_module, made_up_rows, planned_steps

STUDIES = sorted((Path(__file__).parents[2] / "experiments").glob("*/study.yaml"))
ROWS = made_up_rows(38)
EPOCHS = 2
# what may move prompts or must not, and no arm of a study has: overrides of full
UNSHIPPED = {"replay": "mixture.replay=on", "round_of_4_epochs": "scrg.every_n_epochs=4"}
Windows = list[list[int]]


@pytest.fixture(autouse=True)
def quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of rounds, whose diversity nobody looks at."""
    monkeypatch.setattr(store, "diversity", lambda texts: {})


def replays(config: ExperimentConfig) -> bool:
    mixture = config.mixture
    return mixture.replay == "on" or (mixture.replay == "auto" and mixture.kind == "adaptive")


@lru_cache(maxsize=1)
def all_arms(base: Path) -> dict[str, ExperimentConfig]:
    # 38 rows in steps of 4: the last step of an epoch is a short one, and so is the last window
    overrides = [f"train.epochs={EPOCHS}", "train.batch_size=4", "train.micro_batch_size=2"]
    studies = {path.parent.name: load_study(path, base=str(base)) for path in STUDIES}
    arms = {f"{name}/{arm}": s.config(arm, 3, overrides) for name, s in studies.items() for arm in s.arms}
    full = {name: studies["scrg"].config("full", 3, [*overrides, more]) for name, more in UNSHIPPED.items()}
    return arms | {f"unshipped/{name}": replace(config, arm=name) for name, config in full.items()}


def bucketed(config: ExperimentConfig, bucket_steps: int) -> ExperimentConfig:
    return replace(config, train=replace(config.train, bucket_steps=bucket_steps))


def windows(config: ExperimentConfig, folder: Path) -> Iterator[Windows]:
    """Of each epoch, the example ids that every window holds, sorted."""
    data = data_module(config, ROWS, folder)
    size = config.train.bucket_steps
    for epoch in range(EPOCHS):
        ids = [[row.example_id for row in rows] for rows in planned_steps(data, epoch)]
        assert len(ids) == 10
        yield [sorted(chain(*ids[i : i + size])) for i in range(0, len(ids), size)]


@pytest.mark.parametrize("bucket_steps", [1, 4])
def test_arms_of_one_seed_see_the_same_prompts(bucket_steps: int, tiny_file: Path, tmp_path: Path) -> None:
    arms = {name: bucketed(config, bucket_steps) for name, config in all_arms(tiny_file).items()}
    # kinds of text that must not matter: none, the student's, the teacher's, both models', of one round for all
    assert {"scrg/no_scrg", "scrg/uncorrected", "scrg/teacher_text", "scrg/teacher_mixed"} <= set(arms)
    assert {"scrg/switched", "baselines/distillm2", "baselines/seqkd", "real_text/full"} <= set(arms)
    assert "unshipped/round_of_4_epochs" in arms
    seen = {name: list(windows(config, tmp_path / name)) for name, config in arms.items()}
    expected = seen["scrg/no_scrg"]
    for epoch in expected:
        assert sorted(chain(*epoch)) == [row.example_id for row in ROWS], "an epoch has every prompt once"
    assert expected[0] != expected[1]
    other = [name for name in arms if seen[name] != expected]
    # text from the buffer answers prompts of earlier steps
    assert other == [name for name, config in arms.items() if replays(config)]
    assert {"unshipped/replay", "baselines/distillm"} <= set(other) and len(arms) - len(other) > 30


def test_within_a_window_steps_differ_between_arms(tiny_file: Path, tmp_path: Path) -> None:
    ids = []
    for name in ("scrg/no_scrg", "scrg/full"):
        data = data_module(bucketed(all_arms(tiny_file)[name], 4), ROWS, tmp_path / name)
        ids.append([{row.example_id for row in rows} for rows in planned_steps(data, 0)])
    assert ids[0] != ids[1]
