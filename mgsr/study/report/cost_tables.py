"""What arms cost, and what they reach at the cost of the cheapest: the same work counts alike in every run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from mgsr.evaluation.statistics import paired_t_interval
from mgsr.runtime.meter import PHASES, overall
from mgsr.study.report.evidence import Evidence, Result, mean
from mgsr.study.report.table import MISSING, NONE, Table, number
from mgsr.study.verdicts import Values

WORK = tuple(name for name in PHASES if name != "validation")
"""The dev set is looked at for the record, not for the student's sake."""


@dataclass(frozen=True)
class Spending:
    """One way to count cost.

    Attributes:
        totals: of every run.
        budget: that of the cheapest run.
        dev: dev ROUGE-L of every run at the budget, in a straight line between the looks around it; runs whose
            first look came later are left out.
        first: what every run had spent at its first look.
    """

    totals: Values
    budget: float
    dev: Values
    first: Values


Work = tuple[str, str]
"""A phase, and by which models it is done."""


def work_of(evidence: Evidence, result: Result) -> dict[str, Work]:
    """Phase -> the kind of work it is in this run: a token costs as much as the models that read or write it."""
    overrides = result["overrides"]

    def value(name: str, default: Any) -> Any:
        said = overrides.get(name, evidence.study.said_in_base(name))
        return default if said is None else said

    taught = value("objective.w_dac", 1.0) or value("objective.w_span", 1.0)
    writer = {"student": "the student", "teacher": "the teacher"}.get(value("scrg.text", "student"), "both models")
    return {
        "generation": ("writing", f"by {writer}"),
        "scoring": ("scoring", ""),
        "training": ("training", "with a teacher" if taught else "without one"),
    }


def seconds_per_token(evidence: Evidence) -> dict[Work, float]:
    """Median over all runs of the study's commonest processor, by kind of work: what a token costs there.

    What else the machine did while a run was on it slows all of its phases. Writing and scoring are therefore
    taken in proportion to the same run's training, whose kind has the median time that it has over all runs.
    """
    processors = [r["environment"].get("cpu") for r in evidence.runs]
    commonest = max(processors, key=lambda name: (processors.count(name), str(name)))
    runs = [(result, work_of(evidence, result), _rates(result)) for result in evidence.runs]
    rates: dict[Work, float] = {}

    def settle(phases: Sequence[str], load: Callable[[Work, float], float]) -> None:
        # kinds of work that only another processor's runs have done count by those
        for known in (True, False):
            found: dict[Work, list[float]] = {}
            for result, work, mine in runs:
                if (result["environment"].get("cpu") == commonest) == known:
                    for phase in phases:
                        if phase in mine and work[phase] not in rates:
                            slowed = load(work["training"], mine["training"])
                            found.setdefault(work[phase], []).append(mine[phase] / slowed)
            rates.update({work: median(values) for work, values in found.items()})

    settle(["training"], lambda kind, rate: 1.0)
    settle(["generation", "scoring"], lambda kind, rate: rate / rates[kind])
    return dict(sorted(rates.items()))


def _rates(result: Result) -> dict[str, float]:
    """Seconds per token of a run's phases, as measured."""
    costs = result["metrics"]["costs"]
    return {p: costs.get(f"seconds_{p}", 0.0) / costs[f"tokens_{p}"] for p in WORK if costs.get(f"tokens_{p}")}


def spending(evidence: Evidence, rates: Mapping[Work, float] | None = None) -> Spending:
    """In tokens; or, with seconds per token of every kind of work, in the seconds that these tokens take.

    A run's looks record tokens of all phases together. Its rounds and steps alternate, so that the same share of
    its seconds is taken to be spent as of its tokens.
    """

    def total(result: Result) -> float:
        costs = result["metrics"]["costs"]
        if rates is None:
            return overall(costs, "tokens")
        work = work_of(evidence, result)
        return sum(rates[work[phase]] * n for phase in WORK if (n := costs.get(f"tokens_{phase}", 0)))

    def looks(result: Result) -> list[tuple[float, float]]:
        tokens = overall(result["metrics"]["costs"], "tokens")
        scale = total(result) / tokens if tokens else 1.0
        spent, dev = result["curves"]["cost/tokens"]["values"], result["curves"]["val/rouge_l"]["values"]
        return [(cost * scale, value) for cost, value in zip(spent, dev, strict=False)]

    totals = evidence.values(total)
    budget = min(min(by_seed.values()) for by_seed in totals.values() if by_seed)

    def at_budget(result: Result) -> float | None:
        return _between(looks(result), budget)

    def first(result: Result) -> float | None:
        return looks(result)[0][0] if looks(result) else None

    return Spending(totals, budget, evidence.values(at_budget), evidence.values(first))


def _between(looks: Sequence[tuple[float, float]], budget: float) -> float | None:
    """Arms look at the dev set at costs of their own: read at the look before, a dear arm would seem worse.

    >>> _between([(100.0, 50.0), (200.0, 60.0)], 150.0), _between([(100.0, 50.0)], 90.0)
    (55.0, None)
    """
    # rounding in the file must not put the cheapest run's own end beyond its budget
    before = [look for look in looks if look[0] <= budget * 1.0001]
    after = looks[len(before) :]
    if not before or not after:
        return before[-1][1] if before else None
    (cost, value), (next_cost, next_value) = before[-1], after[0]
    return value + (next_value - value) * max(0.0, budget - cost) / (next_cost - cost)


