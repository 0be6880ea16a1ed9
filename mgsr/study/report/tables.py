"""The tables of a report, as rows of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mgsr.evaluation.floors import NAMES as FLOORS
from mgsr.study.analysis import Comparison
from mgsr.study.report.words import interval, shown, signed
from mgsr.study.view import TERMS, View, right, rouge_l

BEGUN = {"sft_start": "start", "teacher": "teacher"}
FLOOR = "floor: "
TERA = 1e12


@dataclass(frozen=True)
class Table:
    """`verdicts`: the column of verdicts, which a page colours; `note`: what a reader must know beside it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    verdicts: int | None = None
    note: str = ""


def main_table(view: View, test_set: str, compared: Mapping[str, Comparison]) -> Table:
    """Floors, what runs begin with, and every arm: at most eight columns."""
    header = [
        "",
        "ROUGE-L",
        "difference",
        "95 % interval",
        "verdict",
        "ROUGE-L, sampled (interval of its difference)",
        "right, %" if f"result/{test_set}/accuracy" in view.figures else "exact, %",
        "TFLOPs",
    ]
    rows = []
    beside = view.compared(rouge_l(test_set, sampled=True))
    for name, (arm, place) in rows_of(view, test_set).items():
        difference, sampled, flops = ["", "", ""], shown(view.mean(arm, f"{place}/sampled/rouge_l")), ""
        if name in view.arms:
            # 10^12 FLOPs of a run, of both models, writing and scoring included, looks at the dev set aside
            flops = shown(view.mean(arm, "costs/flops"), 2, scale=TERA)
            difference[2] = "baseline" if arm == view.study.baseline else ""
            if (one := compared.get(arm)) is not None:
                difference = [signed(one.effect), interval(one), _verdict(one)]
            if arm in beside and (said := interval(beside[arm])):
                sampled += f" ({said})"
        greedy, share = view.mean(arm, f"{place}/rouge_l"), view.mean(arm, f"{place}/right")
        rows.append([name, shown(greedy), *difference, sampled, shown(share, 1), flops])
    return Table(f"On {test_set}", header, rows, verdicts=4, note=_starts(view))


def rows_of(view: View, test_set: str) -> dict[str, tuple[str, str]]:
    """What a table has in its rows: label -> the arm whose runs tell it, and where in `metrics.json` it stands.

    Floors, start and teacher are those of the baseline's runs, or else of the first arm's.
    """
    base = view.study.baseline if view.study.baseline in view.arms else view.arms[0]
    places = {f"{FLOOR}{FLOORS[name]}": f"floors/{test_set}/{name}" for name in sorted(FLOORS)}
    places |= {word: f"{name}/{test_set}" for name, word in BEGUN.items()}
    there = {label: (base, p) for label, p in places.items() if view.mean(base, f"{p}/rouge_l") is not None}
    return there | {arm: (arm, f"result/{test_set}") for arm in view.arms}


def _starts(view: View) -> str:
    """Why differences are not those of the means, where that is so."""
    if len({frozenset(run.block for run in view.of(arm)) for arm in view.arms if arm not in view.absent}) <= 1:
        return ""
    return (
        "Not all arms began with the same starts. Means are over an arm's own runs. "
        "Differences are within a start, and so not those of the means."
    )


def _verdict(one: Comparison) -> str:
    verdict = f"{one.verdict}, by less than the margin" if one.small else one.verdict
    if one.verdict == "open":
        verdict = f"open, would detect {one.detectable:.2f}"
    return f"{verdict}, analysed alone" if one.alone else verdict


GAIN, RAISED = "ROUGE-L that a correction gains", "share of corrections that raise ROUGE-L"
WHY: dict[str, tuple[str, int]] = {
    **{f"share of the gradient, {word}, %": (f"share/{term}", 0) for term, word in TERMS.items()},
    "ExAccErr at the end, %": ("exposure/ex_acc_err_at_end", 1),
    "perplexity of answers under the teacher": ("exposure/teacher_perplexity", 2),
    "distinct-2 of greedy answers": ("result/test/distinct_2", 3),
    GAIN: ("corrections/rouge_l_gain", 2),
    RAISED: ("corrections/rouge_l_raised", 2),
    "factor of the divergence": ("divergence_factor", 3),
}
"""What may explain a difference: words -> its place in `metrics.json`, and digits."""


