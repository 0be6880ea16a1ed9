"""The quick part of `make torture`: a kill at one point of every kind, and that nothing is written twice."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest

from mgsr.rounds.store import read_manifest
from mgsr.training.run_folder import run_folder
from tests.reliability.harness import CONFIGS, count_visits, differences, forked, one_run, small_config
from tests.reliability.torture import Blow, attempt, plan

SHORT = ["shard.half=tear@2", "step.end=kill@9", "checkpoint.renamed=tear@6"]
LONG = [
    "stage.trained=kill@2",
    "shard.renamed=kill@5",
    "manifest.written=kill@2",
    "checkpoint.written=kill@5",
    "best.written=kill@1",
    "validation.end=kill@2",
    "metrics.written=kill@1",
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left alone."""
    root = tmp_path_factory.mktemp("reference")
    config = small_config(root)
    assert forked(lambda: count_visits(config, root / "visits.json"), root / "log") == 0, (
        root / "log"
    ).read_text()
    return root


@pytest.mark.parametrize("point", [*SHORT, *(pytest.param(point, marks=pytest.mark.long) for point in LONG)])
def test_a_killed_run_ends_as_one_that_was_left_alone(reference: Path, tmp_path: Path, point: str) -> None:
    visits = json.loads((reference / "visits.json").read_text())
    name, _, rest = point.partition("=")
    assert int(rest.partition("@")[2]) <= visits[name], "the point is never reached: nothing would be tested"
    outcome = attempt(tmp_path, [Blow(point)], run_folder(small_config(reference)))
    assert outcome == (True, []), (tmp_path / "log").read_text()[-2000:]


def test_the_comparison_sees_a_changed_bit(reference: Path, tmp_path: Path) -> None:
    """A harness that calls everything identical would prove nothing."""
    expected = run_folder(small_config(reference))
    other = small_config(tmp_path, "train.lr=0.01001")
    assert forked(lambda: one_run(other), tmp_path / "log") == 0
    wrong = differences(expected, run_folder(other))
    assert any(w.startswith("checkpoint.state_dict.student") for w in wrong)
    assert any(w.startswith("checkpoint.optimizer_states") for w in wrong)
    assert any(w.startswith("curves.train/loss") for w in wrong)


def test_finished_shards_are_not_written_again(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    shards = run_folder(config) / "scrg" / "round=1"
    assert forked(lambda: one_run(config, "shard.begin=kill@6"), tmp_path / "log") == -signal.SIGKILL
    before = {path: path.stat().st_ino for path in shards.glob("shard-*")}
    assert len(before) == 4 and read_manifest(shards) is None, "two shards of three, each with its record"
    assert forked(lambda: one_run(config), tmp_path / "log") == 0
    assert {path: path.stat().st_ino for path in before} == before
    assert "round 1: 2 of 3 shards there already" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("torn", [1, 2])
def test_a_torn_resume_point_is_said_and_the_one_before_is_used(
    reference: Path, tmp_path: Path, torn: int
) -> None:
    config = small_config(tmp_path)
    last = json.loads((reference / "visits.json").read_text())["checkpoint.pruned"]
    code = forked(lambda: one_run(config, f"checkpoint.pruned=kill@{last}"), tmp_path / "log")
    assert code == -signal.SIGKILL
    points = sorted((run_folder(config) / "checkpoints").glob("resume-*.ckpt"))
    assert len(points) == 2, "the two newest are kept"
    for path in points[-torn:]:
        os.truncate(path, path.stat().st_size - 1)
    code = forked(lambda: one_run(config), tmp_path / "log")
    said = (tmp_path / "log").read_text()
    assert f"{points[-1].name}: torn or changed" in said
    if torn == 2:
        assert code == 1 and "no whole resume point before it" in said
    else:
        assert code == 0 and f"going on from the one before, {points[0].name}" in said
        assert differences(run_folder(small_config(reference)), run_folder(config)) == []


def test_a_plan_reaches_every_point(reference: Path) -> None:
    visits = json.loads((reference / "visits.json").read_text())
    for times in (10, 50, 200):
        blows = plan(visits, times, 3.0, random.Random(0))
        hit = [first.points.partition("=")[0] for first, *_ in blows if first.points]
        assert sorted(hit) == sorted(visits) and len(blows) >= times
        assert any(first.after is not None for first, *_ in blows)


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a replay buffer that was left alone."""
    root = tmp_path_factory.mktemp("replay")
    config = small_config(root, *CONFIGS["replay"])
    assert forked(lambda: one_run(config), root / "log") == 0, (root / "log").read_text()[-2000:]
    return run_folder(config)


@pytest.mark.long
@pytest.mark.parametrize("point", ["step.end=kill@14", "checkpoint.pruned=kill@8", "validation.begin=kill@1"])
def test_replay_and_rounds_of_two_epochs_survive_too(replay: Path, tmp_path: Path, point: str) -> None:
    outcome = attempt(tmp_path, [Blow(point)], replay, "replay")
    assert outcome == (True, []), (tmp_path / "log").read_text()[-2000:]


def test_sigterm_ends_with_a_checkpoint_and_says_so(reference: Path, tmp_path: Path) -> None:
    config = small_config(tmp_path)
    assert forked(lambda: one_run(config, "step.begin=stop@11"), tmp_path / "log") == 1
    said = (tmp_path / "log").read_text()
    assert "stopped by SIGTERM" in said and "--resume" in said
    assert forked(lambda: one_run(config), tmp_path / "log") == 0
    assert differences(run_folder(small_config(reference)), run_folder(config)) == []
