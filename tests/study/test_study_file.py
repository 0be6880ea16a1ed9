"""A study's file: what it says, and every mistake in it by name and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mgsr.cli.main import main
from mgsr.runtime.errors import UserError
from mgsr.study.study import load_study
from tests.study.pooled import STUDY, fill, study_in

MORE = STUDY + (
    "contrasts: {part: {with: [full, other], without: [removed]}}\n"
    "settings: {real text: far/removed}\n"
    "arguments: [data.train=TRAIN.jsonl, 'data.test_sets={a: A.jsonl}']\n"
)


def test_what_a_study_says(tmp_path: Path) -> None:
    study = study_in(tmp_path, MORE)
    assert (study.name, study.question, study.baseline) == ("made_up", "Does the part help?", "full")
    assert (study.asked, study.seeds, study.margin) == (("removed",), (0, 1, 2, 3, 4), 0.5)
    assert study.contrasts == {"part": (["full", "other"], ["removed"])}
    assert study.settings == {"real text": ("far", "removed")}
    assert study.arms == {"full": {}, "removed": {"objective.w_span": 0.0}, "other": {"scrg.passes": 3}}
    # the first arm is the baseline where none is named
    few = study_in(tmp_path, "study: few\nbase: base\narms: {a: {}, b: {}}\n", "few")
    assert (few.baseline, few.asked, few.seeds, few.margin) == ("a", (), (), 0.5)


def test_runs_are_recorded_beside_the_folder_or_below_the_run_root(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    assert study.home == tmp_path / "made_up"
    assert study.pool() == study.pool("there") == tmp_path / "results"
    assert study.pool("there", record=False) == Path("there/results")


def test_printed_commands_say_what_the_base_leaves_open(tmp_path: Path) -> None:
    study_in(tmp_path, name="far")
    study = study_in(tmp_path, MORE)
    fill(study, {"full": 0.0, "removed": -2.0, "other": 0.0})
    assert main(["report", str(study.path)]) == 0
    text = (study.home / "README.md").read_text()
    words = "data.train=TRAIN.jsonl 'data.test_sets={a: A.jsonl}'"
    assert f"mgsr ablate study.yaml --seeds 0 1 2 3 4 --record trainer.threads=1 {words}\n" in text


def test_broken_files_and_hand_written_reports_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_in(tmp_path)
    fill(study, {"full": 0.0, "removed": -2.0})
    path = next(iter(sorted(study.pool().iterdir())))
    whole = path.read_text()
    for content, said in (('{"config": ', "broken JSON"), ('{"config": "c"}', "is missing")):
        path.write_text(content)
        assert main(["report", str(study.path)]) == 2
        error = capsys.readouterr().err
        assert path.name in error and said in error and error.count("\n") == 1
    path.write_text(whole)
    (study.home / "README.md").write_text("my notes")
    assert main(["report", str(study.path)]) == 2
    assert "by hand" in capsys.readouterr().err
    assert (study.home / "README.md").read_text() == "my notes"
    assert main(["report", str(study.path), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("README.md", "forest.svg", "report.html")
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("baseline: full", "baseline: ful"), "which is no arm; did you mean"),
        (("asked: [removed]", "asked: [remove]"), "`asked` names remove, which is no arm; did you mean"),
        (("asked: [removed]", "asked: removed"), "`asked` takes a list of arms"),
        *(
            (("[0, 1, 2, 3, 4]", seeds), "`seeds` takes a list of training seeds")
            for seeds in ("5", "[-1]", "[a]", "[1.5]", "{0: 1}")
        ),
        (("[0, 1, 2, 3, 4]", "[0, 1, 0]"), "`seeds` names a seed twice"),
        *(
            (("margin: 0.5", f"margin: {margin}"), "`margin` takes a difference in ROUGE-L")
            for margin in ("0", "-1", "a", "[1]", ".nan", ".inf")
        ),
        (("real text: far/removed", "real text: far"), "`settings` maps words to study/arm"),
        (("{real text: far/removed}", "[far/removed]"), "`settings` maps words to study/arm"),
        (("with: [full, other]", "with: [full, othr]"), "othr, which is no arm"),
        (("without: [removed]", "without: []"), "must name its arms"),
        (("without: [removed]", "beside: [removed]"), "must name its arms"),
        (("question: Does the part help?", "question: [a]"), "`question` takes words"),
        (("study: made_up", "study: [a]"), "`study` takes words"),
        (("study: made_up", "study: results"), "the study is called results, a folder with a meaning here"),
        (("study: made_up", "study: Cache"), "the study is called Cache"),
        (("{scrg.passes: 3}", "{scrg.pases: 3}"), "arm `other`: unknown key `scrg.pases`; did you mean"),
        (
            ("{scrg.passes: 3}", "{scrg.passes: 2026-11-27}"),
            "arm `other`: `scrg.passes` is '2026-11-27'; it takes a whole number",
        ),
        (("{scrg.passes: 3}", "{scrg.passes: !!binary aGk=}"), "the tag 'tag:yaml.org,2002:binary' is not taken"),
        (("{scrg.passes: 3}", "3"), "arm `other` must be a mapping of keys to values"),
        (("{scrg.passes: 3}", "{scrg.passes: 3, scrg.passes: 5}"), "`scrg.passes` stands twice"),
        (("arguments: [data.train=TRAIN.jsonl", "arguments: [data.train"), "takes a list of key=value"),
        (("question:", "qestion:"), "unknown key `qestion`"),
        (("question:", "on:"), "unknown key `on`"),
        (("{scrg.passes: 3}", "{seed: 3}"), "sets `seed`, which the study sets itself"),
        *(
            (("  other: {scrg", f"  {name}: {{scrg"), f"arm `{name}` has a name with a meaning")
            for name in ("teacher", "start", "floors", "layout", "metrics.json")
        ),
        (("  other: {scrg.passes: 3}", "  full: {scrg.passes: 3}"), "stands twice"),
    ],
)
def test_mistakes_in_a_study_are_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    study_in(tmp_path, MORE)
    assert change[0] in MORE
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        load_study(study_in(tmp_path, MORE.replace(*change)).path)
    assert "study.yaml" in str(refused.value)


@pytest.mark.parametrize("word", ["experiment=x", "arm=x", "seed=3"])
def test_a_study_sets_these_itself(word: str, tmp_path: Path) -> None:
    study = study_in(tmp_path)
    for configured in (lambda: study.config("full", 0, [word]), lambda: study.base_config([word])):
        with pytest.raises(UserError, match="a study sets experiment, arm and seed itself"):
            configured()


def test_two_studies_of_one_name_are_two_folders(tmp_path: Path) -> None:
    one, two = study_in(tmp_path), study_in(tmp_path / "more")
    fill(one, {"full": 0.0})
    assert main(["report", str(two.path)]) == 2
    assert main(["report", str(one.path)]) == 0
