"""Numbers from per-token scores: exposure bias and perplexity.

Shapes: E examples, L positions; `..._EL` is padded to the longest example.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def ex_acc_err(
    student_prefix_kl_EL: ArrayLike,
    teacher_prefix_kl_EL: ArrayLike,
    *,
    student_lengths: Sequence[int] | None = None,
    teacher_lengths: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    """Excess accumulated error in per cent for every length l = 1 .. L (Arora et al. 2022).

        ExAccErr(l) = 100 (R(l) - l e(l)) / (l e(l))

    R(l): sum over t <= l of KL(p_t || q_t) on prefixes that the student wrote; e(l): the mean over t <= l of
    the same on prefixes that the teacher wrote. Both are averaged over their examples before the ratio;
    positions after EOS contribute 0. At 0 the student's own prefixes cost nothing extra.

    Args:
        student_prefix_kl_EL, teacher_prefix_kl_EL: in nats. Their examples may differ in number; the shorter
            L is padded with zeros.
        student_lengths, teacher_lengths: response lengths, EOS included; what is beyond is taken for 0. None:
            the padding is 0 already.

    Returns:
        `[L]`; nan where l e(l) is 0.

    Raises:
        ValueError: not two-dimensional, no example, or lengths that do not fit.

    >>> ex_acc_err([[1.0, 3.0]], [[1.0, 1.0]])
    array([  0., 100.])
    """
    student_L = _mean_accumulated(student_prefix_kl_EL, student_lengths)
    teacher_L = _mean_accumulated(teacher_prefix_kl_EL, teacher_lengths)
    longest = max(len(student_L), len(teacher_L))
    student_L, teacher_L = (np.pad(x, (0, longest - len(x)), mode="edge") for x in (student_L, teacher_L))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(teacher_L > 0, 100.0 * (student_L - teacher_L) / teacher_L, np.nan)


def _mean_accumulated(kl_EL: ArrayLike, lengths: Sequence[int] | None) -> NDArray[np.float64]:
    values = np.array(kl_EL, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"expected an array [examples, L] that is not empty, got shape {values.shape}")
    if lengths is not None:
        if len(lengths) != len(values) or max(lengths) > values.shape[1] or min(lengths) < 0:
            raise ValueError(f"lengths {list(lengths)} do not fit an array of shape {values.shape}")
        values[np.arange(values.shape[1]) >= np.asarray(lengths)[:, None]] = 0.0
    return values.mean(axis=0).cumsum()


def perplexity(log_likelihoods: ArrayLike, token_counts: ArrayLike) -> float:
    """exp(- sum of log-likelihoods / tokens), over all examples together; nan without tokens.

    Args:
        log_likelihoods: `[E]`, in nats, the sum over each example's tokens.
        token_counts: `[E]`.

    Raises:
        ValueError: the shapes differ.

    >>> perplexity([math.log(0.5), 3 * math.log(0.5)], [1, 3])
    2.0
    """
    likelihoods, counts = np.asarray(log_likelihoods, dtype=np.float64), np.asarray(token_counts)
    if likelihoods.shape != counts.shape:
        raise ValueError(f"log_likelihoods and token_counts differ: {likelihoods.shape} and {counts.shape}")
    tokens = counts.sum()
    return float(np.exp(-likelihoods.sum() / tokens)) if tokens else math.nan
