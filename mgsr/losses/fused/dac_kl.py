"""DAC-KL of a tile with its gradients in closed form. The definition is `mgsr.losses.dac_kl`.

Identity: every bin is P log(P / Q) with Q a sum of m_k q_k, so that a = dL/dlog q is -m_k p_k of a kept class,
-(P / Q) (1 - m_k) q_k in the rest bin. Outside the selected classes a is therefore q_k times one number per row,
and a sorted vocabulary isn't needed (`selection`). The bounds' gradients come from dm / dbound.

Shapes: R rows, V classes, K selected classes (K = V where all are kept in the order of their ids).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mgsr.losses.clip_bounds import (
    RAMP_SPAN,
    RAMP_TAIL,
    ClipOptions,
    clip_mask,
    ramp_value,
)
from mgsr.losses.fused.divergences import forward_kl_tile
from mgsr.losses.fused.logit_gradient import Edge, LogitGradient, Part, TokenTerm
from mgsr.losses.fused.masses import LEAST_EXACT
from mgsr.losses.fused.selection import RowBounds, Selected, decided_at_once, selected_rows
from mgsr.losses.fused.tile_models import Tile
from mgsr.runtime import devices


def dac_kl_tile(
    tile: Tile,
    bounds: RowBounds,
    start: int,
    coefficient: float | None,
    base: Tensor | None,
) -> TokenTerm:
    """DAC-KL of every row of a tile, each from as few classes as hold all that is kept.

    Args:
        start: place of the tile's first row among the call's response rows.
        coefficient: factor on the gradient to the logits; None: it isn't wanted.
        base: `[R]`, another term's multiple of q, which goes into the same pass.
    """
    given = bounds.tile(start, tile)
    learned = given[0].requires_grad or given[1].requires_grad
    if tile.ranking is None:
        term = forward_kl_tile(tile, coefficient, base)
        zero = torch.zeros_like(term.loss).expand(4, -1) if learned else None
        return term._replace(bounds=given, bounds_grad=zero)
    lower, upper = (bound.detach().to(tile.teacher.logits.dtype) for bound in given)
    return dac_kl_at(tile, bounds, lower, upper, coefficient, base, learned=learned)._replace(bounds=given)


def dac_kl_at(
    tile: Tile,
    bounds: RowBounds,
    lower: Tensor,
    upper: Tensor,
    coefficient: float | None,
    base: Tensor | None,
    *,
    learned: bool,
) -> TokenTerm:
    """As `dac_kl_tile`, at given bounds `[R]`; `learned`: with their gradients.

    Where nothing may be looked at, rows that take more than the ranked classes stay open.
    """
    assert tile.ranking is not None
    zero, parts = torch.zeros_like(lower), []
    loss, clipped, q_scale = zero.clone(), zero.clone(), zero.clone()
    to_bounds = zero.new_zeros((4, zero.numel())) if learned else None
    at_limits = zero.new_zeros((len(bounds.limits), zero.numel())) if bounds.limits else None
    arguments = tile, tile.ranking, lower, upper, bounds.options, bounds.limits
    open_R: Tensor | None = None
    if devices.reading_is_free(lower.device):
        groups = selected_rows(*arguments)
    else:
        ids, selection, open_R = decided_at_once(*arguments)
        groups = iter([(None, ids, selection)])
    for rows, chosen, part in groups:
        every = slice(None) if rows is None else rows
        edges = lower[every].unsqueeze(-1), upper[every].unsqueeze(-1)
        found = clipped_rows(part, *edges, bounds.options, bounds=learned)
        if open_R is not None:
            found = _without(found, open_R)
        loss[every], clipped[every] = found.loss, found.clipped
        if to_bounds is not None and found.bounds is not None:
            for row, values in zip(to_bounds, found.bounds, strict=True):
                row[every] = values
        if at_limits is not None:
            for row, (low, high) in zip(at_limits, bounds.limits, strict=True):
                limits = torch.full_like(edges[0], low), torch.full_like(edges[1], high)
                row[every] = clipped_mass(part, *limits, bounds.options)
        if coefficient is not None:
            scale, one = _to_logits(part, rows, chosen, found, coefficient, None if base is None else base[every])
            q_scale[every] = scale
            parts.append(one)
    if coefficient is None and base is not None:
        q_scale = base
    gradient = LogitGradient(q_scale, parts)
    return TokenTerm(loss, gradient, clipped, bounds_grad=to_bounds, limits=at_limits, open=open_R)


def _to_logits(
    part: Selected,
    rows: Tensor | None,
    ids: Tensor | None,
    found: ClippedRows,
    coefficient: float,
    base: Tensor | None,
) -> tuple[Tensor, Part]:
    """`LogitGradient.q_scale` of some rows, and the rest of their gradient."""
    kept_scale = -found.total * coefficient
    if base is not None:
        kept_scale = kept_scale + base
    sparse = found.log_q * coefficient
    if ids is None:
        return kept_scale, Part(rows, None, sparse)
    # outside the selection a_k = -ratio * q_k; selected entries are set, not added: a large ratio would cancel
    scale = kept_scale - found.ratio * coefficient
    if part.last is not None and part.apart is not None:
        return scale, Part(rows, ids, sparse, Edge(kept_scale, part.last, part.apart))
    return scale, Part(rows, ids, sparse.addcmul_(part.q, kept_scale.unsqueeze(-1)))


class ClippedRows(NamedTuple):
    """DAC-KL of some rows, and a = dloss / dlog q: of the selected classes, and per unit of q outside.

    `loss [R]`. `clipped [R]`: mass of the rest bin. `log_q [R, K]`: a itself. `total [R]`: its sum over classes.
    `ratio [R]`: -dloss / dQ of the classes outside. `bounds`: the rows of `TokenTerm.bounds_grad`, `[R]` each.
    """

    loss: Tensor
    clipped: Tensor
    log_q: Tensor
    total: Tensor
    ratio: Tensor
    bounds: tuple[Tensor, Tensor, Tensor, Tensor] | None


def _without(found: ClippedRows, rows_R: Tensor) -> ClippedRows:
    """0 in some rows, whatever was there."""

    def cleared(value: Tensor) -> Tensor:
        return value.masked_fill(rows_R if value.dim() == 1 else rows_R.unsqueeze(1), 0.0)

    known, bounds = found.bounds, None
    if known is not None:
        bounds = cleared(known[0]), cleared(known[1]), cleared(known[2]), cleared(known[3])
    loss, clipped, log_q, total, ratio = (cleared(value) for value in found[:5])
    return ClippedRows(loss, clipped, log_q, total, ratio, bounds)


class RestBin(NamedTuple):
    """The rest bin: P log(P / Q), log(P / Q) (0 where P is 0) and P / Q, `[R]`; P / Q * q_k, `[R, K]`."""

    loss: Tensor
    log_ratio: Tensor
    ratio: Tensor
    share: Tensor


def _own_bin(m: Tensor, target: Tensor | None) -> Tensor:
    return m if target is None else m.scatter(1, target, 1.0)


def _with_outside(inside: Tensor, outside: Tensor | None) -> Tensor:
    return inside if outside is None else inside + outside


def clipped_mass(part: Selected, lower: Tensor, upper: Tensor, options: ClipOptions) -> Tensor:
    """Mass `[R]` of the rest bin at other bounds (`[R, 1]`): what clipping there would cost."""
    m, _ = _mask(part.c, lower, upper, options, bounds=False)
    own = _own_bin(m, part.target)
    return _with_outside(((1.0 - own) * part.p).sum(dim=-1), part.outside_p)


def clipped_rows(
    part: Selected, lower_R1: Tensor, upper_R1: Tensor, options: ClipOptions, *, bounds: bool
) -> ClippedRows:
    """DAC-KL of rows from their selected classes. `bounds`: the bounds' gradients as well."""
    m, edges = _mask(part.c, lower_R1, upper_R1, options, bounds=bounds)
    own = _own_bin(m, part.target)
    clipped = 1.0 - own
    rest_p = _with_outside((clipped * part.p).sum(dim=-1), part.outside_p)
    normalised = options.form == "normalised"
    weight = own if normalised else m
    if not normalised and part.target is not None:
        weight = m.scatter_add(1, part.target, torch.ones_like(rest_p).unsqueeze(1))
    kept_p = weight * part.p
    difference = part.log_p - part.log_q
    loss = (kept_p * difference).sum(dim=-1)
    if not devices.reading_is_free(loss.device) or not bool(torch.isfinite(loss).all()):
        # inf - inf or 0 * inf: a class without mass gives 0, whatever q is there. Only then on a CPU, where
        # comparing and filling takes many times as long as the arithmetic. NaN is not <= 0 and goes through.
        difference = difference.masked_fill(kept_p <= 0, 0.0)
        loss = (kept_p * difference).sum(dim=-1)
    if normalised:
        rest = _rest_bin(part, clipped, rest_p)
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
    return ClippedRows(loss, rest_p, grad_log_q, total, ratio, found)


