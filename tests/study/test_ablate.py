"""Whole studies on the tiny configuration: recorded, skipped, resumed, side by side, never mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mgsr.ablate
from mgsr.ablate import run_study
from mgsr.cli import main
from mgsr.errors import UserError
from mgsr.results import hashes, read_result, result_path
from mgsr.studies import Study, load_study

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
    original = mgsr.ablate.train

    def train(config: Any, **options: Any) -> Any:
        ran.append(f"{config.arm}/{config.seed}{' again' if options.get('resume') else ''}")
        return original(config, **options)

    monkeypatch.setattr(mgsr.ablate, "train", train)
    return ran


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
    assert main(["report", str(study.path)]) == 0
    assert "inconclusive" in (study.path.parent / "README.md").read_text()


def test_a_half_finished_study_goes_on(
    tiny_file: Path, shared_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make(tmp_path, tiny_file, "half")
    overrides = [f"run_root={shared_root}", "experiment=half", *QUICK][:1] + QUICK

    class Stop(Exception):
        pass

    original = mgsr.ablate.train
    monkeypatch.setattr(mgsr.ablate, "train", lambda config, **k: _stop_at_removed(config, original, k, Stop))
    with pytest.raises(Stop):
        run_study(study, [0], overrides)
    monkeypatch.setattr(mgsr.ablate, "train", original)
    ran = counted(monkeypatch)
    run_study(study, [0], overrides)
    # its folder was made: it is taken up, not refused
    assert ran == ["removed/0 again", "mean/0"]


def _stop_at_removed(config: Any, train: Any, options: Any, stop: type[Exception]) -> Any:
    if config.arm == "removed":
        from mgsr.runs import open_run_folder, run_folder

        open_run_folder(run_folder(config), config, resume=False)
        raise stop
    return train(config, **options)


def test_results_of_other_code_or_configuration_are_never_mixed(
    tiny_file: Path, shared_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make(tmp_path, tiny_file, "mixed", "\n  full: {}\n")
    overrides = [f"run_root={shared_root}", *QUICK]
    run_study(study, [0], overrides, record=True)
    with pytest.raises(UserError, match="another config"):
        run_study(study, [0], [*overrides, "train.lr=0.5"], record=True)
    monkeypatch.setattr(mgsr.ablate, "code_fingerprint", lambda: "other")
    with pytest.raises(UserError, match=r"another code \(commit"):
        run_study(study, [0], overrides, record=True)
    result_path(study.results, "full", 0).unlink()
    with pytest.raises(UserError, match="begun with other code"):
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
        return hashes(make_config(*overrides), base, "c")

    plain = hashes_of()
    assert plain == hashes_of("experiment=x", "arm=y", "run_root=z", "trainer.threads=1")
    assert plain["config"] != hashes_of("seed=1")["config"]
    assert plain["config"] != hashes_of("scrg.passes=2")["config"]
    other = hashes_of("data.synthetic.test_rows=5")
    assert plain["data"] != other["data"]


def test_two_runs_side_by_side_equal_one_after_another(tiny_file: Path, tmp_path: Path, capfd: Any) -> None:
    study = make(
        tmp_path,
        tiny_file,
        "side",
        "\n  full: {}\n  head: {clip.mode: fixed, clip.lower: -.inf}\n",
    )
    for jobs in (1, 2):
        words = ["ablate", str(study.path), "--jobs", str(jobs), f"run_root={tmp_path}/{jobs}", *QUICK]
        assert main(words) == 0
    both = [
        {arm: json.loads((tmp_path / f"{jobs}/side/results/{arm}/seed=0.json").read_text()) for arm in study.arms}
        for jobs in (1, 2)
    ]
    for arm in study.arms:
        assert both[0][arm]["scores"] == both[1][arm]["scores"]
        assert both[0][arm]["metrics"]["result"] == both[1][arm]["metrics"]["result"]
    assert "2/2 runs" in capfd.readouterr().out
    log = (tmp_path / "2/side/full/seed=0.log").read_text()
    assert "mgsr train" in log and "written to" in log


def test_a_run_that_fails_side_by_side_is_named(tiny_file: Path, tmp_path: Path) -> None:
    study = make(tmp_path, tiny_file, "fails", "\n  full: {}\n  bad: {train.lr: 1.0e+30}\n")
    with pytest.raises(UserError, match=r"bad, seed 0 failed .*became"):
        run_study(study, [0], [f"run_root={tmp_path}", *QUICK], jobs=2)
    assert read_result(tmp_path / "fails/results/bad/seed=0.json") is None
