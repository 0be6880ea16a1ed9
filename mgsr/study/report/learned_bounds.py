"""Where the bounds of DAC-KL's clipping end, and whether they tell one token from another.

For studies that vary the clipping. A bound is at a limit where it lies within 4 s of it (`clip.sharpness` s).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgsr.config.schema import ClipConfig
from mgsr.study.report.evidence import Evidence, mean
from mgsr.study.report.table import MISSING, NONE, Table, number

SIDES = ("lower", "upper")
LIMITS = ("lower_min", "lower_max", "upper_min", "upper_max")
AT_A_LIMIT = 0.99
"""Share of tokens from which a bound counts as standing at a limit."""
NOWHERE = 1e-3
"""Spread over tokens below which a bound tells no token from another: a fifth of the default width of a ramp."""
# what only decides where the bounds are; everything else makes another treatment
_BOUNDS_ONLY = (
    "clip.mode",
    "clip.lower",
    "clip.upper",
    "clip.run",
    "clip.objective",
    "clip.mass_price",
    "clip.clip_share",
    "clip.lr",
    "clip.hidden_size",
)


@dataclass(frozen=True)
class Ends:
    """Where an arm's bounds ended, mean over its seeds.

    Attributes:
        spread: standard deviation over the tokens of a step, of either bound; 0 where both are fixed.
        near: limit -> share of tokens near it; None where the bounds are not learned.
        price: of clipped mass at the end; None where there is none.
        since: the first recorded step from which both bounds stay at a limit, in the slowest run; None where
            they don't.
    """

    arm: str
    seeds: int
    lower: float
    upper: float
    spread: tuple[float, float] = (0.0, 0.0)
    near: dict[str, float] | None = None
    price: float | None = None
    since: int | None = None

    @property
    def learned(self) -> bool:
        return self.near is not None

    @property
    def adaptive(self) -> bool:
        """Some bound differs between tokens, and not only at one of its limits."""
        near = self.near or {}
        return self.learned and any(
            spread >= NOWHERE and _at_limit(near, side) < AT_A_LIMIT
            for side, spread in zip(SIDES, self.spread, strict=True)
        )


def _at_limit(near: Mapping[str, float], side: str) -> float:
    """Share of tokens at that limit of the bound where most of them are."""
    return max(near.get(f"{side}_{end}", 0.0) for end in ("min", "max"))


def varies_clipping(evidence: Evidence) -> bool:
    """In other studies all arms clip alike, and there is nothing to compare."""
    return any(name.startswith("clip.") for arm in evidence.study.arms.values() for name in arm)


def all_ends(evidence: Evidence) -> list[Ends]:
    """Of every arm that has run and has bounds."""
    return [found for arm in evidence.results if (found := _ends(evidence, arm)) is not None]


def _fixed(evidence: Evidence, overrides: Mapping[str, Any], name: str) -> float:
    """A bound that an arm sets, or its base, or the default."""
    said = overrides.get(name, evidence.study.said_in_base(name))
    return float(getattr(ClipConfig(), name.removeprefix("clip.")) if said is None else said)


def _ends(evidence: Evidence, arm: str) -> Ends | None:
    by_seed, overrides = evidence.results[arm], evidence.study.arms[arm]
    if not by_seed or overrides.get("objective.divergence", "dac_kl") != "dac_kl":
        return None
    if overrides.get("clip.mode") == "fixed":
        low, high = (_fixed(evidence, overrides, f"clip.{side}") for side in SIDES)
        return Ends(arm, len(by_seed), low, high)
    if overrides.get("clip.mode") == "mean_of_run":
        # .../<arm>/seed=<n>.json
        named = overrides.get("clip.run") or evidence.study.said_in_base("clip.run") or ""
        source = Path(named).parts[-2:][0] if named else arm
        read = _ends(evidence, source) if source in evidence.results and source != arm else None
        return None if read is None else Ends(arm, len(by_seed), read.lower, read.upper)

    def last(name: str) -> float | None:
        curves = {seed: r["curves"].get(f"dac/{name}", {}).get("values") for seed, r in by_seed.items()}
        return mean({seed: values[-1] for seed, values in curves.items() if values})

    lower, upper = last("lower"), last("upper")
    if lower is None or upper is None:
        return None
    spread = (last("lower_std"), last("upper_std"))
    near = {limit: share for limit in LIMITS if (share := last(f"near_{limit}")) is not None}
    since = [_settled(r["curves"]) for r in by_seed.values()]
    slowest = None if None in since else max(step for step in since if step is not None)
    ends = (spread[0] or 0.0, spread[1] or 0.0)
    return Ends(arm, len(by_seed), lower, upper, ends, near, last("price"), slowest)


def _settled(curves: Mapping[str, Mapping[str, list[float]]]) -> int | None:
    """The first recorded step from which both bounds stand at a limit to the end."""
    found = None
    each = [curves.get(f"dac/near_{limit}", {"steps": [], "values": []}) for limit in LIMITS]
    for step, *shares in zip(each[0]["steps"], *(curve["values"] for curve in each), strict=False):
        near = dict(zip(LIMITS, shares, strict=True))
        stands = all(_at_limit(near, side) >= AT_A_LIMIT for side in SIDES)
        found = (int(step) if found is None else found) if stands else None
    return found


def treatments(evidence: Evidence, ends: Sequence[Ends]) -> list[list[Ends]]:
    """Arms that clip alike whatever decides their bounds: equal to two digits, and nothing adaptive in them."""
    groups: dict[tuple[Any, ...], list[Ends]] = {}
    for one in ends:
        rest = {k: v for k, v in evidence.study.arms[one.arm].items() if k not in _BOUNDS_ONLY}
        key: tuple[Any, ...] = (f"{one.lower:.2f}", f"{one.upper:.2f}", str(sorted(rest.items())))
        groups.setdefault((*key, one.arm) if one.adaptive else key, []).append(one)
    return list(groups.values())


def bounds_answer(evidence: Evidence) -> list[str]:
    """Is the clipping adaptive, in words."""
    asked = "**Is the learned clipping adaptive?**"
    ends = all_ends(evidence)
    adaptive = [one for one in ends if one.adaptive]
    still = [one for one in ends if one.learned and not one.adaptive]
    if not adaptive and not still:
        return [f"{asked} Not yet run."]
    said = ["No, not on these data." if not adaptive else f"Only in {_named(adaptive)}." if still else "Yes."]
    if adaptive:
        said.append(f"In {_named(adaptive)} the bounds of tokens differ at the end (spread {_widest(adaptive)}).")
    if still:
        said.append(
            f"In {_named(still)} the bounds end at {_pairs(still)} on every token, with a mean spread of "
            f"{_widest(still)} at most{_settling(still)}."
        )
    for group in treatments(evidence, ends):
        if len(group) > 1 and any(one.learned for one in group):
            said.append(f"So {_named(group)} clip alike: they are practically one treatment.")
    return [f"{asked} {' '.join(said)}"]


def _named(ends: Sequence[Ends]) -> str:
    names = [f"`{one.arm}`" for one in ends]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _pairs(ends: Sequence[Ends]) -> str:
    return " or ".join(dict.fromkeys(f"({one.lower:.2f}, {one.upper:.2f})" for one in ends))


def _widest(ends: Sequence[Ends]) -> str:
    return f"{max(max(one.spread) for one in ends):.1g}"


def _settling(ends: Sequence[Ends]) -> str:
    """Since when all of these arms' bounds have stood at the limits of their ranges, if they do."""
    steps = [one.since for one in ends if one.since is not None]
    if len(steps) < len(ends):
        return ""
    return f"; both bounds stand at limits of their ranges from step {max(steps)} on, in every run"


