"""A teacher's distribution from its k most probable classes and the mass of all others.

The others share that mass evenly. In DAC-KL their quantile is 1: bounds below 1 clip them all into the rest bin,
whose mass is known. At given bounds DAC-KL sees no difference as long as everything it keeps lies within the k
classes; elsewhere, the teacher's entropy included, the error is measured by `cache_error`.

Shapes: n cached rows, R rows of a tile, K classes kept, V classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class CachedRows(NamedTuple):
    """Cached distributions of some rows.

    Attributes:
        rows: `[n]`, which rows of the call they stand for.
        log_probs: `[n, K]`, at temperature 1.
        ids: `[n, K]`, their classes.
        log_tail: `[n]`, log of the mass of all other classes; -inf for none.
    """

    rows: Tensor
    log_probs: Tensor
    ids: Tensor
    log_tail: Tensor


class StoredRanking(NamedTuple):
    """Which of a tile's rows come from a cache, and their most probable classes.

    Attributes:
        rows: `[r]`, places among the tile's R rows; `others`: those of the other rows.
        ids: `[r, K]`, classes in descending order.
        known: `[R]`, how many classes of a row are known: K, or all of one that is not cached.
    """

    rows: Tensor
    ids: Tensor
    known: Tensor
    others: Tensor

    def ids_to(self, depth: int) -> Tensor:
        """`[r, depth]`: behind the stored classes come the others, which tie, by smaller id; depth <= V."""
        few = self.ids[:, :depth].long()
        missing = depth - few.shape[1]
        if missing == 0:
            return few
        # of the first `depth` ids at least so many are not among them
        member = torch.zeros(len(few), depth + 1, dtype=torch.bool, device=few.device)
        member.scatter_(1, few.clamp_max(depth), True)
        others = member[:, :depth].sort(dim=-1, stable=True).indices
        return torch.cat([few, others[:, :missing]], dim=-1)


def top_of_logits(logits_RV: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest log-probabilities, their classes and the log of the mass outside: `[R, K]`, `[R, K]`, `[R]`.

    Raises:
        ValueError: k is not within 1 and V.

    >>> values, ids, tail = top_of_logits(torch.tensor([[0.0, 1.0, 2.0]]), 2)
    >>> ids.tolist(), round(float(values.exp().sum() + tail.exp()), 6)
    ([[2, 1]], 1.0)
    """
    if not 0 < k <= logits_RV.shape[-1]:
        raise ValueError(f"k must be within 1 and {logits_RV.shape[-1]}, got {k}")
    log_probs = torch.log_softmax(logits_RV, dim=-1)
    values, ids = log_probs.topk(k, dim=-1)
    # summed over the others, not 1 - sum: what is left can be far below the rounding of 1
    log_tail = log_probs.scatter(1, ids, -math.inf).logsumexp(dim=-1)
    return values, ids, log_tail


def restored_logits(
    log_probs_RK: Tensor, ids_RK: Tensor, log_tail_R: Tensor, width: int, out: Tensor | None = None
) -> Tensor:
    """Log-probabilities `[R, V]` with the tail spread evenly, in `out` where it is given."""
    others = width - ids_RK.shape[-1]
    share_R = log_tail_R - math.log(others) if others else torch.full_like(log_tail_R, -math.inf)
    logits = log_tail_R.new_empty(len(share_R), width) if out is None else out
    return logits.copy_(share_R.unsqueeze(1)).scatter_(1, ids_RK.long(), log_probs_RK.to(logits.dtype))


def cache_error(logits_RV: Tensor, k: int) -> Tensor:
    """KL of every row, in nats, from the teacher's distribution to what the cache keeps of it: `[R]`.

    Both agree on the k classes, so it is the tail's mass times the KL of its shape from the even one.
    """
    log_probs = torch.log_softmax(logits_RV, dim=-1)
    values, ids, log_tail = top_of_logits(logits_RV, k)
    difference = log_probs - restored_logits(values, ids, log_tail, logits_RV.shape[-1])
    return torch.where(log_probs.exp() > 0, log_probs.exp() * difference, 0.0).sum(dim=-1).clamp_min(0.0)
