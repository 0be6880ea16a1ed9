"""Span correlation of one tile, and its gradient to the student's probabilities.

Shapes: R rows of the tile (its last one may be the halo), P = number of pairs, V classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mgsr.losses.span import correlation_difference
from mgsr.losses.workspace import Workspace


def span_tile(
    p_RV: Tensor,
    q_RV: Tensor,
    is_pair: Tensor,
    *,
    norm: str,
    relation: str,
    scale: float | None,
    room: Workspace,
) -> tuple[Tensor, Tensor | None]:
    """Sum over the tile's pairs, and scale * d sum / d q `[R, V]` (None without pairs or without `scale`).

    Args:
        p_RV, q_RV: teacher and student.
        is_pair: entry i says that rows i, i + 1 are a pair; may be one shorter than R.
        room: memory that the gradient may lie in.
    """
    left = is_pair.nonzero().squeeze(1)
    if left.numel() == 0:
        return p_RV.new_zeros(()), None
    if relation == "hadamard" and norm == "l2_squared":
        return _hadamard(p_RV, q_RV, left, scale, room)
    return _by_autograd(p_RV, q_RV, left, norm, relation, scale)


def _hadamard(
    p_RV: Tensor, q_RV: Tensor, left_P: Tensor, scale: float | None, room: Workspace
) -> tuple[Tensor, Tensor | None]:
    """Closed form. With d = p_i p_{i+1} - q_i q_{i+1}: the loss is |d|^2, its gradient to q_i is -2 d q_{i+1}.

    All neighbours at once, without picking rows: on a CPU a copy costs as much as the arithmetic.
    """
    d = torch.mul(p_RV[:-1], p_RV[1:], out=room.take("span difference", p_RV.shape[0] - 1, p_RV.shape[1]))
    d.addcmul_(q_RV[:-1], q_RV[1:], value=-1.0)
    # one pass over d, where a product would take two
    squares = torch.linalg.vector_norm(d, dim=-1).square()
    value = squares[left_P].sum()
    if scale is None:
        return value, None
    factor = torch.zeros_like(squares)
    factor[left_P] = -2.0 * scale
    # a row outside every pair may hold anything: 0 * nan must not reach its neighbours
    if not bool(torch.isfinite(squares).all()):
        d.masked_fill_((factor == 0).unsqueeze(1), 0.0)
        in_pair = torch.zeros(q_RV.shape[0], dtype=torch.bool, device=q_RV.device)
        in_pair[left_P], in_pair[left_P + 1] = True, True
        q_RV = q_RV.masked_fill(~in_pair.unsqueeze(1), 0.0)
    d.mul_(factor.unsqueeze(1))
    g = room.take("span gradient", *q_RV.shape)
    torch.mul(d, q_RV[1:], out=g[:-1])
    g[-1] = 0.0
    g[1:].addcmul_(d, q_RV[:-1])
    return value, g


def _by_autograd(
    p_RV: Tensor, q_RV: Tensor, left_P: Tensor, norm: str, relation: str, scale: float | None
) -> tuple[Tensor, Tensor | None]:
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
    return value.detach(), g
