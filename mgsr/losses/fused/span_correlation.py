"""Span correlation of one tile. The definition is `mgsr.losses.span_correlation`.

Identity: with g the gradient to the student's probabilities, a = dL/dlog q is q * g. Of the squared Hadamard form
g is known: with d = p_i p_{i+1} - q_i q_{i+1} the loss is |d|^2, and its gradient to q_i is -2 d q_{i+1}. The
other forms give it by autograd, of the pairs' rows alone.

Shapes: R rows of the tile (its last one may be the halo), P = number of pairs, V classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mgsr.losses.fused.logit_gradient import LogitGradient, Part
from mgsr.losses.fused.workspace import Workspace
from mgsr.losses.span_correlation import correlation_difference
from mgsr.runtime import devices

SEGMENT_ELEMENTS = 250_000
"""Probabilities of each model that are worked on at a time on a CPU: what a core's own cache holds."""


def span_tile(
    p_RV: Tensor,
    q_RV: Tensor,
    is_pair: Sequence[bool],
    *,
    norm: str,
    relation: str,
    scale: float | None,
    room: Workspace,
) -> tuple[Tensor, LogitGradient | None]:
    """Sum over the tile's pairs, and scale * its gradient (None without pairs or without `scale`).

    Args:
        p_RV, q_RV: teacher and student.
        is_pair: entry i says that rows i, i + 1 are a pair; may be one shorter than R.
        room: memory that the gradient's one part `[R, V]`, a, may lie in.
    """
    places = [place for place, paired in enumerate(is_pair) if paired]
    if not places:
        return p_RV.new_zeros(()), None
    left = torch.tensor(places, device=p_RV.device)
    if relation == "hadamard" and norm == "l2_squared":
        return _hadamard(p_RV, q_RV, left, scale, room)
    return _by_autograd(p_RV, q_RV, left, norm, relation, scale)


def _segments(left_P: Tensor, rows: int, width: int) -> list[tuple[int, int]]:
    """Ranges of rows that hold every pair, none of them across two ranges.

    On a CPU as few rows as belong together, so that the passes over them meet a core's cache; short ones are
    joined up to `SEGMENT_ELEMENTS`, as a small operation costs more to call than to compute.
    """
    at_once = SEGMENT_ELEMENTS // width
    if not devices.reading_is_free(left_P.device) or rows <= at_once:
        return [(0, rows)]
    found: list[tuple[int, int]] = []
    for left in left_P.tolist():
        stop = left + 2
        if found and (left < found[-1][1] or stop - found[-1][0] <= at_once):
            found[-1] = found[-1][0], stop
        else:
            found.append((left, stop))
    return found


def _hadamard(
    p_RV: Tensor, q_RV: Tensor, left_P: Tensor, scale: float | None, room: Workspace
) -> tuple[Tensor, LogitGradient | None]:
    """Closed form: all neighbours of a segment at once.

    Rows are not picked: on a CPU a copy costs as much as the arithmetic.
    """
    count, width = q_RV.shape
    squares = p_RV.new_zeros(count - 1)
    factor = torch.zeros_like(squares)
    direction, centre = None, p_RV.new_zeros(count)
    if scale is not None:
        factor[left_P] = -2.0 * scale
        direction = room.take("span gradient", count, width)
    done = 0
    for first, stop in _segments(left_P, count, width):
        p, q = p_RV[first:stop], q_RV[first:stop]
        d = torch.mul(p[:-1], p[1:], out=room.take("span difference", stop - first - 1, width))
        d.addcmul_(q[:-1], q[1:], value=-1.0)
        # one pass over d, where a product would take two
        here = torch.linalg.vector_norm(d, dim=-1).square()
        squares[first : stop - 1] = here
        if direction is None:
            continue
        factors = factor[first : stop - 1]
        # a row outside every pair may hold anything: 0 * nan must not reach its neighbours
        if not devices.reading_is_free(here.device) or not bool(torch.isfinite(here).all()):
            d.masked_fill_((factors == 0).unsqueeze(1), 0.0)
            in_pair = torch.zeros(stop - first, dtype=torch.bool, device=q.device)
            in_pair[:-1] |= factors != 0
            in_pair[1:] |= factors != 0
            q = q.masked_fill(~in_pair.unsqueeze(1), 0.0)
        d.mul_(factors.unsqueeze(1))
        g = direction[first:stop]
        torch.mul(d, q[1:], out=g[:-1])
        g[-1] = 0.0
        g[1:].addcmul_(d, q[:-1])
        # q * g and its sum in two passes: quicker than a dot product, and the last pass needs no g
        centre[first:stop] = g.mul_(q).sum(dim=-1)
        direction[done:first] = 0.0
        done = stop
    value = squares[left_P].sum()
    if direction is None:
        return value, None
    direction[done:] = 0.0
    return value, _gradient(direction, centre)


def _by_autograd(
    p_RV: Tensor, q_RV: Tensor, left_P: Tensor, norm: str, relation: str, scale: float | None
) -> tuple[Tensor, LogitGradient | None]:
    q_left, q_right = q_RV[left_P], q_RV[left_P + 1]
    with torch.set_grad_enabled(scale is not None):
        for tensor in (q_left, q_right):
            tensor.requires_grad_(scale is not None)
        value = correlation_difference(
            p_RV[left_P], p_RV[left_P + 1], q_left, q_right, norm=norm, relation=relation
        ).sum()
    if scale is None:
        return value, None
    grads = torch.autograd.grad(value, (q_left, q_right), torch.full_like(value, scale))
    g = torch.zeros_like(q_RV)
    for rows, grad in zip((left_P, left_P + 1), grads, strict=True):
        g.index_add_(0, rows, grad)
    g.mul_(q_RV)
    return value.detach(), _gradient(g, g.sum(dim=-1))


def _gradient(a_RV: Tensor, sum_R: Tensor) -> LogitGradient:
    return LogitGradient(sum_R.neg(), [Part(None, None, a_RV)])