def cost_table(evidence: Evidence) -> Table:
    """What arms cost, and their dev figure once they have cost as much as the cheapest arm."""
    rates = seconds_per_token(evidence)
    tokens, seconds = spending(evidence), spending(evidence, rates)
    rows = [
        (arm, *(_cells(evidence, arm, tokens, seconds) if by_seed else [MISSING] * (len(_HEADER) - 1)))
        for arm, by_seed in evidence.results.items()
    ]
    return Table("At equal cost", " ".join(_text(evidence, rates, tokens, seconds)), _HEADER, tuple(rows))


_HEADER = (
    "arm",
    "tokens, M",
    "standard s",
    "dev at the end",
    "at equal tokens",
    "difference",
    "95 % interval",
    "at equal time",
    # the page and Markdown drop the blank: headers are names too, and must differ
    "difference ",
    "95 % interval ",
    "writing, M",
    "scoring, M",
    "training, M",
    "measured: writing, s",
    "scoring, s",
    "training, s",
)


def _cells(evidence: Evidence, arm: str, tokens: Spending, seconds: Spending) -> list[str]:
    by_seed = evidence.of_shared_seeds().results[arm]

    def over(values: Values) -> float | None:
        return mean({seed: value for seed, value in values[arm].items() if seed in by_seed})

    final = mean({seed: r["curves"]["val/rouge_l"]["values"][-1] for seed, r in by_seed.items()})
    read = over(tokens.totals)
    return [
        NONE if read is None else _millions(read),
        number(over(seconds.totals), 1),
        number(final),
        number(over(tokens.dev)),
        *_difference(tokens.dev, arm, evidence.study.baseline),
        number(over(seconds.dev)),
        *_difference(seconds.dev, arm, evidence.study.baseline),
        *(_millions(_measured(by_seed, "tokens", phase) or 0.0) for phase in WORK),
        *(number(_measured(by_seed, "seconds", phase), 1) for phase in WORK),
    ]


def _difference(dev: Values, arm: str, baseline: str) -> tuple[str, str]:
    """To the baseline, over the seeds in which both have a look, with its interval from two such seeds on."""
    paired = [dev[arm][seed] - dev[baseline][seed] for seed in dev[arm] if seed in dev[baseline]]
    if arm == baseline or not paired:
        return NONE, NONE
    difference = number(sum(paired) / len(paired), sign=True)
    if len(paired) < 2:
        return difference, NONE
    interval = paired_t_interval(paired)
    return difference, f"{number(interval.low, sign=True)} to {number(interval.high, sign=True)}"


def _measured(by_seed: Mapping[int, Result], unit: str, phase: str) -> float | None:
    return mean({seed: float(r["metrics"]["costs"].get(f"{unit}_{phase}", 0.0)) for seed, r in by_seed.items()})


def _text(evidence: Evidence, rates: Mapping[Work, float], tokens: Spending, seconds: Spending) -> list[str]:
    named = ", ".join(
        f"{_seconds(1e6 * rate, ',')} s for {' '.join(filter(None, work))}" for work, rate in rates.items()
    )
    baseline = evidence.study.baseline
    steps = {r["metrics"]["steps"] for r in evidence.runs}
    schedule = (
        "All arms have one learning rate schedule, so what stands before the end was reached at a higher rate."
        if len(steps) == 1
        else "Arms have learning rate schedules of their own length: before the end they stand at different rates."
    )
    return [
        f"Means over {evidence.of_shared_seeds().seeds_in_words}; differences over all seeds that an arm shares "
        f"with `{baseline}`. Tokens (millions, M) passed through a model's forward, in all and by what for. Dev "
        "ROUGE-L at the end; at the "
        f"{_millions(tokens.budget)} million tokens of the cheapest run, and at the {_seconds(seconds.budget)} "
        f"standard seconds of the cheapest, with the difference to `{baseline}` there and a 95 % t interval, "
        "paired by seed and not adjusted. Between two looks at the dev set it is read off a straight line.",
        "Standard seconds are a run's tokens times the median time for a token of that kind of work, over the "
        "runs of the study's commonest processor, each run's writing and scoring in proportion to its training "
        "(what else the machine does slows all three), so that equal work takes equal time; per million "
        f"{named}.",
        *_unread(tokens, lambda cost: f"{_millions(cost)} million tokens", "tokens"),
        *_unread(seconds, lambda cost: f"{_seconds(cost)} standard seconds", "time"),
        f"{schedule} The measured seconds depend on what else the machine did: they compare no arms.",
    ]


def _millions(tokens: float) -> str:
    """
    >>> _millions(1_458_200), _millions(28_502)
    ('1.46', '0.0285')
    """
    return f"{tokens / 1e6:.2f}" if tokens >= 1e5 else f"{tokens / 1e6:.3g}"


def _seconds(seconds: float, commas: str = "") -> str:
    """
    >>> _seconds(12_345.6, ","), _seconds(12.4), _seconds(0.0432)
    ('12,346', '12', '0.043')
    """
    return f"{seconds:{commas}.0f}" if seconds >= 10 else f"{seconds:.2g}"


def _unread(spent: Spending, amount: Callable[[float], str], what: str) -> list[str]:
    """Why some cells are empty, or are means over fewer runs."""
    late = {arm: set(by_seed) - set(spent.dev[arm]) for arm, by_seed in spent.first.items()}
    named = [
        f"`{arm}` after {amount(min(spent.first[arm][seed] for seed in seeds))}"
        + ("" if len(seeds) == len(spent.first[arm]) else f" in {len(seeds)} of {len(spent.first[arm])} runs")
        for arm, seeds in late.items()
        if seeds
    ]
    if not named:
        return []
    return [f"No figure at equal {what} ({NONE}): the dev set was first looked at later, {', '.join(named)}."]
