"""Single tables of a report: equal cost, sizes of text, the order of test sets, runs that other studies share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy import stats

import mgsr
from mgsr.study.report.write_report import report
from mgsr.study.results import write_result
from mgsr.study.study import Study, result_path
from tests.study.synthetic import STUDY, make_result, make_study, readme_of, record
from tests.study.test_report import rows


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = make_study(tmp_path)
    record(made)
    return made


def change(study: Study, arm: str, rouge_l: list[float], **changes: Any) -> None:
    """Record the arm again with other costs (`costs`) and looks at the dev set (`spent`)."""
    for seed, value in enumerate(rouge_l):
        result = make_result(study, arm, seed, value)
        result["metrics"]["costs"] = changes["costs"]
        if "spent" in changes:
            result["curves"]["cost/tokens"] = {"steps": [9, 19], "values": changes["spent"]}
        write_result(result_path(study.results, arm, seed), result)


def test_equal_work_takes_equal_time_whatever_the_clock_said(study: Study) -> None:
    change(study, "other", [61.0] * 4, costs={"seconds_training": 30.0, "tokens_training": 1000})
    text = readme_of(study)
    table = rows(text, "At equal cost")
    # the median run took 10 s for these tokens
    assert table["other"][1] == table["full"][1] == "10.0"
    assert table["other"][6] == "61.00" and table["other"][-1] == "30.0"
    assert "10,000 s for training" in text


def test_a_dear_arm_is_read_where_the_cheapest_ended_with_its_interval(study: Study) -> None:
    dear = {
        "seconds_training": 10.0,
        "tokens_training": 1000,
        "seconds_generation": 2.0,
        "tokens_generation": 1000,
    }
    figures = [61.0, 62.5, 62.0, 63.0]
    change(study, "other", figures, costs=dear, spent=[800.0, 2000.0])
    other = rows(readme_of(study), "At equal cost")["other"]
    # a sixth of the way from 800 to 2,000 tokens, five points apart
    reached = [value - 5 + 5 / 6 for value in figures]
    want = stats.ttest_rel(reached, [60.0, 62.0, 61.0, 63.0]).confidence_interval(0.95)
    assert other[0] == "0.002" and other[3] == f"{sum(reached) / 4:.2f}"
    assert other[5] == f"{want.low:+.2f} to {want.high:+.2f}"
    # 12 s in all; 10 of them are spent at 1,667 tokens
    reached = [value - 5 + 5 * (5 / 6 * 2000 - 800) / 1200 for value in figures]
    want = stats.ttest_rel(reached, [60.0, 62.0, 61.0, 63.0]).confidence_interval(0.95)
    assert other[1] == "12.0" and other[6] == f"{sum(reached) / 4:.2f}"
    assert other[7] == f"{sum(reached) / 4 - 61.5:+.2f}" and other[8] == f"{want.low:+.2f} to {want.high:+.2f}"


def test_an_empty_cell_at_equal_cost_is_explained(study: Study) -> None:
    dear = {"seconds_training": 10.0, "tokens_training": 5000}
    change(study, "other", [61.0] * 4, costs=dear, spent=[2500.0, 5000.0])
    text = readme_of(study)
    assert rows(text, "At equal cost")["other"][3:9] == ["–"] * 6
    assert "No figure at equal tokens (–): the dev set was first looked at later, `other` after 0.0025" in text
    assert "No figure at equal time (–)" in text
    assert "`full` after" not in text


def test_the_size_of_what_diversity_is_over_is_said(study: Study) -> None:
    for seed in reversed(range(4)):
        result = make_result(study, "full", seed, 60.0)
        result["metrics"]["scrg"] = {"sequences": 287.1}
        write_result(result_path(study.results, "full", seed), result)
    result["metrics"]["result"]["test"]["rouge_l_by_seed"] = {"10": 60.0, "20": 60.0}
    write_result(result_path(study.results, "full", 0), result)
    text = readme_of(study)
    assert rows(text, "Text")["full"][0] == "287" and rows(text, "Text")["removed"][0] == "–"
    assert "8 in every arm (4 rows, 2 sampling seeds)" in text


def test_the_comparisons_that_p_is_adjusted_over_are_told(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    record(study, {"full": [60.0, 62.0], "removed": [50.0, 51.5]})
    said = "p is adjusted by Holm over the 1 comparison made so far on this test set, of 2 that the study plans; "
    assert said in readme_of(study)
    record(study)
    text = readme_of(study)
    assert "by Holm over all 2 comparisons of the study on this test set; the adjustment grows" in text
    assert "a level of 0.05/2" in text


def test_the_test_set_comes_first(study: Study) -> None:
    for seed in range(4):
        for arm in study.arms:
            result = make_result(study, arm, seed, 60.0 + seed)
            result["metrics"]["result"]["another"] = result["metrics"]["result"]["test"]
            result["scores"]["another"] = result["scores"]["test"]
            write_result(result_path(study.results, arm, seed), result)
    text = report(study).read_text()
    assert (
        text.index("## ROUGE-L on the test set")
        < text.index("differences.svg")
        < text.index("## ROUGE-L on another")
    )
    # of the other set too: its intervals, its kinds of task, its noise
    assert "on another, with 95 % intervals](differences-another.svg)" in text
    assert "<svg" in (study.path.parent / "differences-another.svg").read_text()
    assert rows(text, "By kind of task, another")["full"] == ["60.5", "62.5"]
    assert rows(text, "Evaluation noise, another")["removed"][0] == "+0.00"


def test_runs_of_another_study_are_marked(study: Study, tmp_path: Path) -> None:
    assert "†" not in readme_of(study)
    path = tmp_path / "beside" / "study.yaml"
    path.parent.mkdir()
    # seed 2 is of another numerics version; seed 3 was run anew on a machine that gives other figures
    here = mgsr.NUMERICS_VERSION
    for seed, numerics, figure in ((0, here, 60.0), (1, here, 62.0), (2, here + 1, 61.0), (3, here, 62.9)):
        result = {**make_result(study, "full", seed, figure), "study": "beside", "arm": "base"}
        result["environment"]["numerics"] = numerics
        write_result(result_path(path.parent / "results", "base", seed), result)
    text = readme_of(study)
    table = rows(text, "ROUGE-L on the test set")
    assert "full †" in table and "removed" in table
    assert (
        "† 2 of the 12 runs stand in other studies too" in text
        and "`full`, seed 0, 1 (also `beside/base`)" in text
    )


def test_prompts_are_the_same_but_for_replay(tmp_path: Path) -> None:
    study = make_study(tmp_path, STUDY.replace("{scrg.passes: 3}", '{mixture.replay: "on"}'))
    record(study)
    text = readme_of(study)
    assert "within each window of `train.bucket_steps` optimiser steps" in text
    assert "Arms with a replay buffer (`other`) draw the prompts of their written text from it." in text
    # its likelihoods before and after a correction may be of different texts
    assert rows(text, "Text")["other"][-3:] == ["–", "25.0", "50.0"] and "Of replayed text (other)" in text
    assert rows(text, "Text")["full"][-3:] == ["75.0", "25.0", "50.0"]
    study = make_study(
        tmp_path, STUDY.replace("{scrg.passes: 3}", "{mixture.kind: adaptive, mixture.replay: 'off'}")
    )
    record(study)
    assert "replay buffer" not in readme_of(study)


def test_exact_match_by_kind_of_task(study: Study) -> None:
    assert "Exact match by kind of task" not in readme_of(study)
    for seed, value in enumerate([25.0, 50.0]):
        result = make_result(study, "other", seed, 61.0)
        result["metrics"]["result"]["test"]["exact_match_by_category"] = {"sort": value}
        write_result(result_path(study.results, "other", seed), result)
    text = readme_of(study)
    table = rows(text, "Exact match by kind of task, %")
    assert table["other"] == ["37.5"] and table["full"] == ["–"]
    assert "2 of the 12 runs have it" in text


def test_rows_of_no_kind_have_no_table_of_kinds(study: Study) -> None:
    for arm in study.arms:
        for seed in range(4):
            result = make_result(study, arm, seed, 60.0)
            result["metrics"]["result"]["test"].update(
                rouge_l_by_category={"all": 60.0}, exact_match_by_category={"all": 1.0}
            )
            write_result(result_path(study.results, arm, seed), result)
    text = readme_of(study)
    assert "## By kind of task" not in text and rows(text, "Exact match by kind of task, %")["full"] == ["1.0"]


def test_exact_match_is_told_of_the_kinds_that_the_base_configuration_names(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("evaluation: {one_answer: [sort]}\n")
    study = make_study(tmp_path, STUDY.replace("base: demo", f"base: {tmp_path}/base.yaml"))
    record(study)
    result = make_result(study, "full", 0, 60.0)
    result["metrics"]["result"]["test"]["exact_match_by_category"] = {"sort": 25.0, "write": 0.0}
    write_result(result_path(study.results, "full", 0), result)
    text = readme_of(study)
    assert "| arm | sort |" in text and "with one right answer (`evaluation.one_answer`)" in text
    assert rows(text, "Exact match by kind of task, %")["full"] == ["25.0"]


def test_means_are_over_seeds_that_all_arms_have(study: Study) -> None:
    """Seeds that one arm alone has may be easier: they would make it seem better."""
    for seed in (4, 5):
        for arm, value in (("full", 90.0), ("other", 91.0)):
            result = make_result(study, arm, seed, value)
            result["metrics"]["result"]["test"]["exact_match_by_category"] = {"sort": value + seed}
            write_result(result_path(study.results, arm, seed), result)
    text = report(study).read_text()
    assert rows(text, "ROUGE-L on the test set")["full"][:2] == ["6", "71.00"]
    # 61.5 over seeds 0 to 3, one above for `count` and one below for `sort`
    assert rows(text, "By kind of task")["full"] == ["60.5", "62.5"]
    assert "Mean ROUGE-L over training seeds 0, 1, 2, 3." in text
    assert rows(text, "At equal cost")["full"][2] == "61.50"
    # over all that both have: (0.5 - 1 + 1 - 0.5 + 1 + 1) / 6
    assert rows(text, "At equal cost")["other"][4] == "+0.33"
    assert (
        "Means over training seeds 0, 1, 2, 3; differences over all seeds that an arm shares with `full`" in text
    )
    assert rows(text, "Exact match by kind of task, %")["full"] == ["94.5"]
    assert "mean over training seeds 4, 5. 4 of the 16 runs have it" in text
    assert "![Dev ROUGE-L while training, mean over training seeds 0, 1, 2, 3](dev.svg)" in text
    commands = text.split("```")[1].strip().splitlines()
    assert commands == [
        "# in this folder",
        "mgsr ablate study.yaml --arms full other --seeds 0 1 2 3 4 5 --record trainer.threads=1",
        "mgsr ablate study.yaml --arms removed --seeds 0 1 2 3 --record trainer.threads=1",
        "mgsr report study.yaml",
    ]


def test_without_a_seed_in_common_the_means_say_so(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    for arm, seed in (("full", 0), ("full", 1), ("removed", 2)):
        write_result(result_path(study.results, arm, seed), make_result(study, arm, seed, 60.0 + seed))
    text = readme_of(study)
    assert "Mean ROUGE-L over an arm's own training seeds, which other arms need not have." in text
    assert rows(text, "By kind of task")["full"] == ["59.5", "61.5"]


def test_a_token_takes_the_time_of_who_writes_it(tmp_path: Path) -> None:
    study = make_study(tmp_path, STUDY.replace("{scrg.passes: 3}", "{scrg.text: teacher}"))
    record(study)
    spent = {"tokens_training": 1000, "seconds_training": 10.0, "tokens_generation": 1000}
    change(study, "full", [60.0, 61.0], costs={**spent, "seconds_generation": 5.0}, spent=[1000.0, 2000.0])
    change(study, "other", [60.0, 61.0], costs={**spent, "seconds_generation": 20.0}, spent=[1000.0, 2000.0])
    text = readme_of(study)
    table = rows(text, "At equal cost")
    # seeds 0 and 1 as changed; 2 and 3 have no tokens written
    assert "5,000 s for writing by the student" in text and "20,000 s for writing by the teacher" in text
    assert (table["full"][1], table["other"][1]) == ("12.5", "20.0")


def test_arms_of_other_lengths_have_schedules_of_their_own(study: Study) -> None:
    assert "All arms have one learning rate schedule" in readme_of(study)
    for seed in range(4):
        longer = make_result(study, "other", seed, 61.0)
        longer["metrics"]["steps"] = 30
        write_result(result_path(study.results, "other", seed), longer)
    text = readme_of(study)
    assert "Arms have learning rate schedules of their own length" in text and "have one learning rate" not in text
    assert "in the same order, as far as each of them goes, by which is meant" in text


def test_looks_are_told(tmp_path: Path) -> None:
    study = make_study(tmp_path, STUDY.replace("base:", "looks: 2\nbase:"))
    record(study)
    text = readme_of(study)
    assert (
        "Open verdicts were given more seeds and judged again, 2 looks in all: every p is multiplied by 2" in text
    )
    assert "at a level of 0.05/4" in text


def test_one_short_run_is_told_in_the_singular(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    result = make_result(study, "full", 0, 60.0)
    result["metrics"] |= {"steps": 1, "costs": {"seconds_training": 0.0004, "tokens_training": 1000}}
    result["metrics"]["result"]["test"]["examples"] = 1
    result["scores"]["test"] = [60.0]
    result["curves"]["cost/seconds"]["values"] = [0.0002, 0.0004]
    write_result(result_path(study.results, "full", 0), result)
    text = readme_of(study)
    assert "1 run, training seed 0, base `demo`, 1 optimiser step, 1 test row. Commit" in text
    assert "Means over training seed 0;" in text and "training seeds 0" not in text
    assert "at the 0.0004 standard seconds" in text and "per million 0.4 s for training" in text
