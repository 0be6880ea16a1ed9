"""Verdicts and figures in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from mgsr.runtime.wording import plural
from mgsr.study.analysis import Comparison


def sentence(subject: str, found: Comparison | None, baseline: str = "") -> str:
    """What a comparison says of the question, in two or three short sentences.

    Args:
        baseline: empty where the subject is a contrast, whose name says what is compared.

    >>> sentence("`removed`", Comparison(0.7, 0.2, 1.2, 5, 5, "better", False, 0.5), "full")
    '`removed` is 0.70 ROUGE-L above `full` (95 % interval +0.20 to +1.20, 5 training seeds). Better.'
    """
    if found is None:
        return f"{subject}: no run can be compared with `{baseline}` yet."
    effect = f"{subject}: {signed(found.effect)} ROUGE-L"
    if baseline:
        side = "above" if found.effect >= 0 else "below"
        effect = f"{subject} is {abs(found.effect):.2f} ROUGE-L {side} `{baseline}`"
    seeds = plural(found.seeds, "training seed")
    if found.seeds != found.blocks:
        seeds += f" with {found.blocks} starts"
    if not found.verdict:
        return f"{effect} ({seeds}). No spread can be told yet, and so no verdict."
    return f"{effect} (95 % interval {interval(found)}, {seeds}). {verdict_in_words(found)}"


def verdict_in_words(found: Comparison) -> str:
    """
    >>> verdict_in_words(Comparison(0.1, -0.3, 0.4, 5, 5, "equivalent", False, 0.5))
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


def shown(value: float | None, digits: int = 2, scale: float = 1.0) -> str:
    """A figure of a table, in units of `scale`; empty where there is none."""
    return "" if value is None else f"{value / scale:,.{digits}f}"


def listed(words: Iterable[str]) -> str:
    """
    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    some: Sequence[str] = list(words)
    return some[0] if len(some) == 1 else f"{', '.join(some[:-1])} and {some[-1]}"