def bounds_table(evidence: Evidence) -> Table:
    found = {one.arm: one for one in all_ends(evidence)}
    rows = [
        (arm, *(_cells(found[arm]) if by_seed else [MISSING] * (len(_HEADER) - 1)))
        for arm, by_seed in evidence.results.items()
        if arm in found or not by_seed
    ]
    text = (
        "Bounds in cumulative mass at the last recorded step of training, mean over its tokens and over seeds; "
        "spread: standard deviation over the tokens of a step. Shares of tokens whose bound lies near a limit of "
        "its range, within four times the width of the ramp. Price: nats per unit of clipped mass, at the end. "
        "Fixed bounds are those of the arm. Arms without such bounds are left out."
    )
    return Table("Where the bounds end", text, _HEADER, tuple(rows))


_HEADER = (
    "arm",
    "bounds",
    "lower",
    "spread of lower",
    "upper",
    "spread of upper",
    "lower near its minimum, %",
    "lower near its maximum, %",
    "upper near its minimum, %",
    "upper near its maximum, %",
    "price",
)


def _cells(ends: Ends) -> list[str]:
    near = ends.near or {}
    lower, upper = (f"{value:.4f}" for value in (ends.lower, ends.upper))
    spread = [f"{value:.1e}" if ends.learned else NONE for value in ends.spread]
    shares = [number(100 * near[limit], 1) if limit in near else NONE for limit in LIMITS]
    return [
        "learned" if ends.learned else "fixed",
        lower,
        spread[0],
        upper,
        spread[1],
        *shares,
        number(ends.price),
    ]
