from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mgsr.cli.main import main
from mgsr.runtime.errors import UserError
from mgsr.study import pool
from mgsr.study.analysis import Comparison
from mgsr.study.report.plots import Row, differences, forest
from mgsr.study.report.write import MARK, index, report
from mgsr.study.study import load_study
from mgsr.study.view import look, rouge_l
from tests.study.pooled import STUDY, fill, result_of, study_in


def written(folder: Path, effects: dict[str, float], text: str = STUDY, **options: object) -> tuple[str, str]:
    study = study_in(folder, text)
    fill(study, effects, **options)  # type: ignore[arg-type]
    path, _ = report(study)
    return path.read_text(), path.with_name("report.html").read_text()


def test_it_begins_with_the_sentence(tmp_path: Path) -> None:
    page, html = written(tmp_path, {"full": 0.0, "removed": -2.0, "other": 0.05})
    first = next(line for line in page.splitlines() if line.startswith("**"))
    assert re.match(
        r"\*\*`removed` is [12]\.\d\d ROUGE-L below `full` \(95 % interval -.*, 5 training seeds\)\. Worse\.\*\*",
        first,
    )
    assert "Does the part help?" in page and "![" in page
    # the other arms in a sentence of their own
    assert re.search(r"\*\*(Equivalent to|Open against) `full`: `other` \([+-]0\.\d\d, ", page)
    # a screen: the sentence, the plot, one table of at most eight columns
    table = next(line for line in page.splitlines() if line.startswith("| "))
    assert table.count("|") - 1 <= 8
    assert page.count("\n## ") <= 4 and len(page.split()) < 500
    assert "floor: the prompt again | 12.00" in page and "teacher | 80.00" in page and "start | 40.00" in page
    # of the kinds of task those that tell nothing
    assert "- Kinds of task of which no arm has more than 1 % right: one." in page
    # a quarter and a half of the norms
    assert (
        "share of the gradient, divergence, %" in html and "<td>38</td>" in html and "gradient, spans" not in html
    )
    assert '<td class="worse">worse</td>' in html and "<details>" in html and "<script src" not in html


def test_rows_within_the_training_lengths_stand_apart_with_their_floors(tmp_path: Path) -> None:
    _, html = written(tmp_path, {"full": 0.0})
    table = html[html.index("On 4 rows of test within the training lengths") :]
    rows = re.findall(r"<td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", table.replace("\n", ""))
    assert ("floor: the prompt again", "13.00", "1.00") in rows[:5]
    assert [name for name, *_ in rows[:6]].index("teacher") < [name for name, *_ in rows[:6]].index("full")


@pytest.mark.parametrize(
    ("effect", "spread", "said"),
    [
        (0.0, 0.05, "Equivalent: the whole interval lies within the margin."),
        (0.3, 0.05, "Better, by less than the margin."),
        (0.0, 3.0, r"Open: these seeds would detect an effect of \d+\.\d\d with probability 0.8."),
    ],
)
def test_verdicts_in_words(tmp_path: Path, effect: float, spread: float, said: str) -> None:
    page, _ = written(tmp_path, {"full": 0.0, "removed": effect}, spread=spread)
    assert re.search(said, page)
    assert ("| open, would detect " in page) == said.startswith("Open")


def test_one_seed_has_no_verdict(tmp_path: Path) -> None:
    page, _ = written(tmp_path, {"full": 0.0, "removed": -2.0}, STUDY.replace("[0, 1, 2, 3, 4]", "[0]"), seeds=[0])
    assert "(1 training seed). No spread can be told yet, and so no verdict." in page


def test_without_a_question_the_arms_are_summed_up(tmp_path: Path) -> None:
    text = STUDY.replace("asked: [removed]\n", "")
    page, _ = written(tmp_path, {"full": 0.0, "removed": -2.0, "other": 2.0}, text)
    assert re.search(r"\*\*Better than `full`: `other` \(\+2\.\d\d, .*\)\. Worse than `full`: `removed` \(-", page)


def test_where_sampled_answers_say_otherwise_it_is_told(tmp_path: Path) -> None:
    """The other way around, or what greedy answers leave open."""
    text = STUDY.replace("asked: [removed]\n", "") + "  same: {train.lr: 0.5}\n  lost: {train.lr: 0.25}\n"
    study = study_in(tmp_path, text)
    effects = {"full": 0.0, "removed": -2.0, "other": 2.0, "same": 0.0, "lost": -2.0}
    fill(study, effects, sampled={"full": 0.0, "removed": 3.0, "other": 2.0, "same": -3.0, "lost": 0.0})
    report(study)
    page = (study.home / "README.md").read_text()
    whole = "by the whole interval"
    said = f"`removed` above `full`, {whole}; `same` below `full`, {whole}; `lost` not told from `full`."
    assert f"**Sampled at temperature 1: {said}**" in page


