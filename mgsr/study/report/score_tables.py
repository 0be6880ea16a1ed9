"""The tables of a report: a header, rows of cells, and a sentence on how to read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from mgsr.data.rows import ALL
from mgsr.evaluation.statistics import PairedInterval
from mgsr.runtime.wording import plural
from mgsr.study.report.cost_tables import cost_table
from mgsr.study.report.evidence import Evidence, Result, set_in_words
from mgsr.study.report.learned_bounds import bounds_table, varies_clipping
from mgsr.study.report.shared_runs import footnote, marked, shared_runs
from mgsr.study.report.table import MISSING, NONE, Table, number
from mgsr.study.report.text_table import column, text_table
from mgsr.study.verdicts import ALPHA, BASELINE, INCONCLUSIVE, NOT_RUN, Verdict, bootstrap_interval


def verdict_table(evidence: Evidence, test_set: str) -> Table:
    found = evidence.verdicts(test_set)
    shared = shared_runs(evidence)
    rows = [(marked(v.arm, shared), *_verdict_cells(v)) for v in found]
    text = (
        f"Mean and standard deviation over an arm's own training seeds, which other arms need not all have; each run's "
        f"figure is the mean over its sampling seeds. "
        f"Difference to `{evidence.study.baseline}`, paired by seed, with its 95 % t interval; d is the mean "
        f"difference over its standard deviation. {_adjusted(found, len(evidence.test_sets))} {footnote(evidence, shared)}"
    ).strip()
    header = ("arm", "seeds", "ROUGE-L", "std", "difference", "95 % interval", "p", "d", "verdict")
    return Table(f"ROUGE-L on {set_in_words(test_set)}", text, header, tuple(rows))


def _adjusted(found: Sequence[Verdict], sets: int) -> str:
    """What p and the verdict rest on, in words."""
    compared, planned = [v for v in found if v.difference is not None], sets * (len(found) - 1)
    if not compared:
        return "No arm has two seeds to compare yet."
    comparisons, looks, level = compared[0].comparisons, compared[0].looks, compared[0].level
    where = "on this test set" if sets == 1 else f"on its {sets} test sets"
    of = f"the {plural(comparisons, 'comparison')} made so far {where}, of {planned} that the study plans"
    if comparisons == planned:
        of = f"all {plural(planned, 'comparison')} of the study {where}"
    looked = (
        f"Open verdicts were given more seeds and judged again, {looks} looks in all: every p is multiplied by {looks} "
        "(Bonferroni), and then adjusted"
        if looks > 1
        else "p is adjusted"
    )
    return (
        f"{looked} by Holm over {of}; the adjustment grows as arms are added. The verdict is p < {ALPHA}; behind "
        "an inconclusive one, from three seeds on, the seeds at which an effect of this size would be found with a "
        f"power of 0.8 at a level of {level}."
    )


def _verdict_cells(v: Verdict) -> tuple[str, ...]:
    if v.verdict == NOT_RUN:
        return ("0", *([MISSING] * 7))
    seeds = str(len(v.seeds)) if v.paired == v.seeds else f"{len(v.seeds)}, {len(v.paired)} of them paired"
    head = (seeds, number(v.mean), number(v.std))
    if v.difference is None:
        return (*head, NONE, NONE, NONE, NONE, v.verdict)
    return (*head, *_comparison_cells(v, v.difference))


def _comparison_cells(v: Verdict, d: PairedInterval) -> tuple[str, ...]:
    judged = v.verdict
    if v.verdict == INCONCLUSIVE:
        if d.low == d.high == 0.0:
            judged += " (the same figures)"
        else:
            judged += f" ({v.needed_in_words})" if v.needed_in_words else ""
    interval = f"{number(d.low, sign=True)} to {number(d.high, sign=True)}"
    p = "< 0.001" if v.p is not None and v.p < 0.001 else number(v.p, 3)
    return (number(d.mean, sign=True), interval, p, number(v.effect, 1, sign=True), judged)


def contrast_table(evidence: Evidence) -> Table:
    found = evidence.contrasts()
    rows = [
        (
            v.arm,
            str(len(v.seeds)),
            *([MISSING] * 5 if v.difference is None else _comparison_cells(v, v.difference)),
        )
        for v in found
    ]
    tested = sum(v.difference is not None for v in found)
    text = (
        "Mean of the arms with the part minus mean of those without it, per training seed: its effect averaged over "
        f"what stands beside it, with its 95 % t interval. p is adjusted by Holm over {plural(tested, 'part')}; d and "
        "the verdict are as above."
    )
    header = ("part", "seeds", "effect on ROUGE-L", "95 % interval", "p", "d", "verdict")
    return Table("Effect of each part", text, header, tuple(rows))


def category_table(evidence: Evidence, test_set: str = "test") -> Table:
    return _by_kind(evidence, test_set, "rouge_l_by_category", f"By kind of task{_of(test_set)}", "Mean ROUGE-L")


def match_table(evidence: Evidence, test_set: str = "test") -> Table:
    """Exact match of the kinds of task whose rows have one reference; no columns where no run counted them."""
    named = evidence.one_answer
    which = (
        "whose rows have one reference each"
        if named is None
        else "with one right answer (`evaluation.one_answer`)"
    )
    text = (
        f"Percentage of answers that are the reference word by word, of the kinds of task {which} (the others may be "
        "answered in many ways), mean"
    )
    title = f"Exact match by kind of task{_of(test_set)}, %"
    return _by_kind(evidence, test_set, "exact_match_by_category", title, text, named)


def _of(test_set: str) -> str:
    return "" if test_set == "test" else f", {test_set}"


def _by_kind(
    evidence: Evidence, test_set: str, figure: str, title: str, text: str, wanted: Sequence[str] | None = None
) -> Table:
    runs = len(evidence.runs)
    counted = evidence.having(lambda r: bool(r["metrics"]["result"][test_set].get(figure)))
    shown = counted.of_shared_seeds()
    tests = [r["metrics"]["result"][test_set][figure] for r in shown.runs]
    names = sorted({name for test in tests for name in test if wanted is None or name in wanted})

    def of(name: str) -> Callable[[Result], float | None]:
        return lambda r: r["metrics"]["result"][test_set].get(figure, {}).get(name)

    cells = [column(shown, of(name), 1) for name in names]
    rows = [
        (arm, *((c[i] for c in cells) if by_seed else [MISSING] * len(names)))
        for i, (arm, by_seed) in enumerate(evidence.results.items())
    ]
    text += f" over {shown.seeds_in_words}."
    if len(counted.runs) < runs:
        text += f" {len(counted.runs)} of the {runs} runs have it: those before it was recorded have none."
    return Table(title, text, ("arm", *names), tuple(rows))


def noise_table(evidence: Evidence, test_set: str = "test") -> Table:
    """Bootstrap over test examples of the mean difference to the baseline."""
    base = _example_means(evidence.results[evidence.study.baseline].values(), test_set)
    rows: list[tuple[str, ...]] = []
    for v in evidence.verdicts(test_set):
        if v.verdict == BASELINE:
            continue
        mine = _example_means([evidence.results[v.arm][s] for s in v.paired], test_set)
        if not mine or not base or len(mine) != len(base):
            rows.append((v.arm, MISSING if not v.seeds else NONE, MISSING if not v.seeds else NONE))
            continue
        paired = _example_means([evidence.results[evidence.study.baseline][s] for s in v.paired], test_set)
        differences = [a - b for a, b in zip(mine, paired, strict=True)]
        low, high = bootstrap_interval(differences)
        interval = f"{number(low, sign=True)} to {number(high, sign=True)}"
        rows.append((v.arm, number(sum(differences) / len(differences), sign=True), interval))
    text = (
        "Bootstrap over test examples, runs held fixed: how much the choice of test examples matters. It says nothing "
        "about another training seed and decides nothing."
    )
    return Table(f"Evaluation noise{_of(test_set)}", text, ("arm", "difference", "95 % interval"), tuple(rows))


def _example_means(results: Any, test_set: str) -> list[float]:
    """Score of every test example, mean over runs."""
    scores = [r["scores"].get(test_set, []) for r in results]
    return [sum(column) / len(column) for column in zip(*scores, strict=True)] if scores and scores[0] else []


def arms_table(evidence: Evidence) -> Table:
    rows = [
        (
            arm,
            ", ".join(f"`{name}={_yaml(value)}`" for name, value in overrides.items()) or "the base configuration",
        )
        for arm, overrides in evidence.study.arms.items()
    ]
    return Table("Arms", "", ("arm", "overrides"), tuple(rows))


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    return str(value)


def all_tables(evidence: Evidence) -> Sequence[Table]:
    tables = [verdict_table(evidence, name) for name in evidence.test_sets]
    if evidence.study.contrasts:
        tables.insert(1, contrast_table(evidence))
    if varies_clipping(evidence):
        tables.append(bounds_table(evidence))
    kinds = [category_table(evidence, name) for name in evidence.test_sets]
    matches = [match_table(evidence, name) for name in evidence.test_sets]
    return [
        *tables,
        cost_table(evidence),
        text_table(evidence),
        # of rows whose source names no kinds the mean over all stands above already
        *(table for table in kinds if set(table.header) - {"arm", ALL}),
        *(table for table in matches if len(table.header) > 1),
        *(noise_table(evidence, name) for name in evidence.test_sets),
        arms_table(evidence),
    ]
