"""What a few seeds allow to say: mean, spread, paired intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class MeanStd(NamedTuple):
    """`std` is the sample standard deviation (divided by n - 1), nan for one value."""

    mean: float
    std: float
    n: int


def mean_std(values: Sequence[float]) -> MeanStd:
    """Mean and sample standard deviation.

    Raises:
        ValueError: no value.

    >>> mean_std([1.0, 3.0])
    MeanStd(mean=2.0, std=1.4142135623730951, n=2)
    """
    if len(values) == 0:
        raise ValueError("mean_std needs at least one value, got none")
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return MeanStd(float(np.mean(values)), std, len(values))


def shown_std(std: float | None) -> str:
    """A standard deviation as tables show it; of one value there is none.

    >>> shown_std(0.126), shown_std(None)
    ('0.13', 'n/a')
    """
    return "n/a" if std is None or math.isnan(std) else f"{std:.2f}"


class PairedInterval(NamedTuple):
    """Mean difference, its confidence interval, and the two-sided p-value of no difference."""

    mean: float
    low: float
    high: float
    p: float


def paired_t_interval(differences: Sequence[float], confidence: float = 0.95) -> PairedInterval:
    """Student's t interval and test for the mean of paired differences (one per seed).

    Without any spread the interval is the mean itself, and p is 0, or 1 for a mean of 0.

    Raises:
        ValueError: fewer than two differences, or a confidence outside (0, 1).

    >>> [round(x, 3) for x in paired_t_interval([1.0, 2.0, 3.0])]
    [2.0, -0.484, 4.484, 0.074]
    """
    if len(differences) < 2:
        raise ValueError(f"a paired interval needs at least two differences, got {len(differences)}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    from scipy.stats import ttest_1samp

    mean = mean_std(differences).mean
    if min(differences) == max(differences):
        return PairedInterval(mean, mean, mean, 1.0 if mean == 0.0 else 0.0)
    test = ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(confidence)
    return PairedInterval(mean, float(low), float(high), float(test.pvalue))
