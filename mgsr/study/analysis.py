"""The block model: every arm against the baseline, with simultaneous intervals and a verdict.

    score ~ arm + block,    ordinary least squares, one spread for all arms

A block is a training seed together with the student that it starts from. Arms of a family have simultaneous 95 %
intervals (Dunnett 1955): the multivariate t distribution with the correlations that the model gives them. An arm
that is analysed alone takes its share of the family's 5 % (Bonferroni), so that the whole family keeps its 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats

ERROR = 0.05
"""Chance that any interval of a family misses."""
POWER = 0.8
WIDER = 2.0
"""An arm whose residuals spread so many times as wide as the others' is analysed alone with the baseline."""
DRAWS = 400_000
CHANCE = 0.01
"""Of setting an arm apart though all spread alike: of few blocks some arm often looks twice as wide."""
TINY = 1e-12
"""Below it a variance is rounding."""

Sides = tuple[Sequence[str], Sequence[str]]
"""Arms whose mean is compared with that of others."""


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline, or several arms against others.

    Attributes:
        effect: arm minus baseline; `low`, `high`: its simultaneous interval, NaN where one block tells no spread.
        blocks: in which all of them have run; `seeds`: how many training seeds these have.
        verdict: better, worse, equivalent or open; empty where there is no interval.
        small: better or worse, and the whole interval lies within the margin.
        detectable: the smallest effect that these blocks find with a power of 0.8.
        alone: analysed without the other arms, as its spread is wider.
    """

    effect: float
    low: float
    high: float
    blocks: int
    seeds: int
    verdict: str
    small: bool
    detectable: float
    alone: bool = False


def compare(
    scores: pd.DataFrame, baseline: str, margin: float, families: Sequence[Sequence[str]] = ()
) -> dict[str, Comparison]:
    """Every arm that some block connects with the baseline.

    Args:
        scores: columns `arm`, `block`, `seed` and `score`, one row per run.
        margin: what is no difference worth having, in the unit of the scores.
        families: arms whose intervals are simultaneous among themselves; those in none are a family of their own.

    Raises:
        ValueError: no run of the baseline, or an arm that has run twice in a block.
    """
    if baseline not in set(scores["arm"]):
        raise ValueError(f"no run of the baseline {baseline}")
    if scores.duplicated(["arm", "block"]).any():
        raise ValueError("an arm has run twice in a block")
    arms = [arm for arm in dict.fromkeys(scores["arm"]) if arm != baseline]
    wide = _wide(scores, baseline)
    named = {arm for family in families for arm in family}
    found: dict[str, Comparison] = {}
    for family in [*families, [arm for arm in arms if arm not in named]]:
        sides = {arm: ([arm], [baseline]) for arm in family if arm in arms}
        found |= _family(scores, baseline, sides, margin, wide)
    return {arm: found[arm] for arm in arms if arm in found}


def contrast(
    scores: pd.DataFrame, baseline: str, sides: Mapping[str, Sides], margin: float
) -> dict[str, Comparison]:
    """Mean of some arms minus mean of others, by name; all of them simultaneous (Bonferroni where they are means).

    Args:
        sides: name -> (arms with, arms without). Left out where an arm has not run.
    """
    there = set(scores["arm"])
    known = {name: both for name, both in sides.items() if {*both[0], *both[1]} <= there}
    return _family(scores, baseline, known, margin, _wide(scores, baseline))


def _family(
    scores: pd.DataFrame, baseline: str, sides: Mapping[str, Sides], margin: float, wide: Sequence[str]
) -> dict[str, Comparison]:
    """Contrasts that share an error; means of arms, and what has a `wide` arm, by a spread of their own.

    What a part does with one seed, it does to all arms of that seed which have it: they are no independent runs.
    """
    swings = {name for name, both in sides.items() if {*both[0], *both[1]} & {*wide}}
    pooled = {n: both for n, both in sides.items() if n not in swings and len(both[0]) == len(both[1]) == 1}
    found = _contrasts(scores[~scores["arm"].isin(wide)], baseline, pooled, margin, of=len(sides))
    for name in [name for name in sides if name not in pooled]:
        # by its own spread: one difference of each block in which all its arms have run
        means = [_means(scores, arms, side) for side, arms in zip(("with", "without"), sides[name], strict=True)]
        alone = _contrasts(pd.concat(means), "without", {name: (["with"], ["without"])}, margin, of=len(sides))
        found |= {name: replace(one, alone=name in swings) for name, one in alone.items()}
    return {name: found[name] for name in sides if name in found}


def _means(scores: pd.DataFrame, arms: Sequence[str], name: str) -> pd.DataFrame:
    """The mean of some arms as one arm, of the blocks in which all of them have run."""
    table = scores[scores["arm"].isin(arms)].pivot(index=["block", "seed"], columns="arm", values="score").dropna()
    return table.mean(axis=1).rename("score").reset_index().assign(arm=name)


@dataclass(frozen=True)
class _Fit:
    """Least squares of `score ~ arm + block`; columns of the design are arms but the baseline, then blocks."""

    arms: list[str]
    effects: np.ndarray
    covariance: np.ndarray
    scale: float
    freedom: int
    spanned: np.ndarray


def _fit(scores: pd.DataFrame, baseline: str) -> _Fit:
    import statsmodels.api as sm

    arms = [arm for arm in dict.fromkeys(scores["arm"]) if arm != baseline]
    columns = [(scores["arm"] == arm).to_numpy(float) for arm in arms]
    columns += [(scores["block"] == block).to_numpy(float) for block in dict.fromkeys(scores["block"])]
    design = np.stack(columns, axis=1)
    # by the pseudo-inverse: blocks and arms that nothing connects leave the design without full rank
    model = sm.OLS(scores["score"].to_numpy(float), design).fit()
    freedom = round(model.df_resid)
    spread = float(model.scale) if freedom > 0 else math.nan
    covariance = spread * np.asarray(model.normalized_cov_params)
    spanned = np.linalg.pinv(design) @ design
    return _Fit(arms, np.asarray(model.params), covariance, spread, freedom, spanned)


def _wide(scores: pd.DataFrame, baseline: str) -> list[str]:
    """Arms that spread far wider than all the others, the widest first; never the baseline."""
    found: list[str] = []
    while True:
        rest = scores[~scores["arm"].isin(found)]
        arms = [arm for arm in dict.fromkeys(rest["arm"]) if arm != baseline]
        times = {arm: _times_wider(rest, arm, baseline, CHANCE / len(arms)) for arm in arms}
        widest = max(times, key=times.__getitem__, default="")
        if not widest or times[widest] <= WIDER:
            return found
        found.append(widest)


def _times_wider(scores: pd.DataFrame, arm: str, baseline: str, chance: float) -> float:
    """An arm's spread over that of the others; 0 where it may be chance (F test), or they tell none.

    The arm is left out of the model: within it, a wide arm would widen the residuals of all. Its distance to the
    mean of a block's other n runs, less the effects of their arms, has the variance `own^2 + others^2 / n`.
    """
    others = scores[scores["arm"] != arm]
    fit = _fit(others, baseline)
    # blocks may hold different arms, whose effects count where some block connects them
    if not np.allclose(fit.spanned[: len(fit.arms)], np.eye(len(fit.effects))[: len(fit.arms)], atol=1e-8):
        return 0.0
    effects = others["arm"].map(dict(zip(fit.arms, fit.effects, strict=False))).fillna(0.0)
    others = others.assign(score=others["score"] - effects)
    runs = scores[scores["arm"] == arm].set_index("block")["score"]
    blocks = others.groupby("block")["score"].agg(["mean", "size"])
    shared = [block for block in runs.index if block in blocks.index]
    if not fit.arms or fit.freedom <= 0 or len(shared) < 2 or fit.scale <= TINY:
        return 0.0
    distance = float((runs[shared] - blocks.loc[shared, "mean"]).var(ddof=1)) / fit.scale
    others_part = float((1.0 / blocks.loc[shared, "size"]).mean())
    if stats.f.sf(distance / (1.0 + others_part), len(shared) - 1, fit.freedom) > chance:
        return 0.0
    return math.sqrt(max(0.0, distance - others_part))


def _contrasts(
    scores: pd.DataFrame, baseline: str, sides: Mapping[str, Sides], margin: float, *, of: int
) -> dict[str, Comparison]:
    """Simultaneous among themselves, with their share of the error of a family `of` so many."""
    if not sides:
        return {}
    fit = _fit(scores, baseline)
    vectors = {}
    for name, both in sides.items():
        vector = np.zeros(len(fit.effects))
        for sign, some in zip((1.0, -1.0), both, strict=True):
            for arm in some:
                if arm != baseline:
                    vector[fit.arms.index(arm)] += sign / len(some)
        # of what the design does not span there is no estimate
        if np.allclose(vector @ fit.spanned, vector, atol=1e-8):
            vectors[name] = vector
    if not vectors:
        return {}
    weights = np.stack(list(vectors.values()))
    covariance = weights @ fit.covariance @ weights.T
    errors = np.sqrt(np.diag(covariance))
    critical = math.nan
    if fit.freedom > 0 and (errors > 0).all():
        correlation = np.round(covariance / np.outer(errors, errors), 6)
        error = ERROR * len(sides) / of
        critical = critical_value(tuple(map(tuple, correlation.tolist())), fit.freedom, error)
    ran = {arm: set(rows["block"]) for arm, rows in scores.groupby("arm")}
    seeds = dict(zip(scores["block"], scores["seed"], strict=True))
    found = {}
    for (name, vector), deviation in zip(vectors.items(), errors, strict=True):
        effect, half = float(vector @ fit.effects), critical * float(deviation)
        low, high = effect - half, effect + half
        shared = set.intersection(*(ran[arm] for side in sides[name] for arm in side))
        verdict = verdict_of(low, high, margin)
        found[name] = Comparison(
            effect,
            low,
            high,
            len(shared),
            len({seeds[block] for block in shared}),
            verdict,
            verdict in ("better", "worse") and -margin <= low and high <= margin,
            float(deviation) * (critical + float(stats.t.ppf(POWER, fit.freedom)))
            if fit.freedom > 0
            else math.nan,
        )
    return found


def verdict_of(low: float, high: float, margin: float) -> str:
    """What an interval of a difference says.

    >>> [verdict_of(*interval, 0.5) for interval in ((0.1, 2), (-2, -0.1), (-0.4, 0.3), (-0.4, 0.8))]
    ['better', 'worse', 'equivalent', 'open']
    """
    if math.isnan(low):
        return ""
    if low > 0 or high < 0:
        return "better" if low > 0 else "worse"
    return "equivalent" if -margin <= low and high <= margin else "open"


@lru_cache(maxsize=256)
def critical_value(correlation: tuple[tuple[float, ...], ...], freedom: int, error: float = ERROR) -> float:
    """c with P(max |T_i| > c) = error for a multivariate t with these correlations; from a fixed random state.

    >>> round(critical_value(((1.0,),), 10), 3)
    2.228
    """
    if len(correlation) == 1:
        return float(stats.t.ppf(1.0 - error / 2.0, freedom))
    values, vectors = np.linalg.eigh(np.array(correlation))
    # contrasts may depend on each other, and a correlation is rounded
    positive = vectors * values.clip(min=0.0) @ vectors.T
    draws = stats.multivariate_t(np.zeros(len(correlation)), positive, df=freedom, allow_singular=True).rvs(
        DRAWS, random_state=np.random.default_rng(0)
    )
    return float(np.quantile(np.abs(draws).max(axis=1), 1.0 - error))
