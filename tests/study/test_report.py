"""Reports: what they say, that they repeat themselves, and what they refuse."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mgsr.cli import main
from mgsr.errors import UserError
from mgsr.report import report
from mgsr.report.answers import sentence
from mgsr.report.tables import needed_seeds
from mgsr.results import result_path, write_result
from mgsr.statistics import PairedInterval
from mgsr.studies import load_study
from mgsr.verdicts import INCONCLUSIVE, Verdict
from study.synthetic import FIGURES, STUDY, make_result, make_study, record

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
    text = report(study).read_text()
    assert text.split("\n\n")[1:4] == [
        "Does it help?",
        "**SCRG:** +10.50 ROUGE-L, averaged over what stands beside it (95 % interval +9.77 to +11.23 over 4 "
        "seeds).",
        "**Removing the part, on made-up data (test set):** it lowers ROUGE-L by 10.50 (95 % interval "
        "-11.15 to -9.85 over 4 seeds): `removed` is worse than `full`.",
    ]


def test_tables_hold_the_recorded_figures(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    record(study)
    text = report(study).read_text()
    table = rows(text, "ROUGE-L on the test set")
    assert table["full"][:3] == ["4", "61.50", "1.29"] and table["full"][-1] == "baseline"
    assert table["removed"][3:5] == ["-10.50", "-11.15 to -9.85"] and table["removed"][-1] == "worse"
    assert table["other"][-1].startswith("inconclusive (")
    # (61.5 + 61.5) / 2 - 51
    assert rows(text, "Effect of each part")["SCRG"][:2] == ["4", "+10.50"]
    costs = rows(text, "At equal cost")
    assert costs["full"] == ["2.0", "0.0", "10.0", "0.00", "12.0", "61.50", "61.50", "61.50", "–"]
    assert costs["removed"][-1] == "-10.50 (-11.15 to -9.85)"
    assert rows(text, "Text")["full"][-3:] == ["75.0", "25.0", "50.0"]
    assert rows(text, "By kind of task")["full"] == ["60.5", "62.5"]
    assert rows(text, "Evaluation noise")["removed"][0] == "-10.50"


def test_at_equal_cost_an_arm_is_read_where_the_cheapest_ended(tmp_path: Path) -> None:
    """Costs are by tokens: an arm that ran on a busy machine is none the worse, one that read more is."""
    study = make_study(tmp_path)
    record(study)
    for seed in range(4):
        for arm, costs, spent in (
            (
                "full",
                {"seconds_training": 10.0, "tokens_training": 1000},
                {"seconds": [6, 10], "tokens": [500, 1000]},
            ),
            (
                "removed",
                {"seconds_training": 40.0, "tokens_training": 1000},
                {"seconds": [22, 40], "tokens": [500, 1000]},
            ),
            (
                "other",
                {"seconds_training": 30.0, "tokens_training": 3000},
                {"seconds": [9, 30], "tokens": [900, 3000]},
            ),
        ):
            result = make_result(study, arm, seed, 61.0)
            result["metrics"]["costs"] = costs
            for unit, values in spent.items():
                result["curves"][f"cost/{unit}"]["values"] = values
            write_result(result_path(study.results, arm, seed), result)
    table = rows(report(study).read_text(), "At equal cost")
    # tokens, standard seconds at 10 ms per token, dev at the end, at equal time, at equal tokens
    assert table["full"][3:8] == ["0.00", "10.0", "61.00", "61.00", "61.00"]
    assert table["removed"][3:8] == ["0.00", "10.0", "61.00", "61.00", "61.00"]
    assert table["other"][3:8] == ["0.00", "30.0", "61.00", "56.00", "56.00"]


CLIPPING = STUDY.replace("other: {scrg.passes: 3}", "other: {clip.objective: priced}")


@pytest.mark.parametrize(("share", "said"), [(1.0, "nothing adaptive"), (0.5, "In 4 of 8 runs")])
def test_a_study_of_clipping_tells_where_the_bounds_end(tmp_path: Path, share: float, said: str) -> None:
    study = make_study(tmp_path, CLIPPING)
    record(study)
    for arm, near in (("full", 1.0), ("other", share)):
        for seed in range(4):
            result = make_result(study, arm, seed, 61.0)
            last = {"lower": 0.25, "upper": 0.9, "lower_std": 2e-3, "upper_std": 1e-5, "near_lower_max": near}
            for name, value in (last | {"near_upper_min": 1.0, "price": 1.5, "retained_mass": 0.97}).items():
                result["curves"][f"dac/{name}"] = {"steps": [0, 19], "values": [0.1, value]}
            write_result(result_path(study.results, arm, seed), result)
    text = report(study).read_text()
    assert said in next(part for part in text.split("\n\n") if part.startswith("**Is the clipping adaptive?**"))
    table = rows(text, "Learned bounds")
    assert set(table) == {"full", "other"}
    at_limits = "4 of 4" if share == 1.0 else "0 of 4"
    assert table["other"] == ["0.250", "2.0e-03", "0.900", "1.0e-05", at_limits, "1.50", "0.970"]


def test_other_studies_have_no_table_of_bounds(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    record(study)
    assert "Learned bounds" not in report(study).read_text()


@pytest.mark.parametrize(
    ("paired", "effect", "needed", "said"),
    [(2, 0.5, 40, ""), (5, 0.5, 40, "40"), (8, 3.0, 4, "9"), (5, 0.001, None, "over 1,000"), (5, None, None, "")],
)
def test_seeds_that_would_settle_it(paired: int, effect: float | None, needed: int | None, said: str) -> None:
    """Two seeds are too few to go by, and as many as there are have not been enough."""
    seeds = tuple(range(paired))
    interval = PairedInterval(0.1, -1.0, 1.2, 0.5)
    verdict = Verdict("arm", 1.0, 1.0, seeds, seeds, interval, 0.5, effect, INCONCLUSIVE, needed)
    assert needed_seeds(verdict) == said
    words = sentence(verdict, "full")
    assert (f"{said} seeds" in words) if said else ("would take" not in words)


def test_runs_that_another_study_counts_too_are_named(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    record(study)
    other = tmp_path / "another" / "study.yaml"
    other.parent.mkdir()
    other.write_text(STUDY)
    shutil.copytree(study.results / "full", other.parent / "results" / "full")
    assert "Runs that other studies count too: `full` (another)." in report(study).read_text()


def test_the_test_set_comes_first_and_replay_is_named(tmp_path: Path) -> None:
    study = make_study(tmp_path, STUDY.replace("scrg.passes: 3", "mixture.replay: 'on'"))
    record(study)
    for arm in FIGURES:
        for seed in range(4):
            result = make_result(study, arm, seed, 60.0)
            sets = result["metrics"]["result"]
            result["metrics"]["result"] = {"another": sets["test"], "test": sets["test"]}
            result["scores"]["another"] = result["scores"]["test"]
            write_result(result_path(study.results, arm, seed), result)
    text = report(study).read_text()
    assert text.index("ROUGE-L on the test set") < text.index("ROUGE-L on another")
    assert "; `other` draws from a buffer of older text." in text


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
    text = report(study).read_text()
    table = rows(text, "ROUGE-L on the test set")
    assert table["other"] == ["0", *["not yet run"] * 7]
    assert table["removed"][-1] == "too few seeds"
    assert "Missing: removed: seed 1; other: not yet run." in text
    assert "too few to say anything" in text
    assert set(rows(text, "Text")["other"]) == {"not yet run"}


def test_what_can_not_be_compared_is_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    with pytest.raises(UserError, match="no results of sample"):
        report(study)
    record(study)
    for what in ("code", "data", "base"):
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
    assert "seed=0.json" in error and error.count("\n") == 1
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
        (("question:", "qestion:"), "unknown key `qestion`"),
        (("question:", "on:"), "unknown key `True`"),
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


@pytest.mark.parametrize("folder", RECORDED, ids=lambda path: path.name)
def test_committed_reports_say_what_the_committed_results_say(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    study = load_study(Path("experiments") / folder.name / "study.yaml")
    report(study, out=tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    # a plot that is no longer drawn must not stay behind either
    committed = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".md", ".svg", ".html")}
    assert sorted(written) == sorted(committed)
    odd = [name for name in written if written[name] != committed[name]]
    assert odd == [], f"write them again: mgsr report {study.path}"