def test_why_has_pull_answers_and_corrections(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    fill(study, {"full": 0.0, "removed": -2.0})
    for path in study.pool().iterdir():
        result = json.loads(path.read_text())
        if result["first"]["arm"] == "full":
            result["metrics"]["corrections"] = {"rouge_l_gain": -0.5, "rouge_l_raised": 0.25}
            # a curve without a finite value
            result["curves"]["grad_norm/span"] = {"steps": [], "values": []}
        path.write_text(json.dumps(result))
    page = report(study)[0].read_text()
    assert "Share of the gradient of `full`, %, mean and range of its runs: cross-entropy 62 (62 to 62)," in page
    assert (
        "Answers of `full` and `removed`: perplexity under the teacher 3.00 and 3.00; ExAccErr, % 20.0 and 20.0; "
        "distinct-2 0.500 and 0.500." in page
    )
    assert "A correction of `full` changes ROUGE-L by -0.50; 25 % raise it." in page


def test_what_is_missing_and_undeclared_is_told(tmp_path: Path) -> None:
    page, html = written(tmp_path, {"full": 0.0, "removed": -2.0}, seeds=range(6))
    assert "Without a verdict, as declared seeds are not recorded yet: other." in page
    assert "Seeds that this study does not declare are recorded too, and in no figure." in page
    assert re.search(r"<td>full</td><td></td><td>0, 1, 2, 3, 4</td><td>5</td>", html.replace("\n", ""))
    assert "Processors: Some processor (family 6, model 1)." in page


def test_what_a_seed_changes_is_told(tmp_path: Path) -> None:
    page, _ = written(tmp_path, {"full": 0.0, "removed": -2.0})
    assert "; a seed changes the student's start, the order of rows and what is drawn." in page
    # a student that is taken as it comes
    study = study_in(tmp_path / "own")
    for seed in study.seeds:
        pool.record(study.pool(), result_of(study.config("full", seed), 50.0))
    page = report(study)[0].read_text()
    assert "; a seed changes the order of rows and what is drawn." in page


def test_arms_of_other_starts_are_told(tmp_path: Path) -> None:
    said = "Not all arms began with the same starts."
    study = study_in(tmp_path)
    fill(study, {"full": 0.0, "removed": -1.0})
    # its seeds are not all there: it is in no comparison
    fill(study, {"other": 1.0}, seeds=range(3))
    assert said not in report(study)[0].read_text()
    for arm in ("full", "removed"):
        pool.record(study.pool(), result_of(study.config(arm, 4), 50.0, start="made elsewhere"))
    assert said not in report(study)[0].read_text()
    pool.record(study.pool(), result_of(study.config("full", 3), 50.0, start="made elsewhere"))
    assert said in report(study)[0].read_text()


def test_a_second_writing_changes_nothing(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    fill(study, {"full": 0.0, "removed": -2.0})
    before = {path.name: path.read_bytes() for path in report(study)[0].parent.iterdir() if path.is_file()}
    report(study)
    assert before == {path.name: path.read_bytes() for path in study.home.iterdir() if path.is_file()}


def test_what_was_written_by_hand_stays(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    fill(study, {"full": 0.0})
    (study.home / "README.md").write_text("Mine.")
    with pytest.raises(UserError, match="by hand"):
        report(study)


def test_names_of_arms_are_no_html(tmp_path: Path) -> None:
    text = STUDY.replace("other:", '"<b>":')
    _, html = written(tmp_path, {"full": 0.0, "removed": -2.0, "<b>": 0.0}, text)
    assert "<td><b></td>" not in html and "&lt;b&gt;" in html


def test_factors_are_told_by_contrasts(tmp_path: Path) -> None:
    text = (
        STUDY.replace("asked: [removed]\n", "")
        + "contrasts:\n  the part: {with: [full, other], without: [removed]}\n"
    )
    page, html = written(tmp_path, {"full": 1.0, "other": 1.0, "removed": 0.0}, text)
    assert re.search(r"\*\*the part: \+[01]\.\d\d ROUGE-L \(95 % interval", page)
    # a row of the plot, a dot per seed, and sampled answers under the fold
    assert "First, the part." in page and ">the part</text>" in html
    assert re.search(r"<td>the part</td><td>ROUGE-L, sampled</td><td>\+[01]\.\d\d</td><td>[+-]", html)
    view = look(load_study(tmp_path / "made_up"), tmp_path / "results")
    dots = differences(view, (["full", "other"], ["removed"]), rouge_l())
    table = view.frame(rouge_l()).pivot(index="block", columns="arm", values="score")
    assert dots == pytest.approx(list((table["full"] + table["other"]) / 2 - table["removed"])) and len(dots) == 5


def test_the_question_elsewhere_is_a_row_of_the_plot(tmp_path: Path) -> None:
    other = study_in(tmp_path, STUDY.replace("study: made_up", "study: far"), "far")
    fill(other, {"full": 0.0, "removed": -1.0})
    # with arms of its own: the pool is one
    unlike = STUDY.replace("  removed:", "  unlike: {train.lr: 0.5}\n  removed:")
    study_in(tmp_path, unlike.replace("baseline: full", "baseline: unlike"), "later")
    study = study_in(tmp_path, STUDY + "settings: {on other text: far/removed, elsewhere: later/unlike}\n")
    fill(study, {"full": 0.0, "removed": -2.0})
    report(study)
    svg = (study.home / "forest.svg").read_text()
    assert "on other text" in svg and "elsewhere" not in svg
    said = (
        r"\*\*On other text: `removed` is [01]\.\d\d ROUGE-L below `full` \(95 % interval -.*, 5 training seeds\)"
    )
    assert re.search(said, (study.home / "README.md").read_text())
    assert "Not complete yet in other settings: elsewhere." in (study.home / "README.md").read_text()
    # nor is a setting shown of which a declared seed is missing
    more = other.path.read_text().replace("4]", "4, 5]")
    other.path.write_text(more)
    report(study)
    assert "on other text" not in (study.home / "forest.svg").read_text()


def test_an_index_over_all_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = study_in(tmp_path, name="made up")
    fill(study, {"full": 0.0, "removed": -2.0})
    study_in(
        tmp_path,
        STUDY.replace("study: made_up", "study: empty")
        .replace("scrg.passes: 3", "scrg.passes: 4")
        .replace("full: {}", "full: {train.lr: 1.0}")
        .replace("{objective.w_span: 0.0}", "{train.lr: 2.0}"),
        "empty",
    )
    assert main(["report", str(tmp_path)]) == 0
    assert "as declared seeds are missing: empty" in capsys.readouterr().out
    page = (tmp_path / "README.md").read_text()
    assert MARK in page and "[made_up](made%20up/README.md)" in page and "ROUGE-L below `full`" in page
    assert "Not complete yet: empty." in page
    assert index(tmp_path, [study]) == []
    # without its baseline whole a study answers nothing
    for path in study.pool().glob("*-4-*.json"):
        if json.loads(path.read_text())["first"]["arm"] == "full":
            path.unlink()
    assert index(tmp_path, [study]) == ["made_up"]
    # one that was stopped before its first run is recorded
    begun = replace(study_in(tmp_path / "runs"), typed={"folder": "runs/made_up"})
    assert index(tmp_path, [begun]) == ["made_up"]


def test_a_page_without_its_baseline_is_a_page(tmp_path: Path) -> None:
    page, _ = written(tmp_path, {"removed": -2.0, "other": 0.0}, STUDY.replace("asked: [removed]\n", ""))
    assert "Nothing can be compared with `full` yet." in page


def test_an_arm_that_swings_leaves_the_others_room() -> None:
    def one(low: float, high: float, alone: bool = False) -> Comparison:
        return Comparison((low + high) / 2, low, high, 5, 5, "open", False, 1.0, alone)

    steady, swinging = Row("steady", [(one(-0.5, 0.7), [0.1])]), Row("swings", [(one(-9.0, 9.0, True), [1.0])])
    narrow = forest([steady, swinging], ["greedy"], 0.5)
    assert narrow is not None
    ticks = [float(tick.replace("\u2212", "-")) for tick in re.findall(r">([-\u2212]?\d+\.\d+)</text>", narrow)]
    assert min(ticks) > -1.2 and max(ticks) < 1.4
    # but its effect is seen
    far = forest([steady, Row("swings", [(one(-9.0, 1.0, True), [-4.0])])], ["greedy"], 0.5)
    assert far is not None
    ticks = [float(tick.replace("\u2212", "-")) for tick in re.findall(r">([-\u2212]?\d+)</text>", far)]
    assert -6 < min(ticks) <= -4
    # without others the swing is what is shown
    wide = forest([swinging], ["greedy"], 0.5)
    assert wide is not None and re.search(r">[-\u2212]?(7\.5|8|5)(\.0)?</text>", wide)
