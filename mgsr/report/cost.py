"""What arms cost, and what they have reached where all have cost the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from mgsr.costs import PHASES, overall
from mgsr.report.cells import MISSING, NONE, Table, number
from mgsr.report.evidence import Evidence, Result, mean
from mgsr.statistics import paired_t_interval

MEASURED = tuple(name for name in PHASES if name != "validation")


def cost_table(evidence: Evidence) -> Table:
    """Seconds and tokens by arm, and their dev figure once they have cost as much as the cheapest run."""
    rates = standard_rates(evidence.runs)
    tokens = evidence.values(lambda r: overall(r["metrics"]["costs"], "tokens"))
    seconds = evidence.values(lambda r: standard_seconds(r, rates))
    least_tokens, least_seconds = (min(min(v.values()) for v in each.values() if v) for each in (tokens, seconds))
    base = evidence.results[evidence.study.baseline]
    base_at = _dev_at(base, "tokens", least_tokens)
    rows = []
    for arm, by_seed in evidence.results.items():
        if not by_seed:
            rows.append((arm, *([MISSING] * 9)))
            continue
        parts = [_measured(by_seed.values(), f"seconds_{name}") for name in MEASURED]
        final = mean({seed: r["curves"]["val/rouge_l"]["values"][-1] for seed, r in by_seed.items()})
        at_tokens = _dev_at(by_seed, "tokens", least_tokens)
        factors = {
            seed: seconds[arm][seed] / overall(r["metrics"]["costs"], "seconds") for seed, r in by_seed.items()
        }
        at_seconds = _dev_at(by_seed, "seconds", least_seconds, factors)
        spent = mean(tokens[arm])
        rows.append(
            (
                arm,
                *(number(part, 1) for part in parts),
                NONE if spent is None else f"{spent / 1e6:.2f}",
                number(mean(seconds[arm]), 1),
                *(number(value) for value in (final, mean(at_seconds), mean(at_tokens))),
                NONE if arm == evidence.study.baseline else _difference(at_tokens, base_at),
            )
        )
    each = ", ".join(f"{1e6 * rate:.1f} ({name})" for name, rate in rates.items())
    text = (
        "Measured seconds per run of writing text, of scoring it and of training steps, with whatever else the "
        "machine did meanwhile; tokens (millions) that passed through a model's forward. Standard seconds make "
        "equal work cost equal time: a run's tokens of each phase times the study's median microseconds per token "
        f"of that phase, whichever model reads or writes: {each}. Dev ROUGE-L at the end, and at the last look "
        f"before {least_seconds:.0f} standard seconds, or {least_tokens / 1e6:.2f} million tokens, had been "
        "spent, which is what the cheapest run takes; – where the first look came later. The interval is the "
        f"95 % t interval of the difference to `{evidence.study.baseline}` at equal tokens, paired by seed. All "
        "arms have one learning rate schedule, so a look before the end is one at a higher learning rate."
    )
    header = ("arm", "writing, s", "scoring, s", "training, s", "tokens, M", "standard s", "dev at the end")
    return Table(
        "At equal cost",
        text,
        (*header, "at equal time", "at equal tokens", "difference at equal tokens"),
        tuple(rows),
    )


def standard_rates(runs: Sequence[Result]) -> dict[str, float]:
    """Median seconds per token of every phase, over the runs that have any."""
    found = {}
    for name in MEASURED:
        each = [
            r["metrics"]["costs"].get(f"seconds_{name}", 0.0) / r["metrics"]["costs"][f"tokens_{name}"]
            for r in runs
            if r["metrics"]["costs"].get(f"tokens_{name}")
        ]
        if each:
            found[name] = median(each)
    return found


def standard_seconds(result: Result, rates: Mapping[str, float]) -> float:
    """Tokens by phase times the rates; a phase without tokens counts as measured."""
    costs = result["metrics"]["costs"]
    return sum(
        costs[f"tokens_{name}"] * rates[name] if costs.get(f"tokens_{name}") else costs.get(f"seconds_{name}", 0.0)
        for name in MEASURED
    )


def _measured(results: Any, name: str) -> float:
    each = [float(r["metrics"]["costs"].get(name, 0.0)) for r in results]
    return sum(each) / len(each)


def _dev_at(
    by_seed: Mapping[int, Result], unit: str, budget: float, factors: Mapping[int, float] | None = None
) -> dict[int, float]:
    """Dev ROUGE-L at the last look within the budget; runs whose first look came later are left out.

    `factors` turn a run's measured costs into standard ones.
    """
    found = {}
    for seed, result in by_seed.items():
        spent, dev = result["curves"][f"cost/{unit}"]["values"], result["curves"]["val/rouge_l"]["values"]
        factor = 1.0 if factors is None else factors[seed]
        # rounding in the file must not put the cheapest run's own end beyond its budget
        within = [value for cost, value in zip(spent, dev, strict=False) if cost * factor <= budget * 1.001]
        if within:
            found[seed] = within[-1]
    return found


def _difference(mine: Mapping[int, float], base: Mapping[int, float]) -> str:
    shared = [mine[seed] - base[seed] for seed in mine if seed in base]
    if len(shared) < 2:
        return NONE
    d = paired_t_interval(shared)
    return f"{number(d.mean, sign=True)} ({number(d.low, sign=True)} to {number(d.high, sign=True)})"
