"""Arms are compared where they began with the same student: what shares no start with the baseline runs again."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mgsr.study.run
from mgsr.config.schema import ExperimentConfig
from mgsr.study import pool
from mgsr.study.run import run_study
from mgsr.study.study import Study
from mgsr.study.view import look, rouge_l
from tests.study.pooled import STUDY, result_of, study_in

SCORES = {"full": 50.0, "removed": 48.0, "other": 53.0}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return study_in(tmp_path)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs that were made, all of them with the student of this machine."""
    made: list[str] = []

    def train(config: ExperimentConfig, **_: Any) -> None:
        made.append(f"{config.arm}/{config.seed}")

    def collect(folder: Path, config: ExperimentConfig) -> dict[str, Any]:
        return made_up(config, "made here")

    monkeypatch.setattr(mgsr.study.run, "train", train)
    monkeypatch.setattr(mgsr.study.run, "prepare", lambda config: None)
    monkeypatch.setattr(pool, "collect", collect)
    return made


def made_up(config: ExperimentConfig, start: str) -> dict[str, Any]:
    level = 0.0 if start == "made here" else 7.0
    score = SCORES[config.arm] + level + config.seed
    return {**result_of(config, score, start=start), "data": pool.data_of(config)}


def record_elsewhere(study: Study, *arms: str, seeds: tuple[int, ...] = (0, 1)) -> None:
    for arm in arms:
        for seed in seeds:
            pool.record(study.pool(), made_up(study.config(arm, seed), "made elsewhere"))


def test_an_arm_with_another_start_has_the_baseline_run_for_it(
    study: Study, ran: list[str], tmp_path: Path
) -> None:
    record_elsewhere(study, "full", "removed")
    root = [f"run_root={tmp_path}/runs"]
    run_study(study, [0, 1], root, record=True)
    # the arm that was not there, and the baseline once more, behind it
    assert ran == ["other/0", "other/1", "full/0", "full/1"]
    view = look(replace(study, seeds=(0, 1)), study.pool())
    assert len({run.block for run in view.of("full")}) == 4
    found = view.compared(rouge_l())
    # each within its own blocks: the levels of the two starts are 7 apart
    assert (found["removed"].blocks, found["other"].blocks) == (2, 2)
    assert found["removed"].effect == pytest.approx(-2.0) and found["other"].effect == pytest.approx(3.0)
    ran.clear()
    run_study(study, [0, 1], root, record=True)
    assert ran == []


