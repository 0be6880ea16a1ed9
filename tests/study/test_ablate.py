"""Whole studies on the tiny configuration: recorded, skipped, resumed, side by side, never mixed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mgsr
import mgsr.study.run
from mgsr.cli.main import main
from mgsr.runtime import faults
from mgsr.runtime.errors import UserError
from mgsr.study.results import hashes, read_result, results_in
from mgsr.study.run import Run, run_all, run_study
from mgsr.study.study import Study, load_study, result_path
from tests.reliability.harness import SMALL, forked, unequal

ARMS = """
  full: {}
  removed: {scrg.enabled: false}
  mean: {clip.mode: mean_of_run, clip.run: "{results}/full/seed={seed}.json"}
"""
QUICK = ["train.epochs=1", "evaluation.seeds=[10]"]


def make(folder: Path, base: Path, name: str = "small", arms: str = ARMS) -> Study:
    path = folder / "studies" / name / "study.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(f"study: {name}\nbase: {base}\nbaseline: full\narms:{arms}")
    return load_study(path)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    ran: list[str] = []
    original = mgsr.study.run.train

    def train(config: Any, **options: Any) -> Any:
        ran.append(f"{config.arm}/{config.seed}{' again' if options.get('resume') else ''}")
        return original(config, **options)

    monkeypatch.setattr(mgsr.study.run, "train", train)
    return ran


@pytest.fixture(params=["forked", pytest.param("started", marks=pytest.mark.long)])
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
        monkeypatch.setattr(mgsr.study.run, "subprocess", SimpleNamespace(run=run, STDOUT=subprocess.STDOUT))


def test_a_study_is_recorded_skipped_and_shared(
    tiny_file: Path, shared_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    study, ran = make(tmp_path, tiny_file), counted(monkeypatch)
    overrides = [f"run_root={tmp_path}/runs", *QUICK]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "cache").symlink_to(shared_root / "cache")
    (shared_root / "cache").mkdir(exist_ok=True)
    summary = run_study(study, [0, 1], overrides, record=True)
    # what reads another arm's result comes last
    assert ran == ["full/0", "removed/0", "full/1", "removed/1", "mean/0", "mean/1"]
    result = read_result(result_path(study.results, "full", 0))
    assert result is not None
    run = json.loads((tmp_path / "runs/small/full/seed=0/metrics.json").read_text())
    assert result["metrics"]["result"]["test"]["rouge_l"] == pytest.approx(run["result"]["test"]["rouge_l"])
    assert len(result["scores"]["test"]) == 6
    assert sum(result["scores"]["test"]) / 6 == pytest.approx(run["result"]["test"]["rouge_l"], abs=0.01)
    assert result["curves"]["val/rouge_l"]["steps"] == result["curves"]["cost/tokens"]["steps"] == [3]
    assert result["metrics"]["costs"]["tokens_scoring"] > 0
    assert result["environment"]["numerics"] == mgsr.NUMERICS_VERSION and "dirty" in result["environment"]
    assert [len(content) for content in result["start"].values()] == [64, 64]
    removed = read_result(result_path(study.results, "removed", 0))
    assert removed is not None and removed["start"] == result["start"]
    # the arm read the bounds that the other had learned
    mean = json.loads((tmp_path / "runs/small/mean/seed=1/metrics.json").read_text())
    assert 0 < mean["dac"]["retained_mass"] <= 1
    # nothing is run twice, with the run folders or without them
    ran.clear()
    assert run_study(study, [0, 1], [f"run_root={tmp_path}/elsewhere", *QUICK], record=True) == summary
    assert ran == []
    # another study's arm with the same configuration is the same run
    other = make(tmp_path, tiny_file, "other", "\n  full: {}\n  passes_2: {scrg.passes: 2}\n")
    (tmp_path / "elsewhere" / "cache").symlink_to(shared_root / "cache")
    run_study(other, [0], [f"run_root={tmp_path}/elsewhere", *QUICK], record=True)
    assert ran == ["passes_2/0"]
    # once, however often the study goes on
    layout = EventAccumulator(str(tmp_path / "runs/small/layout")).Reload()
    assert layout.Tags()["tensors"] == ["custom_scalars__config__"]
    # with another number of threads these would be other numbers
    words = ["ablate", str(study.path), "--seeds", "0", "2", "--record", *overrides]
    assert main([*words, "trainer.threads=7"]) == 2
    error = capsys.readouterr().err
    assert "trainer.threads=7 would give other numbers" in error and error.count("\n") == 1
    assert main(["report", str(study.path)]) == 0
    assert "inconclusive" in (study.path.parent / "README.md").read_text()


def test_a_half_finished_study_ends_as_one_that_was_left_alone(tmp_path: Path) -> None:
    """Killed in the middle of a training, by the command line; the arm behind it reads the killed one's bounds."""
    base = tmp_path / "torture.yaml"
    base.write_text(SMALL)
    arms = "\n  full: {}\n  killed: {scrg.passes: 2}\n"
    arms += (
        '  mean: {clip.objective: joint, clip.mode: mean_of_run, clip.run: "{results}/killed/seed={seed}.json"}\n'
    )
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
    assert ablate(halved, "step.end=kill@25") == -signal.SIGKILL
    assert [p.parent.name for p in (halved / "half/results").glob("*/seed=0.*json")] == ["full"]
    assert ablate(halved) == 0, (tmp_path / "halved.log").read_text()[-2000:]
    # of the killed arm's six steps the four up to its resume point are not done again
    assert json.loads((halved / "visits.json").read_text())["step.end"] == 12 - 8 + 12
    for arm in study.arms:
        both = [read_result(result_path(root / "half/results", arm, 0)) for root in (whole, halved)]
        for part in ("hashes", "metrics", "scores", "curves"):
            assert unequal(*(result[part] for result in both), part) == []


