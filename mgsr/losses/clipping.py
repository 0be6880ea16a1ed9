"""What the clipped divergence, its tiled form and the clip network share: ramps, masks, ranking, summaries.

Shapes: R rows (tokens), V classes, K selected classes. `c` is a class's quantile: the mass, or the share of
classes, that is ranked strictly before it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

RAMPS = ("clipped", "sigmoid")
QUANTILES = ("mass", "rank")
FORMS = ("normalised", "literal")
RAMP_REACH = 4.0
"""The clipped ramp is exactly 0 or 1 further than this many sharpnesses from a bound."""
SORT_WIDTH = 2048
"""Up to this many classes a full sort is the quickest way to rank them."""

_TAIL = 1.0 / (1.0 + math.exp(RAMP_REACH))
_SPAN = 1.0 - 2.0 * _TAIL


def check_clipping(sharpness: float, ramp: str, quantile: str, form: str) -> None:
    """Refuse an unknown option by its name.

    Raises:
        ValueError: with the offending value.
    """
    if not (sharpness >= 0 and math.isfinite(sharpness)):
        raise ValueError(f"sharpness must be finite and at least 0, got {sharpness}")
    for name, value, known in (("ramp", ramp, RAMPS), ("quantile", quantile, QUANTILES), ("form", form, FORMS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def ramp_value(x: Tensor, kind: str) -> Tensor:
    """The ramp from 0 to 1 around x = 0: a sigmoid, or a sigmoid whose tails beyond +-4 are cut."""
    value = torch.sigmoid(x)
    if kind == "clipped":
        value = ((value - _TAIL) / _SPAN).clamp(0.0, 1.0)
    return value


def ramp_slope(value: Tensor, kind: str) -> Tensor:
    """Derivative of the ramp, from its value: 0 where the clipped ramp is flat."""
    if kind == "sigmoid":
        return value * (1.0 - value)
    sigmoid = value * _SPAN + _TAIL
    slope = sigmoid * (1.0 - sigmoid) / _SPAN
    return slope.masked_fill((value <= 0.0) | (value >= 1.0), 0.0)


def clip_mask(c: Tensor, lower: Tensor, upper: Tensor, sharpness: float, ramp: str) -> Tensor:
    """m = ramp((c - lower) / s) * ramp((upper - c) / s); for s = 0 the hard mask lower <= c < upper.

    `lower` and `upper` broadcast against `c`; the soft mask is differentiable in both.
    """
    if sharpness == 0.0:
        return ((c >= lower) & (c < upper)).to(c.dtype)
    return ramp_value((c - lower) / sharpness, ramp) * ramp_value((upper - c) / sharpness, ramp)


def ranked_quantile(log_probs_RK: Tensor, quantile: str, width: int) -> Tensor:
    """Quantiles of the K largest classes, given in descending order. `width` is V."""
    if quantile == "rank":
        ranks = torch.arange(log_probs_RK.shape[-1], device=log_probs_RK.device, dtype=torch.float64)
        # in float64 first: rank / V then rounds exactly as a bound k / V that came as a Python float
        return (ranks / width).to(log_probs_RK.dtype).expand_as(log_probs_RK)
    before = log_probs_RK.exp().cumsum(dim=-1)
    # shifted by one, not cumsum - p: that would cancel for the top class
    return torch.nn.functional.pad(before[..., :-1], (1, 0))


def top_classes(log_probs_RV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most probable classes of every row: log-probabilities and ids, descending, ties by smaller id.

    Exact also where the k-th class ties with the next one; such rows take a full sort.

    >>> top_classes(torch.tensor([[0.0, 2.0, 1.0, 2.0]]), 3)[1]
    tensor([[1, 3, 2]])
    """
    width = log_probs_RV.shape[-1]
    k = min(k, width)
    if k == width or width <= SORT_WIDTH:
        values, ids = log_probs_RV.sort(dim=-1, descending=True, stable=True)
        return values[:, :k], ids[:, :k]
    values, ids = log_probs_RV.topk(k + 1, dim=-1)
    tied = values[:, k] == values[:, k - 1]
    ids = ids[:, :k].sort(dim=-1).values
    values, order = log_probs_RV.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(1, order)
    if bool(tied.any()):
        rows = tied.nonzero().squeeze(1)
        full_values, full_ids = log_probs_RV[rows].sort(dim=-1, descending=True, stable=True)
        values[rows], ids[rows] = full_values[:, :k], full_ids[:, :k]
    return values, ids


def class_quantiles(log_probs_RV: Tensor, quantile: str) -> Tensor:
    """Quantile c of every class, in the order of the ids, by a full sort."""
    values, ids = log_probs_RV.sort(dim=-1, descending=True, stable=True)
    ranked = ranked_quantile(values, quantile, log_probs_RV.shape[-1])
    return torch.empty_like(values).scatter_(-1, ids, ranked)


def entropy(log_probs_RV: Tensor, probs_RV: Tensor) -> Tensor:
    """Entropy of every row in nats; classes of probability 0 contribute 0."""
    # a batched dot product: no [R, V] product is written
    value = torch.matmul(probs_RV.unsqueeze(-2), log_probs_RV.unsqueeze(-1)).squeeze(-1).squeeze(-1)
    if bool(torch.isnan(value).any()):
        lowest = torch.finfo(log_probs_RV.dtype).min
        value = (probs_RV * log_probs_RV.clamp_min(lowest)).sum(dim=-1)
    return -value


class PairSummary(NamedTuple):
    """What a clip network is told about one token: `[R, F]`, `[R, F]`, `[R]`, `[R]`.

    The F largest teacher log-probabilities (F = V where the vocabulary is smaller), the student's of the same
    classes, and both entropies.
    """

    teacher_log_probs: Tensor
    student_log_probs: Tensor
    teacher_entropy: Tensor
    student_entropy: Tensor


def summarise(teacher_log_probs_RV: Tensor, student_log_probs_RV: Tensor, features: int) -> PairSummary:
    """The `PairSummary` of log-probabilities, ranked with a selection of its own."""
    values, ids = top_classes(teacher_log_probs_RV, features)
    return PairSummary(
        values,
        student_log_probs_RV.gather(1, ids),
        entropy(teacher_log_probs_RV, teacher_log_probs_RV.exp()),
        entropy(student_log_probs_RV, student_log_probs_RV.exp()),
    )
