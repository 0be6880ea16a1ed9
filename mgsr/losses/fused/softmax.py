"""One model's view of a tile: probabilities, and log-probabilities made only where they are read.

Every pass over `[R, V]` counts on a CPU, so no log-probabilities of a whole tile are kept.

Shapes: R rows, V classes, K chosen classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mgsr.losses.fused.gather_classes import pick
from mgsr.losses.fused.workspace import Workspace

RARE = 1e-8
"""A probability that log-probabilities are not measured from."""


class Side(NamedTuple):
    """Logits over the temperature and their softmax, `[R, V]`; one class's logit and log-probability, `[R]`.

    log p_k = (z_k - base) + log_base: the difference first, so that large logits lose nothing.
    """

    logits: Tensor
    probs: Tensor
    base: Tensor
    log_base: Tensor

    @staticmethod
    def of(logits_RV: Tensor, probable_R1: Tensor | None = None, *, out: Tensor | None = None) -> Side:
        """Of logits over the temperature.

        Args:
            probable_R1: a class of every row that is likely not to be rare; saves looking for the largest.
            out: takes the probabilities.
        """
        probs_RV = torch.softmax(logits_RV, dim=-1, out=out)
        if probable_R1 is not None:
            base, prob = (tensor.gather(1, probable_R1).squeeze(1) for tensor in (logits_RV, probs_RV))
            # further down the difference of logits, and below the smallest normal number p itself, round away
            if bool((prob > RARE).all()):
                return Side(logits_RV, probs_RV, base, prob.log())
        if logits_RV.numel() == 0:
            empty_R = logits_RV.new_zeros(logits_RV.shape[0])
            return Side(logits_RV, probs_RV, empty_R, empty_R)
        return Side(logits_RV, probs_RV, logits_RV.amax(dim=-1), probs_RV.amax(dim=-1).log())

    def first(self, count: int) -> Side:
        """The first `count` rows."""
        return Side(*(tensor[:count] for tensor in self))

    def rows(self, rows: Tensor | None) -> Side:
        """Some rows, copied; None: all of them, as they are."""
        return self if rows is None else Side(*(tensor[rows] for tensor in self))

    def log_probs(self, ids_RK: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """Log-probabilities of some classes (None: all) of some rows (None: all)."""
        logits, base, log_base = self.logits, self.base, self.log_base
        if rows is not None:
            base, log_base = base[rows], log_base[rows]
        if ids_RK is not None:
            logits = pick(logits, rows, ids_RK)
        elif rows is not None:
            logits = logits[rows]
        return (logits - base.unsqueeze(1)).add_(log_base.unsqueeze(1))

    def mass_outside(self, ids_RK: Tensor, rows: Tensor | None, room: Workspace) -> Tensor:
        """Probability of all classes but the given ones.

        Zeroed and summed, not 1 - sum: what is left can be far below the rounding of 1. Of all rows, the places
        are filled again afterwards: much cheaper than a copy.
        """
        if rows is None:
            kept = self.probs.gather(1, ids_RK)
            self.probs.scatter_(1, ids_RK, 0.0)
            mass = self.probs.sum(dim=-1)
            self.probs.scatter_(1, ids_RK, kept)
            return mass
        return room.rows_of("some rows", self.probs, rows).scatter_(1, ids_RK, 0.0).sum(dim=-1)

    def entropy(self) -> Tensor:
        """Entropy of every row in nats; classes of probability 0 contribute 0."""
        shifted = self.logits - self.base.unsqueeze(1)
        expected = torch.linalg.vecdot(self.probs, shifted)
        if bool(torch.isnan(expected).any()):
            # 0 * -inf
            lowest = torch.finfo(shifted.dtype).min
            expected = torch.linalg.vecdot(self.probs, shifted.clamp_min_(lowest))
        return -(expected + self.log_base)
