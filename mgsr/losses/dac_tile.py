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

from mgsr.losses.clipping import RAMP_REACH, check_clipping, clip_mask, ramp_slope, ramp_value


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
    """What is read of the selected classes: `[R, K]` each, and of all others together `[R]`."""

    log_p: Tensor
    log_q: Tensor
    p: Tensor
    c: Tensor
    is_target: Tensor | None
    outside_p: Tensor | None = None
    log_outside_q: Tensor | None = None


class RowGradients(NamedTuple):
    """Gradients of a row's loss: with respect to log q of the selected classes, and per unit of q outside.

    `log_q [R, K]`: dloss / dlog_q_k. `total [R]`: their sum over all classes. `ratio [R]`: -dloss / dQ of the
    classes outside. `bounds`: dloss / dlower, dloss / dupper, dclipped / dlower, dclipped / dupper, `[R]` each.
    """

    log_q: Tensor
    total: Tensor
    ratio: Tensor
    bounds: tuple[Tensor, Tensor, Tensor, Tensor] | None


def _own_bin(m: Tensor, is_target: Tensor | None) -> Tensor:
    return m if is_target is None else m.masked_fill(is_target, 1.0)


def clipped_mass(part: Selected, lower: Tensor, upper: Tensor, options: ClipOptions) -> Tensor:
    """Mass `[R]` of the rest bin at other bounds (numbers or `[R, 1]`): what clipping there would cost."""
    m = clip_mask(part.c, lower, upper, options.sharpness, options.ramp)
    rest = ((1.0 - _own_bin(m, part.is_target)) * part.p).sum(dim=-1)
    return rest if part.outside_p is None else rest + part.outside_p


def clipped_rows(
    part: Selected, lower_R1: Tensor, upper_R1: Tensor, options: ClipOptions, *, bounds: bool
) -> tuple[Tensor, Tensor, RowGradients]:
    """Loss `[R]`, mass of the rest bin `[R]` and gradients. `bounds`: those of the bounds as well."""
    s, soft = options.sharpness, options.sharpness > 0
    if soft:
        rise = ramp_value((part.c - lower_R1) / s, options.ramp)
        fall = ramp_value((upper_R1 - part.c) / s, options.ramp)
        m = rise * fall
    else:
        m = clip_mask(part.c, lower_R1, upper_R1, s, options.ramp)
    own = _own_bin(m, part.is_target)
    clipped = 1.0 - own
    rest_p = (clipped * part.p).sum(dim=-1)
    if part.outside_p is not None:
        rest_p = rest_p + part.outside_p
    # log(p / q), 0 where p is 0 whatever q is; q = 0 < p gives inf
    difference = torch.where(part.p > 0, part.log_p - part.log_q, torch.zeros_like(part.p))
    normalised = options.form == "normalised"
    weight = own if normalised else m
    if not normalised and part.is_target is not None:
        weight = weight + part.is_target.to(weight.dtype)
    kept_p = weight * part.p
    loss = torch.where(kept_p > 0, kept_p * difference, torch.zeros_like(kept_p)).sum(dim=-1)
    grad_log_q = -kept_p
    if normalised:
        rest_loss, log_ratio, log_rest_q = _rest(part, clipped, rest_p)
        loss = loss + rest_loss
        # P / Q * clipped_k * q_k, relative to Q so that nothing overflows
        present = (rest_p > 0) & torch.isfinite(log_rest_q)
        scale = torch.where(present, rest_p, torch.zeros_like(rest_p))
        share = (part.log_q - torch.where(present, log_rest_q, log_rest_q.new_zeros(())).unsqueeze(-1)).exp()
        share = torch.where(clipped > 0, share, torch.zeros_like(share)) * scale.unsqueeze(-1)
        grad_log_q = grad_log_q - clipped * share
        ratio = torch.where(present, log_ratio, log_ratio.new_full((), -math.inf)).exp()
        total = -(kept_p.sum(dim=-1) + scale)
        slope = part.p * (difference - 1.0 - _finite_or_zero(log_ratio, rest_p > 0).unsqueeze(-1)) + share
    else:
        ratio, total = torch.zeros_like(rest_p), -kept_p.sum(dim=-1)
        slope = part.p * difference
    if not (bounds and soft):
        zero = torch.zeros_like(rest_p)
        return loss, rest_p, RowGradients(grad_log_q, total, ratio, (zero,) * 4 if bounds else None)
    edges = (-ramp_slope(rise, options.ramp) * fall / s, ramp_slope(fall, options.ramp) * rise / s)
    by_mass = part.p
    if part.is_target is not None:
        by_mass = by_mass.masked_fill(part.is_target, 0.0)
        if normalised:
            slope = slope.masked_fill(part.is_target, 0.0)
    # flat ramps first: 0 * inf would be NaN
    d_loss = [torch.where(edge != 0, edge * slope, torch.zeros_like(edge)).sum(dim=-1) for edge in edges]
    d_clipped = [-(edge * by_mass).sum(dim=-1) for edge in edges]
    return loss, rest_p, RowGradients(grad_log_q, total, ratio, (d_loss[0], d_loss[1], d_clipped[0], d_clipped[1]))


def _finite_or_zero(values: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, values, torch.zeros_like(values))


def _rest(part: Selected, clipped: Tensor, rest_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P log(P / Q) of the rest bin, log(P / Q) and log Q, `[R]` each; Q is summed relative to its largest part."""
    lowered = part.log_q.masked_fill(clipped <= 0, -math.inf)
    shift = lowered.amax(dim=-1)
    if part.log_outside_q is not None:
        shift = torch.maximum(shift, part.log_outside_q)
    shift = torch.where(torch.isfinite(shift), shift, torch.zeros_like(shift))
    scaled = (clipped * (lowered - shift.unsqueeze(-1)).exp()).sum(dim=-1)
    if part.log_outside_q is not None:
        scaled = scaled + (part.log_outside_q - shift).exp()
    log_rest_q = scaled.log() + shift
    log_ratio = rest_p.log() - log_rest_q
    return torch.where(rest_p > 0, rest_p * log_ratio, torch.zeros_like(rest_p)), log_ratio, log_rest_q
