"""Whole studies on the tiny configuration: recorded, skipped, resumed, side by side, never mixed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mgsr
import mgsr.study.processes
import mgsr.study.run
from mgsr.cli.main import main
from mgsr.runtime import faults
from mgsr.runtime.errors import UserError
from mgsr.study import pool
from mgsr.study.run import run_study
from mgsr.study.study import Study, load_study
from mgsr.study.view import key_in
from tests.reliability.harness import SMALL, forked, unequal

ARMS = """
  full: {}
  removed: {scrg.enabled: false}
  mean: {clip.mode: mean_of_run, clip.run: "{run:full}"}
"""
MORE = """
  all_parts: {}
  passes_2: {scrg.passes: 2}
"""


@pytest.fixture(scope="module")
def quick_file(tiny_file: Path) -> Path:
    """One epoch, one sampling seed."""
    text = tiny_file.read_text().replace("epochs: 3", "epochs: 1").replace("seeds: [10, 20]", "seeds: [10]")
    path = tiny_file.with_name("quick.yaml")
    path.write_text(text)
    return path


def make(folder: Path, base: Path, name: str = "small", arms: str = ARMS) -> Study:
    path = folder / "studies" / name / "study.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(f"study: {name}\nbase: {base}\narms:{arms}")
    return load_study(path)


def root_in(folder: Path, shared_root: Path, name: str = "runs") -> str:
    """A run root with the teachers and students of all tests."""
    (folder / name).mkdir()
    (folder / name / "cache").symlink_to(shared_root / "cache")
    return f"run_root={folder / name}"


def recorded(study: Study, arm: str, seed: int, place: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    (found,) = pool.find(place, key_in(study, arm, seed, overrides))
    return found


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    ran: list[str] = []
    original = mgsr.study.run.train

    def train(config: Any, **options: Any) -> Any:
        ran.append(f"{config.arm}/{config.seed}{' again' if options.get('resume') else ''}")
        return original(config, **options)

    monkeypatch.setattr(mgsr.study.run, "train", train)
    return ran


@pytest.fixture(
    params=[
        pytest.param("forked", marks=pytest.mark.stands_in),
        pytest.param("started", marks=pytest.mark.long),
    ]
)
def processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How `mgsr train` begins where runs are side by side: in a fork, which imports nothing, or from its start."""

    def run(command: list[str], *, stdout: Any, stderr: int, env: dict[str, str], check: bool) -> Any:
        assert command[:3] == [sys.executable, "-m", "mgsr"] and stderr == subprocess.STDOUT and not check

        def work() -> None:
            os.environ.update(env)
            code = main(command[3:])
            sys.stdout.flush()
            os._exit(code)

        return subprocess.CompletedProcess(command, forked(work, Path(stdout.name)))

    if request.param == "forked":
        monkeypatch.setattr(mgsr.study.processes, "subprocess", SimpleNamespace(run=run, STDOUT=subprocess.STDOUT))


WORK = ("tokens", "attended", "rows")