def ramp_slope(value: Tensor, kind: str) -> Tensor:
    """Derivative of the ramp, from its value: 0 where the clipped ramp is flat."""
    product = torch.addcmul(value, value, value, value=-1.0)
    if kind == "sigmoid":
        return product
    # the sigmoid is value * span + tail; ceil(product) is 1 between the flat ends and 0 on them
    between = product.ceil()
    return product.mul_(RAMP_SPAN).add_(between, alpha=RAMP_TAIL * (1.0 - RAMP_TAIL) / RAMP_SPAN)


def _mask(
    c: Tensor, lower: Tensor, upper: Tensor, options: ClipOptions, *, bounds: bool
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """m, and dm / dlower and dm / dupper if asked for; a hard mask has none."""
    s = options.sharpness
    if s == 0.0:
        return clip_mask(c, lower, upper, s, options.ramp), None
    rise, fall = (c - lower).div_(s), (upper - c).div_(s)
    rise, fall = (ramp_value(x, options.ramp, out=x) for x in (rise, fall))
    if not bounds:
        return rise.mul_(fall), None
    by_lower = ramp_slope(rise, options.ramp).mul_(fall).div_(-s)
    by_upper = ramp_slope(fall, options.ramp).mul_(rise).div_(s)
    return rise.mul_(fall), (by_lower, by_upper)


def _bound_gradients(
    part: Selected, edges: tuple[Tensor, Tensor], slope: Tensor, normalised: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`TokenTerm.bounds_grad` from dm / dbound and `slope` = dloss / dm, `[R, K]`. Overwrites the edges."""
    losses, masses = [], []
    for edge in edges:
        if normalised and part.target is not None:
            # the target's two bins together don't depend on m
            edge.scatter_(1, part.target, 0.0)
        product = edge * slope
        value = product.sum(dim=-1)
        if not devices.reading_is_free(value.device) or not bool(torch.isfinite(value).all()):
            value = product.masked_fill(edge == 0, 0.0).sum(dim=-1)
        losses.append(value)
        if not normalised and part.target is not None:
            edge.scatter_(1, part.target, 0.0)
        masses.append(-(edge * part.p).sum(dim=-1))
    return losses[0], losses[1], masses[0], masses[1]


def _rest_bin(part: Selected, clipped: Tensor, rest_p: Tensor) -> RestBin:
    """The rest bin; Q is summed plainly, or in log space if one row's Q nears underflow or is not to be seen."""
    rest_q = _with_outside((clipped * part.q).sum(dim=-1), part.outside_q)
    present = rest_p > 0
    free = devices.reading_is_free(rest_q.device)
    if not free or bool((present & ~(rest_q > LEAST_EXACT[rest_q.dtype])).any()):
        return _rest_bin_in_log_space(part, clipped, rest_p)
    ratio = torch.where(present, rest_p / rest_q, torch.zeros_like(rest_p))
    log_ratio = torch.where(present, ratio, torch.ones_like(ratio)).log()
    # rest_p * 0 where it isn't positive: a NaN stays one
    return RestBin(rest_p * log_ratio, log_ratio, ratio, part.q * ratio.unsqueeze(1))


def _rest_bin_in_log_space(part: Selected, clipped: Tensor, rest_p: Tensor) -> RestBin:
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
    return RestBin(rest_p * log_ratio, log_ratio, ratio, share)
