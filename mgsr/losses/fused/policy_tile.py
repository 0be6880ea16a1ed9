"""The policy objective on one tile of tokens, and its two ingredients; see `policy_gradient` for the symbols.

Shapes: B sequences, T positions, N = B T rows, R rows of a tile, V classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mgsr.losses.clipping import entropy


def reward_to_go(rewards_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean of the rewards that follow a token in its response (section 2.2, "length normalization").

    Args:
        rewards_BT: `[B, T]`; whatever stands outside `mask` is not read.
        mask_BT: `[B, T]`, True on the tokens of the one response of each row.

    Returns:
        `[B, T]`, 0 where nothing follows and outside `mask`.

    >>> reward_to_go(torch.tensor([[9.0, 1.0, 2.0, 4.0, 9.0]]), torch.tensor([[False, True, True, True, False]]))
    tensor([[0., 3., 4., 0., 0.]])
    """
    zeros = torch.zeros_like(rewards_BT)
    kept = torch.where(mask_BT, rewards_BT, zeros)
    total, count = (_following(values) for values in (kept, mask_BT.to(rewards_BT.dtype)))
    return torch.where(mask_BT & (count > 0), total / count.clamp(min=1), zeros)


def _following(values_BT: Tensor) -> Tensor:
    """Sum of the entries strictly to the right; shifted, not subtracted, so that it is exact and keeps inf."""
    inclusive = values_BT.flip(-1).cumsum(-1).flip(-1)
    return torch.nn.functional.pad(inclusive[..., 1:], (0, 1))


def clipped_surrogate(ratio: Tensor, advantage: Tensor, importance_clip: float) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic surrogate max(-rho A, -clip(rho) A), and its derivative to log rho.

    Args:
        ratio: rho, any shape.
        advantage: A, same shape.
        importance_clip: eps; rho is clipped to [1 - eps, 1 + eps]. inf: never.

    Returns:
        Surrogate and derivative, same shape, without a graph. The derivative is 0 where clipping is in force.

    >>> clipped_surrogate(torch.tensor([1.5, 1.5]), torch.tensor([2.0, -2.0]), 0.25)
    (tensor([-2.5000,  3.0000]), tensor([0., 3.]))
    """
    if not importance_clip >= 0:
        raise ValueError(f"importance_clip must be at least 0, got {importance_clip}")
    ratio, advantage = ratio.detach(), advantage.detach()
    plain = -ratio * advantage
    clipped = -ratio.clamp(1.0 - importance_clip, 1.0 + importance_clip) * advantage
    over = (advantage > 0) & (ratio > 1.0 + importance_clip)
    under = (advantage < 0) & (ratio < 1.0 - importance_clip)
    return torch.maximum(plain, clipped), plain.masked_fill(over | under, 0.0)


class PolicyWork(NamedTuple):
    """What is computed, alike for every tile. `labels` and `behaviour` (log p~ of them) are `[N]`."""

    labels: Tensor
    behaviour: Tensor
    scale: float
    importance_clip: float
    need_grad: bool
    collect: bool


class PolicyTile(NamedTuple):
    """Per-row values `[R]`, and the scaled gradient `[R, V]` to the student's logits."""

    loss: Tensor
    reverse_kl: Tensor
    teacher_log_prob: Tensor
    teacher_entropy: Tensor | None
    grad_logits: Tensor | None


def policy_tile(
    student_logits: Tensor,
    teacher_logits: Tensor,
    rows: Tensor,
    advantage_of: Callable[[Tensor], Tensor],
    work: PolicyWork,
) -> PolicyTile:
    """w KL(q || p) + long of a tile's tokens. Their gradient to the logits, before scaling, is

    w q (log q - log p - KL(q || p)) + d long / d log rho * (onehot(y) - q)
    """
    log_q, log_p = torch.log_softmax(student_logits, dim=-1), torch.log_softmax(teacher_logits, dim=-1)
    column = work.labels[rows].unsqueeze(1)
    own, given = (log_probs.gather(1, column).squeeze(1) for log_probs in (log_q, log_p))
    ratio = (own - work.behaviour[rows]).exp()
    long, slope = clipped_surrogate(ratio, advantage_of(given - own), work.importance_clip)
    teacher_entropy = entropy(log_p, log_p.exp()) if work.collect else None
    q = log_q.exp()
    # classes without mass contribute nothing, also where log q - log p is inf - inf
    difference = torch.where(q > 0, log_q.sub_(log_p), 0.0)
    reverse_kl = (q * difference).sum(dim=-1)
    grad = None
    if work.need_grad:
        grad = difference.sub_(reverse_kl.unsqueeze(1)).mul_(ratio.unsqueeze(1)).sub_(slope.unsqueeze(1)).mul_(q)
        grad.scatter_add_(1, column, slope.unsqueeze(1)).mul_(work.scale)
    return PolicyTile(ratio * reverse_kl + long, reverse_kl, given, teacher_entropy, grad)