def why_table(view: View) -> Table:
    """Means of every arm."""
    known = {word: found for word, found in WHY.items() if view.known(found[0])}
    rows = [[arm, *(shown(view.mean(arm, name), digits) for name, digits in known.values())] for arm in view.arms]
    return Table("What may explain it", ["", *known], rows)


def other_measures(view: View, test_set: str) -> Table:
    """Differences of the measures without a verdict, with their simultaneous intervals."""
    measures = {
        "ROUGE-L, sampled": rouge_l(test_set, sampled=True),
        "right, %": right(test_set),
        "right, sampled, %": right(test_set, sampled=True),
    }
    rows = [
        [arm, words, signed(one.effect), interval(one)]
        for words, name in measures.items()
        for arm, one in {**view.compared(name), **(view.contrasted(name) if test_set == "test" else {})}.items()
    ]
    return Table(f"Other measures on {test_set}", ["", "measure", "difference", "95 % interval"], rows)


def within_table(view: View, test_set: str) -> Table:
    """Greedy answers to rows that are no longer than what training reads, where there are others."""
    names = {"ROUGE-L": "rouge_l", "right, %": "accuracy", "exact, %": "exact_match"}
    known = {words: name for words, name in names.items() if view.known(f"result/{test_set}/within/{name}")}
    rows = [
        [label, *(shown(view.mean(arm, f"{place}/within/{name}")) for name in known.values())]
        for label, (arm, place) in rows_of(view, test_set).items()
        if view.mean(arm, f"{place}/within/rouge_l") is not None
    ]
    count = shown(view.mean(view.arms[0], f"result/{test_set}/within/examples"), 0)
    title = f"On {count} rows of {test_set} within the training lengths"
    return Table(title, ["", *known], rows if known else [])


def kinds_of(view: View, test_set: str, name: str) -> dict[str, str]:
    """Kinds of task of a test set that a measure is known of -> where it stands."""
    place = f"result/{test_set}/{name}_by_category/"
    return {column.removeprefix(place): column for column in view.figures if column.startswith(place)}


def never_right(view: View, test_set: str) -> list[str]:
    """Kinds of task of which no arm has more than one answer in a hundred right."""
    kinds = kinds_of(view, test_set, "accuracy")
    return [kind for kind, name in kinds.items() if all((view.mean(arm, name) or 0.0) <= 1.0 for arm in view.arms)]


def kinds_table(view: View, test_set: str, name: str) -> Table:
    """A measure by kind of task, greedily; `name`: rouge_l or accuracy."""
    kinds = kinds_of(view, test_set, name)
    rows = [[arm, *(shown(view.mean(arm, place), 1) for place in kinds.values())] for arm in view.arms]
    title = {"rouge_l": "ROUGE-L", "accuracy": "Right answers, %,"}[name]
    return Table(f"{title} by kind of task on {test_set}", ["", *kinds], rows if len(kinds) > 1 else [])


def arms_table(view: View) -> Table:
    """What every arm overrides, and its seeds."""
    rows = [
        [
            arm,
            " ".join(f"{key}={value}" for key, value in view.study.arms[arm].items()),
            ", ".join(str(run.seed) for run in view.of(arm)),
            ", ".join(map(str, view.undeclared.get(arm, ()))),
        ]
        for arm in view.arms
    ]
    return Table("Arms", ["", "overrides", "training seeds", "not declared, in no figure"], rows)


def all_tables(view: View) -> list[Table]:
    """What stands under the fold."""
    found = [why_table(view)]
    for name in view.test_sets:
        found += [
            other_measures(view, name),
            within_table(view, name),
            kinds_table(view, name, "accuracy"),
            kinds_table(view, name, "rouge_l"),
        ]
    return [table for table in [*found, arms_table(view)] if table.rows]
