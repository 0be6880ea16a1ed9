"""What the clipped divergence, its tiled form and the clip network share: ramps, masks, ranking, summaries.

Shapes: R rows (tokens), V classes, K selected classes. `c` is a class's quantile: the mass, or the share of
classes, that is ranked strictly before it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mgsr.losses.ranking import top_classes

RAMPS = ("clipped", "sigmoid")
QUANTILES = ("mass", "rank")
FORMS = ("normalised", "literal")
RAMP_REACH = 4.0
"""The clipped ramp is exactly 0 or 1 further than this many sharpnesses from a bound."""

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


def ramp_value_(x: Tensor, kind: str) -> Tensor:
    """`ramp_value` in place, without gradient tracking."""
    x.sigmoid_()
    return x.sub_(_TAIL).div_(_SPAN).clamp_(0.0, 1.0) if kind == "clipped" else x


def ramp_slope(value: Tensor, kind: str) -> Tensor:
    """Derivative of the ramp, from its value: 0 where the clipped ramp is flat."""
    product = torch.addcmul(value, value, value, value=-1.0)
    if kind == "sigmoid":
        return product
    # the sigmoid is value * span + tail; ceil(product) is 1 between the flat ends and 0 on them
    between = product.ceil()
    return product.mul_(_SPAN).add_(between, alpha=_TAIL * (1.0 - _TAIL) / _SPAN)


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
    # shifted by one, not cumsum - p: that would cancel for the top class
    before = torch.zeros_like(log_probs_RK)
    torch.cumsum(log_probs_RK[..., :-1].exp(), dim=-1, out=before[..., 1:])
    return before


def class_quantiles(log_probs_RV: Tensor, ids_RV: Tensor, quantile: str) -> Tensor:
    """Quantile c of every class in the order of the ids, from the full ranking `sort_classes` gives."""
    ranked = ranked_quantile(log_probs_RV, quantile, log_probs_RV.shape[-1])
    return torch.empty_like(log_probs_RV).scatter_(-1, ids_RV, ranked)


def entropy(log_probs_RV: Tensor, probs_RV: Tensor) -> Tensor:
    """Entropy of every row in nats; classes of probability 0 contribute 0."""
    value = (probs_RV * log_probs_RV).sum(dim=-1)
    if bool(torch.isnan(value).any()):
        # 0 * -inf
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