def test_results_of_another_numerics_version_or_configuration_are_never_mixed(
    tiny_file: Path, shared_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make(tmp_path, tiny_file, "mixed", "\n  full: {}\n")
    overrides = [f"run_root={shared_root}", *QUICK]
    run_study(study, [0], overrides, record=True)
    with pytest.raises(UserError, match=r"another config, base \(train\.lr: 0\.01 -> 0\.5\)"):
        run_study(study, [0], [*overrides, "train.lr=0.5"], record=True)
    here = mgsr.NUMERICS_VERSION
    monkeypatch.setattr(mgsr, "NUMERICS_VERSION", here + 1)
    recorded_before = result_path(study.results, "full", 0, here).read_bytes()
    # it is not taken for this version's run, which is begun anew, in a folder of its own
    started = counted(monkeypatch)
    run_study(study, [0], [f"run_root={tmp_path / 'anew'}", *QUICK], record=True)
    assert started == ["full/0"]
    assert result_path(study.results, "full", 0, here).read_bytes() == recorded_before
    assert [r["environment"]["numerics"] for r in results_in(study.results, 0)] == [here, here + 1]
    result_path(study.results, "full", 0).unlink()
    # nor is one of another study taken for the same run
    other = make(tmp_path, tiny_file, "copied", "\n  full: {}\n")
    started = counted(monkeypatch)
    run_study(other, [0], overrides, record=True)
    assert started == ["full/0"]
    found = read_result(result_path(other.results, "full", 0))
    assert found is not None and found["environment"]["numerics"] == here + 1
    result_path(other.results, "full", 0).unlink()
    begun = re.escape(str(shared_root / "mixed/full/seed=0"))
    with pytest.raises(
        UserError, match=rf"{begun}: begun with numerics version {here} \(commit .* here it is {here + 1}"
    ):
        run_study(study, [0], overrides, record=True)
    (shared_root / "mixed/full/seed=0/environment.json").write_text("{torn")
    with pytest.raises(UserError, match=r"environment\.json: broken JSON"):
        run_study(study, [0], overrides, record=True)


def test_arms_on_different_data_are_refused(tiny_file: Path, tmp_path: Path) -> None:
    study = make(tmp_path, tiny_file, "data", "\n  full: {}\n  fewer: {data.train_limit: 8}\n")
    with pytest.raises(UserError, match="reads other data"):
        run_study(study, [0], [f"run_root={tmp_path}"])
    with pytest.raises(UserError, match="no arm `gone`; it has full, fewer"):
        run_study(study, [0], [f"run_root={tmp_path}"], arms=["gone"])


def test_hashes_follow_what_changes_numbers(make_config: Any) -> None:
    base = make_config()

    def hashes_of(*overrides: str) -> dict[str, str]:
        return hashes(make_config(*overrides), base)

    plain = hashes_of()
    assert plain == hashes_of("experiment=x", "arm=y", "run_root=z", "trainer.threads=1")
    # what is told of the same answers
    assert plain == hashes_of("evaluation.one_answer=[sort]")
    assert plain["config"] != hashes_of("seed=1")["config"]
    assert plain["config"] != hashes_of("scrg.passes=2")["config"]
    other = hashes_of("data.synthetic.test_rows=5")
    assert plain["data"] != other["data"]


def test_two_runs_side_by_side_equal_one_after_another(
    tiny_file: Path, tmp_path: Path, capfd: Any, processes: None
) -> None:
    study = make(
        tmp_path,
        tiny_file,
        "side",
        "\n  full: {}\n  head: {clip.mode: fixed, clip.lower: -.inf}\n",
    )
    for jobs in (1, 2):
        overrides = [f"run_root={tmp_path}/{jobs}", "trainer.threads=1", *QUICK]
        words = ["ablate", str(study.path), "--jobs", str(jobs), *overrides]
        assert main(words) == 0
    both = [
        {arm: json.loads(result_path(tmp_path / f"{jobs}/side/results", arm, 0).read_text()) for arm in study.arms}
        for jobs in (1, 2)
    ]
    for arm in study.arms:
        assert both[0][arm]["scores"] == both[1][arm]["scores"]
        assert both[0][arm]["metrics"]["result"] == both[1][arm]["metrics"]["result"]
    assert "2/2 runs" in capfd.readouterr().out
    log = (tmp_path / "2/side/full/seed=0.log").read_text()
    assert "mgsr train" in log and "written to" in log


def test_a_run_that_fails_side_by_side_is_named(tiny_file: Path, tmp_path: Path, processes: None) -> None:
    study = make(tmp_path, tiny_file, "fails", "\n  full: {}\n  bad: {scrg.passes: 2}\n")
    (tmp_path / "fails/bad").mkdir(parents=True)
    (tmp_path / "fails/bad/seed=0").write_text("in the way")
    with pytest.raises(UserError, match=r"bad, seed 0 failed"):
        run_study(study, [0], [f"run_root={tmp_path}", "trainer.threads=1", *QUICK], jobs=2)
    assert read_result(result_path(tmp_path / "fails/results", "bad", 0)) is None


def test_a_run_takes_a_device_that_is_free(
    make_config: Any, tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run is a long one: all others have to share the other device, one after another."""
    busy: dict[str, str] = {}
    ran: list[tuple[str, str]] = []
    last = threading.Event()

    def in_process(run: Run, jobs: int, device: str) -> None:
        assert device not in busy, f"{run.arm} and {busy[device]} on one device"
        busy[device] = run.arm
        ran.append((run.arm, device))
        if run.arm == "long":
            assert last.wait(20), "the last run never began"
        if run.arm == "d":
            last.set()
        del busy[device]

    monkeypatch.setattr(mgsr.study.run, "_in_process", in_process)
    monkeypatch.setattr(mgsr.study.run, "_record", lambda study, run: None)
    monkeypatch.setattr(mgsr.study.run, "prepare", lambda config: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    study = make(tmp_path, tiny_file, "devices", "\n  full: {}\n")
    runs = [Run(arm, 0, make_config(f"arm={arm}"), {}, tmp_path / arm) for arm in ("long", "a", "b", "c", "d")]
    run_all(study, runs, 2)
    devices = dict(ran)
    assert sorted(devices) == ["a", "b", "c", "d", "long"]
    assert {devices[arm] for arm in "abcd"} == {"4", "GPU-7"} - {devices["long"]}


def test_more_jobs_than_devices_share_them_evenly(
    make_config: Any, tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(4, timeout=20)
    taken: list[str] = []

    def in_process(run: Run, jobs: int, device: str) -> None:
        taken.append(device)
        together.wait()

    monkeypatch.setattr(mgsr.study.run, "_in_process", in_process)
    monkeypatch.setattr(mgsr.study.run, "_record", lambda study, run: None)
    monkeypatch.setattr(mgsr.study.run, "prepare", lambda config: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    study = make(tmp_path, tiny_file, "shared", "\n  full: {}\n")
    run_all(study, [Run(arm, 0, make_config(f"arm={arm}"), {}, tmp_path / arm) for arm in "abcd"], 4)
    assert sorted(taken) == ["0", "0", "1", "1"]