def test_a_study_is_recorded_skipped_and_shared(
    quick_file: Path, shared_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, ran = make(tmp_path, quick_file), counted(monkeypatch)
    summary = run_study(study, [0, 1], [root_in(tmp_path, shared_root)], record=True)
    # seed by seed, the baseline first; behind them what reads its result
    assert ran == ["full/0", "removed/0", "full/1", "removed/1", "mean/0", "mean/1"]
    place = tmp_path / "studies/results"
    assert study.pool() == place and len(list(place.iterdir())) == 6
    result = recorded(study, "full", 0, place)
    run = json.loads((tmp_path / "runs/small/full/seed=0/metrics.json").read_text())
    assert result["metrics"]["result"]["test"]["rouge_l"] == pytest.approx(run["result"]["test"]["rouge_l"])
    assert summary["full"]["rouge_l"] == pytest.approx(
        sum(recorded(study, "full", seed, place)["metrics"]["result"]["test"]["rouge_l"] for seed in (0, 1)) / 2
    )
    assert result["curves"]["val/rouge_l"]["steps"] == result["curves"]["cost/tokens"]["steps"] == [3]
    costs = result["metrics"]["costs"]
    assert costs["tokens_scoring"] > 0 and costs["read_student_rows"] > 0
    without = recorded(study, "removed", 0, place)["metrics"]["costs"]
    # ground truth alone: both models read the same, and nothing else
    assert [without[f"trained_student_{n}"] for n in WORK] == [without[f"read_teacher_{n}"] for n in WORK]
    assert without["tokens_training"] == 2 * without["trained_student_tokens"]
    assert without["flops"] > 0 < costs["flops"]
    assert result["environment"]["numerics"] == mgsr.NUMERICS_VERSION and "dirty" in result["environment"]
    assert result["first"] == {"study": "small", "arm": "full"}
    # arms of a seed begin with one student, and seeds with different ones
    starts = {
        seed: {recorded(study, arm, seed, place)["start"]["student"] for arm in study.arms} for seed in (0, 1)
    }
    assert len(starts[0]) == len(starts[1]) == 1 and starts[0] != starts[1]
    # the arm read the bounds that the other had learned with this seed
    for seed in (0, 1):
        learned = recorded(study, "full", seed, place)
        written = yaml.safe_load((tmp_path / f"runs/small/mean/seed={seed}/config.yaml").read_text())
        assert written["clip"]["run"] == str(pool.path_in(place, learned))
        assert recorded(study, "mean", seed, place)["settings"]["clip.run"] == learned["config"]
    # nothing is run twice, with the run folders or without them
    ran.clear()
    elsewhere = root_in(tmp_path, shared_root, "elsewhere")
    assert run_study(study, [0, 1], [elsewhere], record=True) == summary
    assert ran == []
    # another study's arm with the same configuration is the same run, whatever it is called there
    run_study(make(tmp_path, quick_file, "other", MORE), [0], [elsewhere], record=True)
    assert ran == ["passes_2/0"] and len(list(place.iterdir())) == 7
    # once, however often the study goes on
    layout = EventAccumulator(str(tmp_path / "runs/small/layout")).Reload()
    assert layout.Tags()["tensors"] == ["custom_scalars__config__"]
    assert main(["report", str(study.path)]) == 0
    page = (study.path.parent / "README.md").read_text()
    assert all(f"| {arm} | " in page for arm in study.arms)


def test_the_terminal_says_what_the_report_says(
    quick_file: Path, shared_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Declared seeds alone are judged where runs are recorded; among its runs a study is judged as it stands."""
    path = make(tmp_path, quick_file, "said", "\n  full: {}\n  removed: {scrg.enabled: false}\n").path
    path.write_text(path.read_text() + "seeds: [0]\n")
    study, word = load_study(path), root_in(tmp_path, shared_root)
    summary = run_study(study, [0, 1], [word], record=True)
    assert summary["seeds"] == [0] and summary["comparisons"]["removed - full"]["blocks"] == 1
    assert "not declared" in capsys.readouterr().out
    assert run_study(study, [1], [word], record=True)["comparisons"] == {}
    path.write_text(path.read_text().replace("[0]", "[0, 1, 2]"))
    for runs in study.pool().iterdir():
        pool.record(study.pool(tmp_path / "runs", record=False), pool.read(runs))
    assert run_study(load_study(path), [0, 1], [word], record=True)["comparisons"] == {}
    both = run_study(load_study(path), [0, 1], [word])
    assert both["comparisons"]["removed - full"]["blocks"] == 2
    # arms that were typed later, with another seed, take no verdict from those before
    capsys.readouterr()
    one = run_study(load_study(path), [1], [word], arms=["full"])
    assert one == both
    assert main(["report", str(tmp_path / "runs/said")]) == 0
    page = (tmp_path / "runs/said/README.md").read_text()
    assert f"{both['comparisons']['removed - full']['effect']:+.2f}" in page


def test_a_half_finished_study_ends_as_one_that_was_left_alone(tmp_path: Path) -> None:
    """Killed in the middle of a training, by the command line; the arm behind it reads the killed one's bounds."""
    base = tmp_path / "torture.yaml"
    base.write_text(SMALL)
    arms = "\n  full: {}\n  early: {scrg.passes: 2}\n"
    arms += '  mean: {clip.objective: joint, clip.mode: mean_of_run, clip.run: "{run:full}"}\n'
    study = make(tmp_path, base, "half", arms)
    batches = 2 + 2 + 3 * 12  # SFT of teacher and student, then the arms: six steps of two micro-batches

    def ablate(root: Path, points: str = "") -> int:
        def work() -> None:
            faults.arm(points)
            assert main(["ablate", str(study.path), f"run_root={root}"]) == 0
            (root / "visits.json").write_text(json.dumps(faults.visits()))

        return forked(work, tmp_path / f"{root.name}.log")

    whole, halved = tmp_path / "whole", tmp_path / "halved"
    assert ablate(whole) == 0, (tmp_path / "whole.log").read_text()[-2000:]
    assert json.loads((whole / "visits.json").read_text())["step.end"] == batches
    assert ablate(halved, "step.end=kill@13") == -signal.SIGKILL
    assert not list((halved / "results").glob("*.json"))
    assert ablate(halved) == 0, (tmp_path / "halved.log").read_text()[-2000:]
    # of the killed arm's six steps the four up to its resume point are not done again
    assert json.loads((halved / "visits.json").read_text())["step.end"] == 12 - 8 + 24
    names = [sorted(path.name for path in (root / "results").iterdir()) for root in (whole, halved)]
    assert names[0] == names[1] and len(names[0]) == 3
    for name in names[0]:
        assert unequal(*(pool.read(root / "results" / name) for root in (whole, halved)), name) == []


def test_runs_of_another_numerics_version_or_configuration_are_never_mixed(
    quick_file: Path, shared_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, ran = make(tmp_path, quick_file, "mixed", "\n  full: {}\n"), counted(monkeypatch)
    place, here = study.pool(), mgsr.NUMERICS_VERSION
    word = root_in(tmp_path, shared_root)
    run_study(study, [0], [word], record=True)
    before = {path: path.read_bytes() for path in place.iterdir()}
    # a run folder holds one configuration; elsewhere it is a run of its own
    with pytest.raises(UserError, match=r"train\.lr"):
        run_study(study, [0], [word, "train.lr=0.5"], record=True)
    ran.clear()
    run_study(study, [0], [root_in(tmp_path, shared_root, "other"), "train.lr=0.5"], record=True)
    assert ran == ["full/0"] and len(list(place.iterdir())) == 2
    other = recorded(study, "full", 0, place, ["train.lr=0.5"])
    assert other["settings"]["train.lr"] == 0.5 and recorded(study, "full", 0, place) != other
    monkeypatch.setattr(mgsr, "NUMERICS_VERSION", here + 1)
    begun = re.escape(str(tmp_path / "runs/mixed/full/seed=0"))
    with pytest.raises(UserError, match=rf"{begun}: begun with numerics version {here}, here it is {here + 1}"):
        run_study(study, [0], [word], record=True)
    # it is not taken for this version's run, which is begun anew, in a folder of its own
    ran.clear()
    run_study(study, [0], [root_in(tmp_path, shared_root, "anew")], record=True)
    assert ran == ["full/0"]
    assert recorded(study, "full", 0, place)["environment"]["numerics"] == here + 1
    assert {path: path.read_bytes() for path in before} == before
    (tmp_path / "runs/mixed/full/seed=0/environment.json").write_text("{torn")
    for path in place.iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"environment\.json: broken JSON"):
        run_study(study, [0], [word], record=True)


def test_arms_that_cannot_run_or_have_other_data_are_refused_before_the_first_run(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = counted(monkeypatch)
    study = make(tmp_path, tiny_file, "data", "\n  full: {}\n  fewer: {data.train_limit: 8}\n")
    with pytest.raises(UserError, match="arm `fewer` reads other data than full"):
        run_study(study, [0], [f"run_root={tmp_path}"])
    with pytest.raises(UserError, match="no arm `gone`; it has full, fewer"):
        run_study(study, [0], [f"run_root={tmp_path}"], arms=["gone"])
    half = "objective.divergence: jensen_shannon, objective.divergence_options"
    study = make(tmp_path, tiny_file, "open", f"\n  full: {{}}\n  edge: {{{half}: {{beta: 1}}}}\n")
    with pytest.raises(UserError, match=r"yaml:5, arm `edge`: .* beta must lie strictly between 0 and 1, got 1"):
        run_study(study, [0], [f"run_root={tmp_path}"])
    assert ran == []


def test_two_runs_side_by_side_equal_one_after_another(
    quick_file: Path, tmp_path: Path, capfd: Any, processes: None
) -> None:
    study = make(
        tmp_path,
        quick_file,
        "side",
        "\n  full: {}\n  head: {clip.mode: fixed, clip.lower: -.inf}\n",
    )
    for jobs in (1, 2):
        overrides = [f"run_root={tmp_path}/{jobs}", "trainer.threads=1"]
        words = ["ablate", str(study.path), "--jobs", str(jobs), *overrides]
        assert main(words) == 0
    names = [sorted(path.name for path in (tmp_path / jobs / "results").iterdir()) for jobs in ("1", "2")]
    assert names[0] == names[1] and len(names[0]) == 2
    for name in names[0]:
        one, other = (pool.read(tmp_path / jobs / "results" / name) for jobs in ("1", "2"))
        assert unequal(one["metrics"], other["metrics"]) == unequal(one["curves"], other["curves"]) == []
    assert "2/2 runs" in capfd.readouterr().out
    log = (tmp_path / "2/side/full/seed=0.log").read_text()
    assert "mgsr train" in log and "written to" in log


@pytest.mark.parametrize("processes", ["forked"], indirect=True)
def test_a_run_that_fails_side_by_side_is_named(quick_file: Path, tmp_path: Path, processes: None) -> None:
    study = make(tmp_path, quick_file, "fails", "\n  full: {}\n  bad: {scrg.passes: 2}\n")
    (tmp_path / "fails/bad").mkdir(parents=True)
    (tmp_path / "fails/bad/seed=0").write_text("in the way")
    with pytest.raises(UserError, match=r"bad, seed 0 failed"):
        run_study(study, [0], [f"run_root={tmp_path}", "trainer.threads=1"], jobs=2)
    assert list(pool.find(tmp_path / "results", key_in(study, "bad", 0))) == []
