"""Recorded results: partial files are refused by name, and what does not go together is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import mgsr
from mgsr.cli.main import main
from mgsr.runtime.errors import UserError
from mgsr.study.report.evidence import read_evidence
from mgsr.study.report.plots import all_plots
from mgsr.study.report.write_report import report
from mgsr.study.results import write_result
from mgsr.study.study import Study, result_path
from tests.study.synthetic import FIGURES, make_result, make_study, readme_of, record
from tests.study.test_report import rows


def without(place: str) -> Any:
    """A change of a result file: this part of it is gone, with bars between names."""

    def change(result: Any) -> Any:
        *path, last = place.split("|")
        part = result
        for name in path:
            part = part[name]
        del part[last]
        return result

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: [], "its content is [], not a mapping"),
        (lambda r: {**r, "metrics": None}, "metrics is no mapping"),
        (lambda r: {**r, "environment": []}, "environment: no mapping"),
        (without("curves"), "lacks curves"),
        (without("curves|cost/seconds"), "lacks curves.cost/seconds"),
        (without("metrics|training_text"), "lacks metrics.training_text"),
        (without("metrics|steps"), "lacks metrics.steps"),
        (without("metrics|result|test"), "metrics.result.test: no mapping"),
        (without("metrics|result|test|rouge_l"), "metrics.result.test lacks rouge_l"),
        (without("metrics|result|test|rouge_l_by_category"), "lacks rouge_l_by_category"),
        (
            lambda r: r["metrics"]["result"]["test"].update(exact_match_by_category={"sort": None}) or r,
            "metrics.result.test.exact_match_by_category is no mapping of numbers",
        ),
        (without("scores|test"), "scores.test are not those of 4 rows"),
        (lambda r: {**r, "scores": {"test": [1.0, 2.0]}}, "scores.test are not those of 4 rows"),
        (lambda r: {**r, "curves": {"val/loss": {"steps": [1], "values": []}}}, "curves.val/loss is torn"),
        (lambda r: r["metrics"].update(costs={"seconds_training": None}) or r, "costs are not all numbers"),
        (lambda r: r["metrics"].update(costs={}) or r, "costs lack tokens_training or seconds_training"),
        (
            lambda r: r["metrics"]["costs"].update(tokens_training=0) or r,
            "costs lack tokens_training or seconds_training",
        ),
        (lambda r: r["metrics"]["result"]["test"].update(rouge_l=float("nan")) or r, "lacks rouge_l or examples"),
        (lambda r: r["metrics"]["result"]["test"].update(exact_match="x") or r, "figures that are no numbers"),
        (
            lambda r: r["metrics"].update(sft_start={"test": 44.0}) or r,
            "metrics.sft_start is no mapping of test sets",
        ),
        (lambda r: r["metrics"].update(corrections=[1]) or r, "metrics.corrections is no mapping of numbers"),
        (lambda r: r["metrics"]["exposure"].update(ex_acc_err_at_end="x") or r, "metrics.exposure is no mapping"),
        (
            lambda r: r["metrics"]["training_text"]["written"].update(distinct_1="x") or r,
            "metrics.training_text.written is no mapping",
        ),
        (
            lambda r: r["curves"].update({"cost/tokens": {"steps": [19], "values": [1000.0]}}) or r,
            "curves.val/rouge_l and curves.cost/tokens are not of the same steps",
        ),
        *(
            (lambda r, value=value: r["metrics"]["result"]["test"].update(rouge_l=value) or r, "lacks rouge_l")
            for value in (1000.0, -5.0, True, 10**400, [50.0], "50")
        ),
        (lambda r: {**r, "scores": {"test": [0.0] * 4}}, "scores.test have another mean"),
        (lambda r: {**r, "scores": {"test": [10**400] * 4}}, "scores.test are not those of 4 rows"),
        (lambda r: r["metrics"]["costs"].update(tokens_scoring=-1) or r, "costs are not all numbers"),
        (lambda r: r["metrics"]["costs"].update(seconds_scoring=10**400) or r, "costs are not all numbers"),
        (lambda r: {**r, "metrics": {**r["metrics"], "steps": -4}}, "metrics.steps is no number"),
        (lambda r: {**r, "metrics": {**r["metrics"], "steps": 10**400}}, "metrics.steps is no number"),
        (lambda r: {**r, "seed": True}, "seed is no number"),
        (lambda r: {**r, "arm": ["removed"]}, "study and arm are no names"),
        (
            lambda r: r["metrics"]["exposure"].update(ex_acc_err_at_end=[1.0]) or r,
            "metrics.exposure is no mapping",
        ),
        (lambda r: r["metrics"].update(corrections={"corrected": {}}) or r, "metrics.corrections is no mapping"),
        (lambda r: r["environment"].update(devices=3) or r, "environment.devices is no list"),
        (lambda r: r["environment"].update(threads="x") or r, "environment.threads is no number"),
        (lambda r: r["environment"].update(numerics="x") or r, "environment.numerics is no number"),
        (lambda r: {**r, "start": ["a"]}, "start is no mapping of fingerprints"),
        (lambda r: {**r, "start": {"student": 3}}, "start is no mapping of fingerprints"),
        (lambda r: r["environment"].update(cpu=["a"]) or r, "cpu is neither a word nor a number"),
        (lambda r: r["hashes"].update(code=["a"]) or r, "hashes.code is neither a word nor a number"),
        (lambda r: r["metrics"]["result"].update(more=r["metrics"]["result"]["test"]) or r, "scores.more"),
    ],
)
def test_partial_result_files_are_refused_by_name_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    study = make_study(tmp_path)
    record(study)
    path = result_path(study.results, "removed", 1)
    path.write_text(json.dumps(change(make_result(study, "removed", 1, 50.0))))
    assert main(["report", str(study.path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and message in error and error.count("\n") == 1


def test_a_run_without_a_test_set_of_the_others_is_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    record(study)
    more = make_result(study, "full", 0, 60.0)
    more["metrics"]["result"]["dolly"] = more["metrics"]["result"]["test"]
    more["scores"]["dolly"] = more["scores"]["test"]
    write_result(result_path(study.results, "full", 0), more)
    with pytest.raises(UserError, match=r"full/seed=1\..*json: lacks metrics.result.dolly"):
        report(study)


def test_unequal_lengths_and_results_of_no_arm_are_named(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    record(study)
    for seed in range(4):
        longer = make_result(study, "other", seed, 61.0)
        longer["metrics"]["steps"] = 30
        write_result(result_path(study.results, "other", seed), longer)
    longer["metrics"]["steps"], longer["arm"], longer["overrides"] = 40, "full", {}
    write_result(result_path(study.results, "full", 3), longer)
    write_result(result_path(study.results, "gone", 0), {**longer, "arm": "gone"})
    text = readme_of(study)
    assert "optimiser steps:** 20 in full (seed 0, 1, 2), removed; 30 in other; 40 in full (seed 3)." in text
    assert "Left out, being no arms of the study: results of gone." in text


def environment_of(study: Study, arm: str, seed: int, **changes: Any) -> None:
    result = make_result(study, arm, seed, FIGURES[arm][seed])
    result["environment"].update(changes)
    write_result(result_path(study.results, arm, seed), result)


def test_every_kind_of_machine_is_named(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    record(study)
    text = readme_of(study)
    assert "Machine: x86_64, 1 thread per run, torch 2, no GPU." in text
    assert "--seeds 0 1 2 3 --record trainer.threads=1\n" in text
    # an older result doesn't say its processor: named as far as known, and no difference
    environment_of(study, "removed", 0, cpu="a Xeon")
    text = readme_of(study)
    assert (
        "Machine: x86_64, 1 thread per run, torch 2, no GPU (11 runs); 1 thread per run, a Xeon, torch 2, " in text
    )
    assert "More than one kind" not in text
    environment_of(study, "removed", 1, cpu="an EPYC", threads=2, torch="3")
    text = readme_of(study)
    assert "; 2 threads per run, an EPYC, torch 3, no GPU (1 run)." in text
    mixed = "**More than one kind of machine:** the runs differ in threads, cpu and torch, and rounding with it"
    assert f"{mixed}: at training seed 1 differences between arms are not those of the arms alone." in text
    # no one command makes these
    assert "--seeds 0 1 2 3 --record\n" in text
    for arm in ("full", "other"):
        environment_of(study, arm, 1, cpu="an EPYC", threads=2, torch="3")
    said = f"{mixed}. All runs of a training seed have the same kind"
    assert f"{said}, as far as they recorded it: arms, paired by seed, " in readme_of(study)
    for arm in ("full", "removed", "other"):
        for seed in (0, 2, 3):
            environment_of(study, arm, seed, cpu="a Xeon")
    assert f"{said}: arms, paired by seed, " in readme_of(study)


def test_runs_of_a_seed_that_began_with_other_models_are_named(tmp_path: Path) -> None:
    study = make_study(tmp_path)

    def begun_with(arm: str, seed: int, teacher: float | None, student: float) -> None:
        result = make_result(study, arm, seed, FIGURES[arm][seed])
        if teacher is not None:
            result["metrics"]["teacher"] = {"test": {"rouge_l": teacher}}
        result["metrics"]["sft_start"] = {"test": {"rouge_l": student}}
        write_result(result_path(study.results, arm, seed), result)

    for seed in range(3):
        begun_with("full", seed, 85.0, 44.0 + seed)
        begun_with("other", seed, 85.0, 44.0 + seed)
        # an arm without a teacher says nothing of it
        begun_with("removed", seed, None, 44.0 + seed)
    assert "began with the same models" not in readme_of(study)
    begun_with("other", 1, 85.5, 45.0)
    begun_with("removed", 2, None, 46.5)
    assert "**Not all runs of training seed 1, 2 began with the same models:**" in readme_of(study)


def test_processors_of_one_name_are_told_apart(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    record(study)
    environment_of(study, "full", 0, cpu="an EPYC", cpu_model="family 25, model 1")
    environment_of(study, "full", 1, cpu="an EPYC", cpu_model="family 25, model 17")
    text = readme_of(study)
    assert "an EPYC (family 25, model 17)" in text and "the runs differ in cpu_model" in text


@pytest.mark.parametrize(
    "content",
    ['{"seed": ' + "9" * 5000 + "}", "[" * 100_000, "", "\x00", '{"seed": 1', "null", "[]"],
    ids=["digits", "nested", "empty", "null byte", "torn", "null", "list"],
)
def test_files_that_are_no_result_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    study = make_study(tmp_path)
    record(study)
    path = result_path(study.results, "removed", 1)
    path.write_text(content)
    assert main(["report", str(study.path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and error.count("\n") == 1


def test_a_run_copied_to_another_seed_is_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    record(study)
    path = result_path(study.results, "removed", 1)
    write_result(
        path,
        {
            **json.loads(path.read_text()),
            "hashes": json.loads(result_path(study.results, "removed", 0).read_text())["hashes"],
        },
    )
    with pytest.raises(UserError, match=re.escape(f"{path}: has the configuration of seed 0")):
        report(study)


HERE = mgsr.NUMERICS_VERSION


def test_results_of_another_numerics_version_stand_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(tmp_path)
    record(study)
    text = readme_of(study)
    assert f"numerics version {HERE}, python" in text and "Of numerics version" not in text
    environment_of(study, "other", 0, numerics=HERE)
    # two arms have been run anew, one of them not with all seeds
    for arm, seeds in (("full", 4), ("removed", 2)):
        for seed in range(seeds):
            result = make_result(study, arm, seed, FIGURES[arm][seed])
            result["environment"]["numerics"] = HERE + 1
            write_result(result_path(study.results, arm, seed), result)
    text = readme_of(study)
    apart = (
        f"**Of numerics version {HERE + 1}, and in no figure or verdict here:** full, seed 0, 1, 2, 3; "
        "removed, seed 0, 1."
    )
    assert apart in text and rows(text, "ROUGE-L on the test set")["full"] == ["0", *["not yet run"] * 7]
    monkeypatch.setattr(mgsr, "NUMERICS_VERSION", HERE + 1)
    evidence = read_evidence(study, study.results)
    assert {arm: list(by_seed) for arm, by_seed in evidence.results.items()} == {
        "full": [0, 1, 2, 3],
        "removed": [0, 1],
        "other": [],
    }
    text = readme_of(study)
    assert "in no figure or verdict here:** removed, seed 2, 3; other, seed 0, 1, 2, 3." in text
    assert rows(text, "ROUGE-L on the test set")["removed"][0] == "2" and "6 runs, training seeds" in text
    assert f"numerics version {HERE + 1}, python" in text
    assert [name for name, (_, svg) in all_plots(evidence).items() if ">other<" in svg] == []


def test_a_study_that_was_only_run_with_an_older_version_is_reported_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path)
    record(study)
    before = readme_of(study)
    monkeypatch.setattr(mgsr, "NUMERICS_VERSION", HERE + 1)
    here, there = f"**These results are of numerics version {HERE}:**", f"the code is at version {HERE + 1}"
    said = f"{here} {there}, of which there are none yet."
    text = readme_of(study)
    assert said in text
    monkeypatch.setattr(mgsr, "NUMERICS_VERSION", 0)
    with pytest.raises(UserError, match="of a later numerics version than this code's, 0"):
        read_evidence(study, study.results)
    assert [line for line in text.splitlines() if said not in line and line] == list(
        filter(None, before.splitlines())
    )


def test_changes_that_no_commit_holds_are_told(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    record(study)
    environment_of(study, "full", 0, dirty=True)
    environment_of(study, "full", 1, dirty=False)
    environment_of(study, "full", 2, dirty=None)
    assert f"Commit 0123456, 0123456 with changes; numerics version {HERE}" in readme_of(study)
