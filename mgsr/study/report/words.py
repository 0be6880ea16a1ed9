"""Verdicts and figures in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from mgsr.runtime.wording import plural
from mgsr.study.analysis import Comparison


def sentence(subject: str, found: Comparison | None, baseline: str = "") -> str:
    """What a comparison says of the question, in one or two short sentences.

    Args:
        baseline: empty where the subject is a factor, with against without.
    """
    if found is None:
        return f"{subject}: no run can be compared with {baseline} yet."
    effect = f"{signed(found.effect)} ROUGE-L" + (f" against {baseline}" if baseline else ", with against without")
    seeds = found.blocks
    if not found.verdict:
        return (
            f"{subject}: {effect}. {plural(seeds, 'training seed')}: no spread can be told yet, and so no verdict."
        )
    said = f"{subject}: {effect}, 95 % interval {interval(found)}, {plural(seeds, 'training seed')}."
    return f"{said} {verdict_in_words(found)}"


def verdict_in_words(found: Comparison) -> str:
    """
    >>> verdict_in_words(Comparison("a", 0.1, -0.3, 0.4, 5, "equivalent", False, 0.5, 0.3))
    'Equivalent: the whole interval lies within the margin.'
    """
    if found.verdict == "equivalent":
        return "Equivalent: the whole interval lies within the margin."
    if found.verdict == "open":
        return f"Open: these seeds would detect an effect of {found.detectable:.2f} with probability 0.8."
    small = ", by less than the margin" if found.small else ""
    return f"{found.verdict.capitalize()}{small}."


def signed(value: float) -> str:
    """
    >>> signed(0.126), signed(-1.0)
    ('+0.13', '-1.00')
    """
    return f"{value:+.2f}"


def interval(found: Comparison) -> str:
    """The interval, or nothing where there is none."""
    return "" if math.isnan(found.low) else f"{signed(found.low)} to {signed(found.high)}"


def shown(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A figure of a table; empty where there is none."""
    return "" if value is None else f"{value:,.{digits}f}{unit}"


def listed(words: Iterable[str]) -> str:
    """
    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    some: Sequence[str] = list(words)
    return some[0] if len(some) == 1 else f"{', '.join(some[:-1])} and {some[-1]}"
