"""The tables of a report, as rows of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mgsr.evaluation.floors import NAMES as FLOORS
from mgsr.study.analysis import Comparison
from mgsr.study.report.words import interval, shown, signed
from mgsr.study.view import Reader, Result, Run, View, figure, right, rouge_l

BEGUN = {"sft_start": "start", "teacher": "teacher"}


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
    checked = any("accuracy" in run.result["metrics"]["result"].get(test_set, {}) for run in view.runs)
    header = [
        "",
        "ROUGE-L",
        "difference",
        "95 % interval",
        "verdict",
        "ROUGE-L, sampled (interval of its difference)",
        "right, %" if checked else "exact, %",
        "TFLOPs",
    ]
    rows = [
        [name, shown(value.get("rouge_l")), "", "", "", *_sampled(value), _right(value), ""]
        for name, value in {**_floors(view, test_set), **begun(view, test_set)}.items()
    ]
    sampled = view.compared(rouge_l(test_set, sampled=True))
    for arm in view.arms:
        one = compared.get(arm)
        beside = f" ({interval(sampled[arm])})" if arm in sampled and interval(sampled[arm]) else ""
        difference = ["", "", "baseline" if arm == view.study.baseline else ""]
        if one is not None:
            difference = [signed(one.effect), interval(one), _verdict(one)]
        rows.append(
            [
                arm,
                shown(view.mean(arm, rouge_l(test_set))),
                *difference,
                shown(view.mean(arm, rouge_l(test_set, sampled=True))) + beside,
                shown(view.mean(arm, right(test_set)), 1),
                shown(view.mean(arm, tera_flops), 2),
            ]
        )
    return Table(f"On {test_set}", header, rows, verdicts=4, note=_starts(view))


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


FLOOR = "floor: "


def _floors(view: View, test_set: str) -> dict[str, Mapping[str, Any]]:
    """Figures of the floors, those of the first run."""
    floors = (_begins(view)[0].result["metrics"].get("floors") or {}).get(test_set, {})
    return {f"{FLOOR}{FLOORS[name]}": value for name, value in floors.items()}


def floors_of(view: View, test_set: str) -> dict[str, float | None]:
    """Greedy ROUGE-L of the floors, by their words."""
    return {name.removeprefix(FLOOR): value.get("rouge_l") for name, value in _floors(view, test_set).items()}


def begun(view: View, test_set: str) -> dict[str, Mapping[str, Any]]:
    """Mean figures of the start and of the teacher."""
    found: dict[str, Mapping[str, Any]] = {}
    for name, word in BEGUN.items():
        tests = [t for run in _begins(view) if (t := (run.result["metrics"].get(name) or {}).get(test_set))]
        if tests:
            found[word] = _means(tests)
    return found


def _begins(view: View) -> list[Run]:
    """Runs that tell what runs begin with: those of the baseline."""
    return view.of(view.study.baseline) or list(view.runs)


def _means(tests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = ("rouge_l", "accuracy", "exact_match")
    found: dict[str, Any] = {n: sum(t[n] for t in tests) / len(tests) for n in names if all(n in t for t in tests)}
    parts = {part: [test[part] for test in tests if test.get(part)] for part in ("sampled", "within")}
    return {**found, **{part: _means(some) for part, some in parts.items() if some}}


def _sampled(value: Mapping[str, Any]) -> list[str]:
    return [shown((value.get("sampled") or {}).get("rouge_l"))]


def _right(value: Mapping[str, Any]) -> str:
    return shown(value.get("accuracy", value.get("exact_match")), 1)


def tera_flops(result: Mapping[str, Any]) -> float | None:
    """10^12 FLOPs of a run, of both models, writing and scoring included, looks at the dev set aside."""
    flops = figure("costs", "flops")(result)
    return None if flops is None else flops / 1e12


TERMS = {"sft": "cross-entropy", "dac_kl": "divergence", "span": "spans"}
"""As curves name them, and in words."""


def share(term: str) -> Reader:
    """Per cent of the norms of all terms' gradients that a term has, mean over the steps that were measured."""

    def read(result: Result) -> float | None:
        curves = {name: result["curves"].get(f"grad_norm/{name}", {}).get("values") for name in TERMS}
        if not curves[term]:
            return None
        steps = zip(*(values for values in curves.values() if values), strict=False)
        found = [own / sum(each) for own, each in zip(curves[term], steps, strict=False) if sum(each) > 0]
        return 100.0 * sum(found) / len(found) if found else None

    return read


