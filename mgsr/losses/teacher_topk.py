"""A teacher's distribution from its k most probable classes and the mass of all others.

The others share that mass evenly. At given bounds DAC-KL sees no difference as long as everything it keeps lies
within the k classes; elsewhere, the teacher's entropy included, the error is measured by `cache_error`.

Shapes: n cached rows, R rows of a tile, K classes kept, V classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mgsr.losses.fused.projection import Head


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


def restored_logits(log_probs_RK: Tensor, ids_RK: Tensor, log_tail_R: Tensor, width: int) -> Tensor:
    """Log-probabilities `[R, V]` with the tail spread evenly."""
    others = width - ids_RK.shape[-1]
    share_R = log_tail_R - math.log(others) if others else torch.full_like(log_tail_R, -math.inf)
    logits = share_R.unsqueeze(1).expand(-1, width).clone()
    return logits.scatter_(1, ids_RK.long(), log_probs_RK.to(logits.dtype))


def cache_error(logits_RV: Tensor, k: int) -> Tensor:
    """KL of every row, in nats, from the teacher's distribution to what the cache keeps of it: `[R]`.

    Both agree on the k classes, so it is the tail's mass times the KL of its shape from the even one.
    """
    log_probs = torch.log_softmax(logits_RV, dim=-1)
    values, ids, log_tail = top_of_logits(logits_RV, k)
    difference = log_probs - restored_logits(values, ids, log_tail, logits_RV.shape[-1])
    return torch.where(log_probs.exp() > 0, log_probs.exp() * difference, 0.0).sum(dim=-1).clamp_min(0.0)


class TeacherRows:
    """Teacher logits of any slice of the response rows: from hidden states, or from the cache where it has them.

    Args:
        head: the output layer.
        hidden_NH: states of all N rows of the call; those of cached rows are not read.
        kept_M: which of them are response rows.
        cached: None: no row is.
    """

    def __init__(self, head: Head, hidden_NH: Tensor, kept_M: Tensor, cached: CachedRows | None) -> None:
        self.head, self.hidden_NH, self.kept_M, self.cached = head, hidden_NH, kept_M, cached
        self.place_M: Tensor | None = None
        if cached is not None:
            place_N = torch.full((len(hidden_NH),), -1, dtype=torch.int64, device=kept_M.device)
            place_N[cached.rows] = torch.arange(len(cached.rows), device=kept_M.device)
            self.place_M = place_N[kept_M]

    def logits(self, start: int, end: int, out: Tensor | None = None) -> Tensor:
        """`[end - start, V]`, in `out` where that is given and no row is cached."""
        hidden = self.hidden_NH[self.kept_M[start:end]].to(self.head.dtype)
        if self.place_M is None:
            return self.head.project(hidden, out)
        assert self.cached is not None
        place = self.place_M[start:end]
        known = place >= 0
        if not bool(known.any()):
            return self.head.project(hidden, out)
        chosen = place[known]
        restored = restored_logits(
            self.cached.log_probs[chosen].to(hidden.dtype),
            self.cached.ids[chosen],
            self.cached.log_tail[chosen].to(hidden.dtype),
            self.head.width,
        )
        if bool(known.all()):
            return restored
        logits = hidden.new_empty(end - start, self.head.width)
        logits[known] = restored
        logits[~known] = self.head.project(hidden[~known])
        return logits
