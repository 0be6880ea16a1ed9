"""What a study allows to say: paired differences over training seeds, with one verdict per arm.

A verdict comes from the paired t test of an arm's per-seed difference to the baseline arm. Its p is multiplied by
the number of looks (where open verdicts were given more seeds and tested again; Bonferroni) and adjusted by Holm's
method over the arms of the study (Holm 1979). A bootstrap over test examples tells evaluation noise and decides
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mgsr.evaluation.statistics import PairedInterval, mean_std, paired_t_interval

ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 1000
"""More seeds than this are not worth naming."""
FEWEST_SEEDS = 3
"""From fewer, the size of an effect is too uncertain to say how many seeds it would take."""

BETTER, WORSE, INCONCLUSIVE = "better", "worse", "inconclusive"
TOO_FEW, NOT_RUN, BASELINE = "too few seeds", "not yet run", "baseline"

Values = Mapping[str, Mapping[int, float]]
"""arm -> training seed -> figure."""


@dataclass(frozen=True)
class Verdict:
    """An arm against the baseline arm.

    Attributes:
        mean, std: of the arm over its training seeds; std is nan for one seed, both are for none.
        seeds: the arm's seeds. paired: those that the baseline has too.
        difference: arm minus baseline over the paired seeds; None with fewer than two.
        p: of no difference, adjusted for looks and by Holm over the study; effect: Cohen's d_z, mean over
            standard deviation of the differences (None where they do not vary).
        verdict: better, worse, inconclusive; too few seeds, not yet run; or baseline.
        comparisons: the arms that p is adjusted over; it grows as arms are added. looks: see `verdicts`.
        needed: for an inconclusive one, the seeds at which this effect would be found with a power of 0.8 at
            0.05 / (comparisons x looks), more than have run in any case; None where no number up to 1,000
            would do, where fewer than three have run, or where the differences do not vary.
    """

    arm: str
    mean: float
    std: float
    seeds: tuple[int, ...]
    paired: tuple[int, ...] = ()
    difference: PairedInterval | None = None
    p: float | None = None
    effect: float | None = None
    verdict: str = NOT_RUN
    comparisons: int = 0
    needed: int | None = None
    looks: int = 1

    @property
    def level(self) -> str:
        """That of `needed`, as it is written.

        >>> Verdict("removed", 60.0, 1.0, (0, 1, 2), comparisons=16, looks=2).level
        '0.05/32'
        """
        return f"{ALPHA}/{self.comparisons * self.looks}"

    @property
    def needed_in_words(self) -> str:
        """How many seeds an inconclusive effect would take; empty where nothing can be said.

        >>> Verdict("removed", 60.0, 1.0, (0, 1, 2), (0, 1, 2), effect=0.01, verdict=INCONCLUSIVE).needed_in_words
        'more than 1,000 seeds'
        """
        if self.verdict != INCONCLUSIVE or self.effect is None or len(self.paired) < FEWEST_SEEDS:
            return ""
        return f"more than {MOST_SEEDS:,} seeds" if self.needed is None else f"about {self.needed} seeds"


def verdicts(values: Values, baseline: str, looks: int = 1, others: Sequence[float] = ()) -> list[Verdict]:
    """One verdict per arm, in the order given.

    Args:
        others: p-values, not adjusted, of the study's other comparisons: those on its other test sets.
        looks: how often verdicts were looked at with the seeds of then, more seeds being given to open ones. Each
            look may err: every p is multiplied by their number, those of arms that were not given more seeds too,
            as they would have been, had they been open.

    Raises:
        ValueError: the baseline is no arm; fewer than one look.
    """
    if looks < 1:
        raise ValueError(f"looks must be at least 1, got {looks}")
    if baseline not in values:
        raise ValueError(f"the baseline {baseline} is no arm of {', '.join(values)}")
    found = {arm: _compare(arm, by_seed, values[baseline], arm == baseline) for arm, by_seed in values.items()}
    tested = [arm for arm, verdict in found.items() if verdict.difference is not None]
    each = [found[arm].difference.p for arm in tested]  # type: ignore[union-attr]
    adjusted = holm([min(1.0, looks * p) for p in (*each, *others)])
    for arm, p in zip(tested, adjusted, strict=False):
        found[arm] = _judged(found[arm], p, len(adjusted), looks)
    return list(found.values())


def verdicts_of_sets(each: Mapping[str, Values], baseline: str, looks: int = 1) -> dict[str, list[Verdict]]:
    """`verdicts` of every test set, adjusted over all arms on all sets: a study is one family of comparisons."""
    p: dict[str, list[float]] = {}
    for name, values in each.items():
        found = [_compare(arm, by_seed, values[baseline], arm == baseline) for arm, by_seed in values.items()]
        p[name] = [v.difference.p for v in found if v.difference is not None]
    return {
        name: verdicts(values, baseline, looks, [p_ for other in p if other != name for p_ in p[other]])
        for name, values in each.items()
    }


def contrast_verdicts(
    values: Values, contrasts: Mapping[str, tuple[Sequence[str], Sequence[str]]], looks: int = 1
) -> list[Verdict]:
    """A verdict for every contrast (see `contrast`), by its name, adjusted over all of them."""
    found = []
    for name, (with_arms, without_arms) in contrasts.items():
        differences = contrast(values, with_arms, without_arms)
        seeds = tuple(differences)
        interval = paired_t_interval(list(differences.values())) if len(seeds) > 1 else None
        effect = effect_size(list(differences.values())) if interval else None
        found.append(Verdict(name, math.nan, math.nan, seeds, seeds, interval, effect=effect, verdict=TOO_FEW))
    tested = [v for v in found if v.difference is not None]
    adjusted = iter(holm([min(1.0, looks * v.difference.p) for v in tested]))  # type: ignore[union-attr]
    return [v if v.difference is None else _judged(v, next(adjusted), len(tested), looks) for v in found]


def _compare(arm: str, by_seed: Mapping[int, float], base: Mapping[int, float], is_base: bool) -> Verdict:
    seeds = tuple(sorted(by_seed))
    if not seeds:
        return Verdict(arm, math.nan, math.nan, ())
    mean, std, _ = mean_std([by_seed[seed] for seed in seeds])
    if is_base:
        return Verdict(arm, mean, std, seeds, seeds, verdict=BASELINE)
    paired = tuple(seed for seed in seeds if seed in base)
    if len(paired) < 2:
        return Verdict(arm, mean, std, seeds, paired, verdict=TOO_FEW)
    differences = [by_seed[seed] - base[seed] for seed in paired]
    effect = effect_size(differences)
    return Verdict(arm, mean, std, seeds, paired, paired_t_interval(differences), effect=effect)


def _judged(verdict: Verdict, p: float, comparisons: int, looks: int) -> Verdict:
    assert verdict.difference is not None
    judged, needed = INCONCLUSIVE, None
    if p < ALPHA:
        judged = BETTER if verdict.difference.mean > 0 else WORSE
    elif verdict.effect is not None and len(verdict.paired) >= FEWEST_SEEDS:
        needed = seeds_needed(verdict.effect, ALPHA / (comparisons * looks), run=len(verdict.paired))
    return replace(verdict, p=p, verdict=judged, comparisons=comparisons, needed=needed, looks=looks)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, by statsmodels.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, alpha=ALPHA, method="holm")[1]]


def effect_size(differences: Sequence[float]) -> float | None:
    """Cohen's d_z: mean over standard deviation of the paired differences; None where they do not vary.

    >>> effect_size([1.0, 2.0, 3.0])
    2.0
    """
    mean, std, n = mean_std(differences)
    return None if n < 2 or min(differences) == max(differences) else mean / std


def seeds_needed(effect: float, alpha: float = ALPHA, *, run: int = 1) -> int | None:
    """Pairs at which a two-sided paired t test finds an effect of this size with a power of 0.8, by scipy.

    More than have `run`, which were not enough; None beyond 1,000.

    The square of a noncentral t is a noncentral F with one degree of freedom above the line. scipy's noncentral t
    itself, which statsmodels' `TTestPower` calls, is no number for some large effects on few seeds.

    >>> seeds_needed(1.0)
    10
    """
    from scipy import stats

    def enough(pairs: int) -> bool:
        critical = stats.t.isf(alpha / 2, pairs - 1)
        return bool(stats.ncf.sf(critical**2, 1, pairs - 1, pairs * effect**2) >= POWER)

    if not enough(MOST_SEEDS):
        return None
    low, high = max(2, run + 1), max(MOST_SEEDS, run + 1)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def contrast(values: Values, with_arms: Sequence[str], without_arms: Sequence[str]) -> dict[int, float]:
    """A factor's effect by seed: the mean over the arms with it minus the mean over those without.

    Only seeds that all these arms have count.
    """
    arms = [*with_arms, *without_arms]
    seeds = sorted(set.intersection(*(set(values.get(arm, {})) for arm in arms)))

    def mean_of(chosen: Sequence[str], seed: int) -> float:
        return sum(values[arm][seed] for arm in chosen) / len(chosen)

    return {seed: mean_of(with_arms, seed) - mean_of(without_arms, seed) for seed in seeds}


def bootstrap_interval(differences: Sequence[float], *, resamples: int = 2000) -> tuple[float, float]:
    """95% percentile interval of a mean over test examples, by scipy: evaluation noise, not training noise.

    The same numbers give the same interval.
    """
    from scipy.stats import bootstrap

    values = np.asarray(differences, dtype=np.float64)
    if values.size < 2 or values.min() == values.max():
        mean = float(values.mean())
        return mean, mean
    result = bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
