"""Reports: what they say, that they repeat themselves, and what they refuse."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mgsr.cli.main import main
from mgsr.runtime.errors import ConfigError, UserError
from mgsr.study.report.write_report import report
from mgsr.study.results import write_result
from mgsr.study.study import load_study, result_path
from tests.study.synthetic import STUDY, make_result, make_study, readme_of, record

ROOT = Path(__file__).parents[2]


def rows(readme: str, title: str) -> dict[str, list[str]]:
    """Cells of a section's table by its first column."""
    section = readme.split(f"## {title}\n")[1].split("\n## ", maxsplit=1)[0]
    cells = [
        [c.strip() for c in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")
    ]
    return {row[0]: row[1:] for row in cells[2:]}


def test_the_first_lines_answer_in_words(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    record(study)
    text = readme_of(study)
    assert text.split("\n\n")[1:4] == [
        "Does it help?",
        "**SCRG:** +10.50 ROUGE-L, averaged over what stands beside it (95 % interval +9.77 to +11.23 over 4 "
        "seeds): better.",
        "**Removing the part, on made-up data (test set):** it lowers ROUGE-L by 10.50 (95 % interval "
        "-11.15 to -9.85 over 4 seeds): `removed` is worse than `full`.",
    ]


def test_tables_hold_the_recorded_figures(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    record(study)
    text = readme_of(study)
    table = rows(text, "ROUGE-L on the test set")
    assert table["full"][:3] == ["4", "61.50", "1.29"] and table["full"][-1] == "baseline"
    assert table["removed"][3:5] == ["-10.50", "-11.15 to -9.85"] and table["removed"][-1] == "worse"
    assert table["other"][-1].startswith("inconclusive (")
    # (61.5 + 61.5) / 2 - 51
    assert rows(text, "Effect of each part")["SCRG"][:2] == ["4", "+10.50"]
    cost = rows(text, "At equal cost")["full"]
    spent = ["0", "0", "0.001", "2.0", "0.0", "10.0"]
    assert cost == ["0.001", "10.0", "61.50", "61.50", "–", "–", "61.50", "–", "–", *spent]
    assert rows(text, "Text")["full"][-3:] == ["75.0", "25.0", "50.0"]
    assert rows(text, "Text")["(ground truth)"][:3] == ["–", "0.200", "–"]
    assert "Exact match was not counted by kind of task in these runs." in text
    assert rows(text, "By kind of task")["full"] == ["60.5", "62.5"]
    assert rows(text, "Evaluation noise")["removed"][0] == "-10.50"


def test_printed_commands_say_what_the_base_leaves_open(tmp_path: Path) -> None:
    given = "arguments: [data.train=TRAIN.jsonl, 'data.test_sets={a: A.jsonl}']"
    study = make_study(tmp_path, STUDY.replace("base:", f"{given}\nbase:"))
    record(study)
    text = readme_of(study)
    said = r"mgsr ablate .* --record.* data\.train=TRAIN\.jsonl 'data\.test_sets=\{a: A\.jsonl\}'\n"
    assert re.search(said, text)


def test_the_first_lines_say_how_much_another_study_rests_on(tmp_path: Path) -> None:
    other = make_study(tmp_path / "away")
    study = make_study(
        tmp_path,
        STUDY.replace(
            "where: made-up data",
            f"where: made-up data, elsewhere: {{study: {other.path}, arm: removed, sets: {{real text: test}}}}",
        ),
    )
    record(study)
    record(other, {"full": [60.0, 61.0], "removed": [60.5, 61.0]})
    text = readme_of(study)
    assert "**Removing the part, on real text (4 rows, 20 optimiser steps):** inconclusive" in text
    for seed in range(2):
        longer = make_result(other, "removed", seed, 60.0 + seed)
        longer["metrics"]["steps"] = 31
        write_result(result_path(other.results, "removed", seed), longer)
    assert "on real text (4 rows, 20 optimiser steps, 31 without it):** inconclusive" in readme_of(study)
    assert "20 to 31 optimiser steps, 4 test rows" in readme_of(other)
    study.path.write_text(study.path.read_text().replace("{real text: test}", "{real text: tset}"))
    with pytest.raises(ConfigError, match=r"`answer\.elsewhere\.sets` names tset, but .* has results of test"):
        report(load_study(study.path))


def test_the_first_lines_tell_of_several_other_studies(tmp_path: Path) -> None:
    others = [make_study(tmp_path / name) for name in ("a", "b")]
    named = ", ".join(
        f"{{study: {other.path}, arm: removed, sets: {{the {i}. data: test}}}}" for i, other in enumerate(others)
    )
    study = make_study(
        tmp_path, STUDY.replace("where: made-up data", f"where: made-up data, elsewhere: [{named}]")
    )
    record(study)
    record(others[0])
    text = readme_of(study)
    assert "**Removing the part, on the 0. data (4 rows, 20 optimiser steps):** it lowers ROUGE-L by 10.50" in text
    assert "**Removing the part, on the 1. data:** not yet run." in text


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    record(study)
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        report(study, out=place)
    names = sorted(path.name for path in places[0].iterdir())
    assert names == ["README.md", "dev.svg", "differences.svg", "loss.svg", "report.html"]
    for name in names:
        assert (places[0] / name).read_bytes() == (places[1] / name).read_bytes(), name


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.ids: list[str] = []
        self.headers = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.headers += tag == "th"
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href") and not str(value).startswith("#"):
                self.outside.append(str(value))


def test_the_page_stands_alone_and_escapes_what_it_is_given(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    record(study)
    report(study)
    html = (study.path.parent / "report.html").read_text()
    page = _Page()
    page.feed(html)
    assert page.outside == [] and page.headers > 20
    assert len(page.ids) == len(set(page.ids))
    assert "<b>sort</b>" not in html and "&lt;b&gt;sort&lt;/b&gt;" in html
    used = set(re.findall(r"url\(#([^)]+)\)", html)) | set(re.findall(r'href="#([^"]+)"', html))
    assert used <= set(page.ids)


def test_missing_runs_are_said_to_be_missing(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    record(study, {"full": [60.0, 61.0], "removed": [50.0]})
    text = readme_of(study)
    table = rows(text, "ROUGE-L on the test set")
    assert table["other"] == ["0", *["not yet run"] * 7]
    assert table["removed"][-1] == "too few seeds"
    assert "Missing: removed: seed 1; other: not yet run." in text
    write_result(result_path(study.results, "other", 0), make_result(study, "other", 0, 60.0))
    assert "Missing: removed, other: seed 1." in readme_of(study)
    assert "too few to say anything" in text
    assert set(rows(text, "Text")["other"]) == {"not yet run"}


def test_what_can_not_be_compared_is_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    with pytest.raises(UserError, match="no results of sample"):
        report(study)
    record(study)
    for what in ("data", "base"):
        odd = make_result(study, "other", 0, 60.0)
        odd["hashes"][what] = "different"
        write_result(result_path(study.results, "other", 0), odd)
        with pytest.raises(UserError, match=f"different {what}"):
            report(study)
    odd = make_result(study, "other", 1, 60.0)
    write_result(result_path(study.results, "other", 0), odd)
    with pytest.raises(UserError, match="holds other, seed 1"):
        report(study)
    record(study)
    changed = make_study(tmp_path, STUDY.replace("scrg.passes: 3", "scrg.passes: 5"))
    with pytest.raises(UserError, match="other overrides"):
        report(changed)


def test_broken_files_and_hand_written_reports_are_refused_in_one_line(tmp_path: Path, capsys) -> None:
    study = make_study(tmp_path)
    record(study)
    result_path(study.results, "full", 0).write_text('{"study": ')
    assert main(["report", str(study.path)]) == 2
    error = capsys.readouterr().err
    assert result_path(study.results, "full", 0).name in error and error.count("\n") == 1
    result_path(study.results, "full", 0).write_text('{"study": "sample"}')
    assert main(["report", str(study.path)]) == 2
    assert "lacks arm" in capsys.readouterr().err
    record(study)
    (study.path.parent / "README.md").write_text("my notes")
    assert main(["report", str(study.path)]) == 2
    assert "by hand" in capsys.readouterr().err
    assert (study.path.parent / "README.md").read_text() == "my notes"
    assert main(["report", str(study.path), "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("baseline: full", "baseline: ful"), "which is no arm; did you mean"),
        (("with: [full, other]", "with: [full, othr]"), "othr, which is no arm"),
        (("arm: removed, where", "arm: gone, where"), "gone, which is no arm"),
        (("part: the part, ", ""), "takes part, arm, where"),
        (
            ("made-up data}", "made-up data, elsewhere: [{study: a, arm: b}]}"),
            "takes study, arm and sets, or a list",
        ),
        (("made-up data}", "made-up data, elsewhere: a}"), "takes study, arm and sets, or a list"),
        (
            ("made-up data}", "made-up data, elsewhere: {study: [3], arm: b, sets: {}}}"),
            "takes study, arm and sets, or a list",
        ),
        *(
            (("base:", f"looks: {looks}\nbase:"), "`looks` takes a number of looks")
            for looks in ("0", "true", "9" * 400, "[1]")
        ),
        (("question: Does it help?", "question: [a]"), "`question` takes words, not a list"),
        (("study: sample", "study: [a]"), "`study` takes words, not a list"),
        (("{scrg.passes: 3}", "{scrg.pases: 3}"), "arm `other`: unknown key `scrg.pases`; did you mean"),
        (
            ("{scrg.passes: 3}", "{scrg.passes: 2026-11-27}"),
            "arm `other`: `scrg.passes` is '2026-11-27'; it takes a whole number",
        ),
        (("{scrg.passes: 3}", "{scrg.passes: !!binary aGk=}"), "the tag 'tag:yaml.org,2002:binary' is not taken"),
        (
            ("made-up data}", "made-up data, elsewhere: {study: a, arm: [b], sets: {}}}"),
            "takes study, arm and sets, or a list",
        ),
        (("base:", "arguments: data.train=a\nbase:"), "`arguments` takes a list of key=value"),
        (("base:", "arguments: [data.train]\nbase:"), "`arguments` takes a list of key=value"),
        (("{scrg.passes: 3}", "{scrg.passes: 3, scrg.passes: 5}"), "`scrg.passes` stands twice"),
        (("question:", "qestion:"), "unknown key `qestion`"),
        (("question:", "on:"), "unknown key `on`"),
        (("{scrg.passes: 3}", "{seed: 3}"), "sets `seed`, which the study sets itself"),
        (("  other: {scrg", "  teacher: {scrg"), "arm `teacher` has a name with a meaning"),
        (("without: [removed]", "without: []"), "must name its arms"),
        (("  other: {scrg.passes: 3}", "  full: {scrg.passes: 3}"), "stands twice"),
    ],
)
def test_mistakes_in_a_study_are_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make_study(tmp_path, STUDY.replace(*change))


RECORDED = sorted(path.parent for path in (ROOT / "experiments").glob("*/results"))


@pytest.mark.parametrize(
    "folder",
    [pytest.param(path, id=path.name, marks=() if path.name == "grid" else pytest.mark.long) for path in RECORDED],
)
def test_committed_reports_say_what_the_committed_results_say(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # from any folder
    monkeypatch.chdir(tmp_path)
    study = load_study(folder.name)
    report(study, out=tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    # a plot that is no longer drawn must not stay behind either
    committed = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".md", ".svg", ".html")}
    assert sorted(written) == sorted(committed)
    odd = [name for name in written if written[name] != committed[name]]
    assert odd == [], f"write them again: mgsr report {study.path}"
