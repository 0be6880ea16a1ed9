"""DAC-KL of one tile of rows with its gradients in closed form, without sorting a large vocabulary.

`dac_kl` is the definition; this file computes the same numbers for `tiled_objective`. With the clipped ramp m is
exactly 0 for every class with c_k >= upper + 4 s, so that the few hundred most probable classes hold all that is
kept; the others only add to the rest bin, and their gradient is q_k times one number per row.

Shapes: R rows, V classes, K selected classes (K = V where all are kept in the order of their ids).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mgsr.losses.clipping import RAMP_REACH, check_clipping, clip_mask, ramp_slope, ramp_value_


@dataclass(frozen=True)
class ClipOptions:
    """How DAC-KL clips; see `dac_kl`. `target` is "argmax" or "label"."""

    sharpness: float = 0.005
    ramp: str = "clipped"
    quantile: str = "mass"
    target: str = "argmax"
    form: str = "normalised"
    keep_target: bool = True

    def __post_init__(self) -> None:
        check_clipping(self.sharpness, self.ramp, self.quantile, self.form)
        if self.target not in ("argmax", "label"):
            raise ValueError(f"target must be 'argmax' or 'label', got {self.target!r}")

    @property
    def margin(self) -> float:
        """How far outside a bound m is exactly 0, a little rounding included; inf for endless tails."""
        return math.inf if self.ramp == "sigmoid" and self.sharpness else RAMP_REACH * self.sharpness + 1e-5


class Selected(NamedTuple):
    """What is read of the selected classes, `[R, K]` each, and of all others together, `[R]`.

    `target [R, 1]` is the column of the target class, None where it has no bin of its own.
    """

    log_p: Tensor
    log_q: Tensor
    p: Tensor
    q: Tensor
    c: Tensor
    target: Tensor | None
    outside_p: Tensor | None = None
    outside_q: Tensor | None = None


class RowGradients(NamedTuple):
    """Gradients of a row's loss: with respect to log q of the selected classes, and per unit of q outside.

    `log_q [R, K]`: dloss / dlog_q_k. `total [R]`: their sum over all classes. `ratio [R]`: -dloss / dQ of the
    classes outside. `bounds`: dloss / dlower, dloss / dupper, dclipped / dlower, dclipped / dupper, `[R]` each.
    """

    log_q: Tensor
    total: Tensor
    ratio: Tensor
    bounds: tuple[Tensor, Tensor, Tensor, Tensor] | None


class Rest(NamedTuple):
    """The rest bin: P log(P / Q), log(P / Q) (0 where P is 0) and P / Q, `[R]`; P / Q * q_k, `[R, K]`."""

    loss: Tensor
    log_ratio: Tensor
    ratio: Tensor
    share: Tensor


def least_exact(dtype: torch.dtype) -> float:
    """Sums of probabilities below this may have lost parts to underflow."""
    return 1e8 * torch.finfo(dtype).tiny


def _own_bin(m: Tensor, target: Tensor | None) -> Tensor:
    return m if target is None else m.scatter(1, target, 1.0)


def _outside(inside: Tensor, outside: Tensor | None) -> Tensor:
    return inside if outside is None else inside + outside


def clipped_mass(part: Selected, lower: Tensor, upper: Tensor, options: ClipOptions) -> Tensor:
    """Mass `[R]` of the rest bin at other bounds (`[R, 1]`): what clipping there would cost."""
    own = _own_bin(clip_mask(part.c, lower, upper, options.sharpness, options.ramp), part.target)
    return _outside(((1.0 - own) * part.p).sum(dim=-1), part.outside_p)


def clipped_rows(
    part: Selected, lower_R1: Tensor, upper_R1: Tensor, options: ClipOptions, *, bounds: bool
) -> tuple[Tensor, Tensor, RowGradients]:
    """Loss `[R]`, mass of the rest bin `[R]` and gradients. `bounds`: those of the bounds as well."""
    m, edges = _mask(part.c, lower_R1, upper_R1, options, bounds=bounds)
    own = _own_bin(m, part.target)
    clipped = 1.0 - own
    rest_p = _outside((clipped * part.p).sum(dim=-1), part.outside_p)
    normalised = options.form == "normalised"
    weight = own if normalised else m
    if not normalised and part.target is not None:
        weight = m.scatter_add(1, part.target, torch.ones_like(rest_p).unsqueeze(1))
    kept_p = weight * part.p
    difference = part.log_p - part.log_q
    loss = (kept_p * difference).sum(dim=-1)
    if not bool(torch.isfinite(loss).all()):
        # inf - inf or 0 * inf: a class without mass gives 0, whatever q is there. Only then, as comparing
        # and filling takes many times as long as the arithmetic on a CPU. NaN is not <= 0 and goes through.
        difference = difference.masked_fill(kept_p <= 0, 0.0)
        loss = (kept_p * difference).sum(dim=-1)
    if normalised:
        rest = _rest(part, clipped, rest_p)
        loss = loss + rest.loss
        grad_log_q = (clipped * rest.share).add_(kept_p).neg_()
        total, ratio = -(kept_p.sum(dim=-1) + rest_p), rest.ratio
    else:
        grad_log_q = -kept_p
        total, ratio = -kept_p.sum(dim=-1), torch.zeros_like(rest_p)
    found = None
    if edges is not None:
        slope = part.p * difference
        if normalised:
            slope = slope.addcmul_(part.p, rest.log_ratio.unsqueeze(1) + 1.0, value=-1.0).add_(rest.share)
        found = _bound_gradients(part, edges, slope, normalised)
    elif bounds:
        zero = torch.zeros_like(rest_p)
        found = (zero, zero, zero, zero)
    return loss, rest_p, RowGradients(grad_log_q, total, ratio, found)


def _mask(
    c: Tensor, lower: Tensor, upper: Tensor, options: ClipOptions, *, bounds: bool
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """m, and dm / dlower and dm / dupper if asked for; a hard mask has none."""
    s = options.sharpness
    if s == 0.0:
        return clip_mask(c, lower, upper, s, options.ramp), None
    rise = ramp_value_((c - lower).div_(s), options.ramp)
    fall = ramp_value_((upper - c).div_(s), options.ramp)
    if not bounds:
        return rise.mul_(fall), None
    by_lower = ramp_slope(rise, options.ramp).mul_(fall).div_(-s)
    by_upper = ramp_slope(fall, options.ramp).mul_(rise).div_(s)
    return rise.mul_(fall), (by_lower, by_upper)


def _bound_gradients(
    part: Selected, edges: tuple[Tensor, Tensor], slope: Tensor, normalised: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`RowGradients.bounds` from dm / dbound and `slope` = dloss / dm, `[R, K]`. Overwrites the edges."""
    losses, masses = [], []
    for edge in edges:
        if normalised and part.target is not None:
            # the target's two bins together don't depend on m
            edge.scatter_(1, part.target, 0.0)
        product = edge * slope
        value = product.sum(dim=-1)
        if not bool(torch.isfinite(value).all()):
            value = product.masked_fill(edge == 0, 0.0).sum(dim=-1)
        losses.append(value)
        if not normalised and part.target is not None:
            edge.scatter_(1, part.target, 0.0)
        masses.append(-(edge * part.p).sum(dim=-1))
    return losses[0], losses[1], masses[0], masses[1]