def test_a_start_that_the_baseline_has_is_not_run_again(
    study: Study, ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_elsewhere(study, "full", "removed", "other", seeds=(0,))
    run_study(study, [0], [f"run_root={tmp_path}/runs"], record=True)
    assert ran == []
    said = capsys.readouterr().out
    assert said.count("complete already") == 1 and "made_up: 3 of 3 runs complete already" in said
    # another seed is another start
    run_study(study, [0, 1], [f"run_root={tmp_path}/runs"], arms=["full", "removed"], record=True)
    assert ran == ["full/1", "removed/1"]


def test_an_arm_recorded_elsewhere_runs_again_with_the_baseline_s_start(
    study: Study, ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an interrupted study arms alone came from elsewhere; once all share a start nothing is made again."""
    record_elsewhere(study, "removed", seeds=(0,))
    root = [f"run_root={tmp_path}/runs"]
    summary = run_study(study, [0, 1], root, record=True)
    assert ran == ["full/0", "other/0", "full/1", "removed/1", "other/1", "removed/0"]
    assert "1 run again: recorded from another start than the others'" in capsys.readouterr().out
    assert len(list(pool.find(study.pool(), pool.key_of(study.config("removed", 0))))) == 2
    ran.clear()
    assert run_study(study, [0, 1], root, record=True) == summary and ran == []


def test_an_arm_with_a_student_of_its_own_is_run_once(
    ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_in(tmp_path, STUDY.replace("other: {scrg.passes: 3}", "other: {student.sft.max_steps: 7}"))

    def collect(folder: Path, config: ExperimentConfig) -> dict[str, Any]:
        return made_up(config, f"made by {config.student.sft.max_steps} steps")

    monkeypatch.setattr(pool, "collect", collect)
    for runs in (["full/0", "removed/0", "other/0"], []):
        ran.clear()
        run_study(study, [0], [f"run_root={tmp_path}/runs"], record=True)
        assert ran == runs


def test_arms_without_their_baseline_are_compared_with_the_first(
    study: Study, ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for record in (True, False):
        summary = run_study(study, [0, 1], [f"run_root={tmp_path}/runs"], arms=["other", "removed"], record=record)
        assert list(summary["comparisons"]) == (["other - removed"] if not record else [])
        assert "compared with `removed`, as `full` is not among these arms" in capsys.readouterr().out


def test_words_that_a_study_declares_are_those_of_its_report_alone(ran: list[str], tmp_path: Path) -> None:
    study = study_in(tmp_path, STUDY + "arguments: [train.epochs=7]\n")
    summary = run_study(study, [0], [f"run_root={tmp_path}/runs"], arms=["full"], record=True)
    assert summary["full"]["rouge_l"] == SCORES["full"]


def test_runs_of_other_rows_are_no_runs_of_this_study(study: Study, ran: list[str], tmp_path: Path) -> None:
    for arm in study.arms:
        pool.record(study.pool(), result_of(study.config(arm, 0), 90.0, data="e" * 16))
    summary = run_study(study, [0], [f"run_root={tmp_path}/runs"], record=True)
    assert ran == ["full/0", "removed/0", "other/0"]
    assert {arm: summary[arm]["rouge_l"] for arm in study.arms} == SCORES


def test_a_baseline_that_reads_another_arm_s_run_comes_behind_it_once(ran: list[str], tmp_path: Path) -> None:
    reading = '{clip.mode: mean_of_run, clip.run: "{run:other}"}'
    study = study_in(tmp_path, STUDY.replace("full: {}", f"full: {reading}"))
    run_study(study, [0], [f"run_root={tmp_path}/runs"], record=True)
    assert ran == ["removed/0", "other/0", "full/0"]


@pytest.mark.parametrize("here", ["one", "another"])
def test_of_two_starts_an_arm_reads_the_run_of_this_kind_of_processor(
    here: str, ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = '{clip.mode: mean_of_run, clip.run: "{run:full}"}'
    study = study_in(tmp_path, STUDY.replace("other: {scrg.passes: 3}", f"other: {reading}"))
    places = {}
    for start in ("one", "another"):
        result = made_up(study.config("full", 0), start)
        result["environment"] = {**result["environment"], "cpu_model": start}
        places[start] = str(pool.record(study.pool(), result))
    read: list[str] = []
    monkeypatch.setattr(mgsr.study.run, "cpu_model", lambda described: here)
    monkeypatch.setattr(mgsr.study.run, "train", lambda config, **_: read.append(config.clip.run))
    run_study(study, [0], [f"run_root={tmp_path}/runs"], arms=["full", "other"], record=True)
    assert read[0] == places[here]


def test_an_arm_that_reads_a_run_from_elsewhere_has_it_made_here_first(ran: list[str], tmp_path: Path) -> None:
    reading = '{clip.mode: mean_of_run, clip.run: "{run:full}"}'
    study = study_in(tmp_path, STUDY.replace("other: {scrg.passes: 3}", f"other: {reading}"))
    record_elsewhere(study, "full", seeds=(0,))
    run_study(study, [0], [f"run_root={tmp_path}/runs"], arms=["full", "other"], record=True)
    assert ran == ["full/0", "other/0"]


def test_undeclared_seeds_are_named_before_they_run(
    study: Study, ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_study(study, [4, 5], [f"run_root={tmp_path}/runs"], arms=["full"], record=True)
    said = re.escape(f"made_up: 1 seed not declared in {study.path}: recorded, and in no verdict of its report")
    assert re.search(said, capsys.readouterr().out)
    assert look(study, study.pool()).seeds == [4]
    # without a word the declared ones
    ran.clear()
    run_study(study, (), [f"run_root={tmp_path}/runs"], arms=["full"], record=True)
    assert ran == [f"full/{seed}" for seed in range(4)]
