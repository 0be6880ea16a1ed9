"""Where the learned bounds of clipping have gone, and whether they differ from token to token at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mgsr.report.cells import NONE, Table, number
from mgsr.report.evidence import Evidence, Result, mean

SATURATED = 0.99
"""Share of tokens at the limits from which on an arm's bounds count as one pair of numbers."""


def _last(result: Result, name: str) -> float | None:
    values = result["curves"].get(name, {}).get("values")
    return float(values[-1]) if values else None


def learned(evidence: Evidence) -> dict[str, Mapping[int, Result]]:
    """The arms with a clip network, where the study asks about clipping."""
    if not any(name.startswith("clip.") for overrides in evidence.study.arms.values() for name in overrides):
        return {}
    found: dict[str, Mapping[int, Result]] = {}
    for arm, by_seed in evidence.results.items():
        if by_seed and all(_last(r, "dac/lower_std") is not None for r in by_seed.values()):
            found[arm] = by_seed
    return found


def at_the_limits(result: Result) -> bool:
    """Whether (nearly) every token's bounds lie at the limits that DAC-KL alone would draw them to."""
    shares = [_last(result, f"dac/near_{limit}") for limit in ("lower_max", "upper_min")]
    return all(share is not None and share >= SATURATED for share in shares)


def bounds_answer(evidence: Evidence) -> list[str]:
    """Whether the clipping is adaptive, in words."""
    runs = [result for by_seed in learned(evidence).values() for result in by_seed.values()]
    if not runs:
        return []
    saturated = sum(map(at_the_limits, runs))
    said = (
        f"**Is the clipping adaptive?** In {saturated} of {len(runs)} runs with a clip network, priced or not, "
        "the bounds of all tokens end at the limits of their ranges"
    )
    if saturated == len(runs):
        return [
            f"{said}: one pair of numbers for every token. So arms that differ in the price alone, and "
            "fixed bounds at the limits, are one treatment, what differs between them is noise, and nothing "
            "adaptive has been measured."
        ]
    return [f"{said}; those are as good as fixed bounds there."]


def bounds_table(evidence: Evidence) -> Table | None:
    """Last values of the bounds' curves, means over training seeds; None where the study has no clip network."""
    arms = learned(evidence)
    if not arms:
        return None

    def cell(by_seed: Mapping[int, Result], name: str, digits: int) -> str:
        return number(mean({seed: v for seed, r in by_seed.items() if (v := _last(r, name)) is not None}), digits)

    def spread(by_seed: Mapping[int, Result], name: str) -> str:
        value: Any = mean({seed: v for seed, r in by_seed.items() if (v := _last(r, name)) is not None})
        return NONE if value is None else f"{value:.1e}"

    rows = [
        (
            arm,
            cell(by_seed, "dac/lower", 3),
            spread(by_seed, "dac/lower_std"),
            cell(by_seed, "dac/upper", 3),
            spread(by_seed, "dac/upper_std"),
            f"{sum(map(at_the_limits, by_seed.values()))} of {len(by_seed)}",
            cell(by_seed, "dac/price", 2),
            cell(by_seed, "dac/retained_mass", 3),
        )
        for arm, by_seed in arms.items()
    ]
    text = (
        "Last point of each curve, mean over training seeds: the bounds and their standard deviation over a "
        f"batch's tokens; the runs in which at least {100 * SATURATED:.0f} % of tokens have both bounds at the "
        "limits that DAC-KL falls towards; the price on clipped mass; the teacher's mass that is kept."
    )
    header = ("arm", "lower", "over tokens", "upper", "over tokens ", "runs at the limits", "price", "kept mass")
    return Table("Learned bounds", text, header, tuple(rows))
