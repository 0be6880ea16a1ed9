"""One model's view of a tile: probabilities, and log-probabilities made only where they are read.

Every pass over `[R, V]` counts on a CPU, so no log-probabilities of a whole tile are kept.

Shapes: R rows, V classes, K chosen classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Side(NamedTuple):
    """Logits over the temperature and their softmax, `[R, V]`; the largest logit and its log-probability, `[R]`.

    log p_k = (z_k - top) + log_top: the difference first, so that large logits lose nothing.
    """

    logits: Tensor
    probs: Tensor
    top: Tensor
    log_top: Tensor

    @staticmethod
    def of(logits_RV: Tensor, top_ids_R1: Tensor | None = None) -> Side:
        """Of logits over the temperature; `top_ids`: their largest classes, where they are known."""
        probs_RV = torch.softmax(logits_RV, dim=-1)
        if top_ids_R1 is not None:
            best = (tensor.gather(1, top_ids_R1).squeeze(1) for tensor in (logits_RV, probs_RV))
            top, prob = best
            return Side(logits_RV, probs_RV, top, prob.log())
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
        logits, top, log_top = self.logits, self.top, self.log_top
        if rows is not None:
            top, log_top = top[rows], log_top[rows]
            logits = logits[rows] if ids_RK is None else logits[rows.unsqueeze(1), ids_RK]
        elif ids_RK is not None:
            logits = logits.gather(1, ids_RK)
        return self._from(logits, top, log_top)

    @staticmethod
    def _from(logits: Tensor, top: Tensor, log_top: Tensor) -> Tensor:
        return (logits - top.unsqueeze(1)).add_(log_top.unsqueeze(1))

    def mass_outside(self, ids_RK: Tensor, rows: Tensor | None = None) -> Tensor:
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
        return self.probs[rows].scatter_(1, ids_RK, 0.0).sum(dim=-1)

    def entropy(self) -> Tensor:
        """Entropy of every row in nats; classes of probability 0 contribute 0."""
        shifted = self.logits - self.top.unsqueeze(1)
        expected = torch.linalg.vecdot(self.probs, shifted)
        if bool(torch.isnan(expected).any()):
            # 0 * -inf
            lowest = torch.finfo(shifted.dtype).min
            expected = torch.linalg.vecdot(self.probs, shifted.clamp_min_(lowest))
        return -(expected + self.log_top)
