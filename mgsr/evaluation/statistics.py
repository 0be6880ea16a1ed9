"""Mean and spread over a few seeds."""

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