GAIN, RAISED = "ROUGE-L that a correction gains", "share of corrections that raise ROUGE-L"
WHY: dict[str, tuple[Reader, int]] = {
    **{f"share of the gradient, {word}, %": (share(term), 0) for term, word in TERMS.items()},
    "ExAccErr at the end, %": (figure("exposure", "ex_acc_err_at_end"), 1),
    "perplexity of answers under the teacher": (figure("exposure", "teacher_perplexity"), 2),
    "distinct-2 of greedy answers": (figure("result", "test", "distinct_2"), 3),
    GAIN: (figure("corrections", "rouge_l_gain"), 2),
    RAISED: (figure("corrections", "rouge_l_raised"), 2),
    "factor of the divergence": (figure("divergence_factor"), 3),
}
"""What may explain a difference."""


def why_table(view: View) -> Table:
    """Means of every arm."""
    known = {
        name: (read, digits)
        for name, (read, digits) in WHY.items()
        if any(view.mean(arm, read) is not None for arm in view.arms)
    }
    rows = [[arm, *(shown(view.mean(arm, read), digits) for read, digits in known.values())] for arm in view.arms]
    return Table("What may explain it", ["", *known], rows)


def other_measures(view: View, test_set: str) -> Table:
    """Differences of the measures without a verdict, with their simultaneous intervals."""
    measures = {
        "ROUGE-L, sampled": rouge_l(test_set, sampled=True),
        "right, %": right(test_set),
        "right, sampled, %": right(test_set, sampled=True),
    }
    rows = []
    for name, read in measures.items():
        for arm, one in view.compared(read).items():
            rows.append([arm, name, signed(one.effect), interval(one)])
    return Table(f"Other measures on {test_set}", ["", "measure", "difference", "95 % interval"], rows)


def within_table(view: View, test_set: str) -> Table:
    """Greedy answers to rows that are no longer than what training reads, where there are others."""
    names = {"ROUGE-L": "rouge_l", "right, %": "accuracy", "exact, %": "exact_match"}
    known = {
        title: name
        for title, name in names.items()
        if view.mean(view.arms[0], figure("result", test_set, "within", name)) is not None
    }
    without = {**_floors(view, test_set), **begun(view, test_set)}
    values = {word: value["within"] for word, value in without.items() if value.get("within")}
    rows = [[word, *(shown(value.get(name)) for name in known.values())] for word, value in values.items()]
    reads = [figure("result", test_set, "within", name) for name in known.values()]
    rows += [[arm, *(shown(view.mean(arm, read)) for read in reads)] for arm in view.arms if known]
    count = figure("result", test_set, "within", "examples")(view.runs[0].result)
    title = f"On {shown(count, 0)} rows of {test_set} within the training lengths"
    return Table(title, ["", *known], rows if known else [])


def kinds_of(view: View, test_set: str, name: str) -> list[str]:
    """Kinds of task of a test set that the measure is known of."""
    each = (run.result["metrics"]["result"].get(test_set, {}).get(f"{name}_by_category", {}) for run in view.runs)
    return list(dict.fromkeys(kind for kinds in each for kind in kinds))


def never_right(view: View, test_set: str) -> list[str]:
    """Kinds of task of which no arm has more than one answer in a hundred right."""
    read = {
        kind: figure("result", test_set, "accuracy_by_category", kind)
        for kind in kinds_of(view, test_set, "accuracy")
    }
    return [kind for kind, one in read.items() if all((view.mean(arm, one) or 0.0) <= 1.0 for arm in view.arms)]


def kinds_table(view: View, test_set: str, name: str) -> Table:
    """A measure by kind of task, greedily; `name`: rouge_l or accuracy."""
    kinds = kinds_of(view, test_set, name)
    rows = [
        [
            arm,
            *(shown(view.mean(arm, figure("result", test_set, f"{name}_by_category", kind)), 1) for kind in kinds),
        ]
        for arm in view.arms
    ]
    title = {"rouge_l": "ROUGE-L", "accuracy": "Right answers, %,"}[name]
    return Table(f"{title} by kind of task on {test_set}", ["", *kinds], rows if len(kinds) > 1 else [])


def arms_table(view: View) -> Table:
    """What every arm overrides, and its seeds."""
    rows = [
        [arm, " ".join(f"{key}={value}" for key, value in view.study.arms[arm].items()), _seeds(view, arm)]
        for arm in view.arms
    ]
    rows = [[*row, ", ".join(map(str, view.undeclared.get(row[0], ())))] for row in rows]
    return Table("Arms", ["", "overrides", "training seeds", "not declared, in no figure"], rows)


def _seeds(view: View, arm: str) -> str:
    return ", ".join(str(run.seed) for run in view.of(arm))


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