def _rest(part: Selected, clipped: Tensor, rest_p: Tensor) -> Rest:
    """The rest bin; Q is summed plainly, or in log space as soon as one row's Q nears underflow."""
    rest_q = _outside((clipped * part.q).sum(dim=-1), part.outside_q)
    present = rest_p > 0
    if bool((present & ~(rest_q > least_exact(rest_q.dtype))).any()):
        return _rest_in_log_space(part, clipped, rest_p)
    ratio = torch.where(present, rest_p / rest_q, torch.zeros_like(rest_p))
    log_ratio = torch.where(present, ratio, torch.ones_like(ratio)).log()
    # rest_p * 0 where it isn't positive: a NaN stays one
    return Rest(rest_p * log_ratio, log_ratio, ratio, part.q * ratio.unsqueeze(1))


def _rest_in_log_space(part: Selected, clipped: Tensor, rest_p: Tensor) -> Rest:
    lowered = part.log_q.masked_fill(clipped <= 0, -math.inf)
    shift = lowered.amax(dim=-1)
    log_outside_q = None if part.outside_q is None else part.outside_q.log()
    if log_outside_q is not None:
        shift = torch.maximum(shift, log_outside_q)
    shift = torch.where(torch.isneginf(shift), torch.zeros_like(shift), shift)
    scaled = (clipped * (lowered - shift.unsqueeze(-1)).exp()).sum(dim=-1)
    if log_outside_q is not None:
        scaled = scaled + (log_outside_q - shift).exp()
    log_rest_q = scaled.log() + shift
    present = rest_p > 0
    log_ratio = torch.where(present, rest_p.log() - log_rest_q, torch.zeros_like(rest_p))
    filled = present & ~torch.isneginf(log_rest_q)
    # P * q_k / Q relative to Q, so that it doesn't overflow; where nothing of the class is clipped it isn't used
    share = (lowered - torch.where(filled, log_rest_q, torch.zeros_like(rest_p)).unsqueeze(1)).exp()
    share *= torch.where(filled, rest_p, torch.zeros_like(rest_p)).unsqueeze(1)
    ratio = torch.where(filled, log_ratio, torch.full_like(rest_p, -math.inf)).exp()
    return Rest(rest_p * log_ratio, log_ratio, ratio, share)
