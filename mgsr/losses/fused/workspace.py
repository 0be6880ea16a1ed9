"""What a tile is worked on with: memory that is used again, chosen classes, softmaxes.

On a CPU a fresh buffer of a few megabytes costs more than the arithmetic that fills it: the kernel hands it out
page by page, zeroed, and takes it back when it is freed. Every pass over `[R, V]` counts there as well, so no
log-probabilities of a whole tile are kept.

Shapes: R rows, V classes, r chosen rows, K chosen classes of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mgsr.runtime import devices

RARE = 1e-8
"""A probability that log-probabilities are not measured from."""


class Workspace:
    """Named buffers of one dtype on one device. What `take` returned is valid until the name is taken again.

    >>> room = Workspace(torch.device("cpu"), torch.float32)
    >>> first = room.take("logits", 2, 5).fill_(1.0)
    >>> second = room.take("logits", 2, 3)
    >>> first.data_ptr() == second.data_ptr(), tuple(second.shape)
    (True, (2, 3))
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, width: int) -> Tensor:
        """An uninitialised, contiguous `[rows, width]`; grows what the name holds where that is too small."""
        size = rows * width
        held = self._held.get(name)
        if held is None or held.numel() < size:
            # Each growth leaves a hole in the heap. So there is room for a halo row from the start, and whoever
            # needs more again gets plenty; the old buffer goes first.
            size = size + width if held is None else max(size, 2 * held.numel())
            self._held.pop(name, None)
            held = self._held[name] = torch.empty(size, device=self.device, dtype=self.dtype)
        return held[: rows * width].view(rows, width)

    def rows_of(self, name: str, source_RV: Tensor, rows: Tensor) -> Tensor:
        """A copy of some rows."""
        return torch.index_select(source_RV, 0, rows, out=self.take(name, rows.numel(), source_RV.shape[1]))


def places_of(rows_r: Tensor | None, ids_rK: Tensor, width: int) -> Tensor:
    """Flat positions `[r, K]` in a contiguous `[R, width]`. rows None: the first r."""
    if rows_r is None:
        rows_r = torch.arange(ids_rK.shape[0], device=ids_rK.device)
    return ids_rK + (rows_r * width).unsqueeze(1)


def gather_classes(values_RV: Tensor, rows_r: Tensor | None, ids_rK: Tensor) -> Tensor:
    """A copy `[r, K]` of the entries.

    >>> gather_classes(torch.arange(6).view(2, 3), torch.tensor([1]), torch.tensor([[2, 0]]))
    tensor([[5, 3]])
    """
    if rows_r is None:
        return values_RV[: ids_rK.shape[0]].gather(1, ids_rK)
    return torch.take(values_RV, places_of(rows_r, ids_rK, values_RV.shape[1]))


def scatter_classes(
    target_RV: Tensor, rows_r: Tensor | None, ids_rK: Tensor, values_rK: Tensor, *, add: bool = False
) -> None:
    """Write the entries of a contiguous tensor, or add to them; the classes of a row must differ.

    >>> target = torch.zeros(2, 3)
    >>> scatter_classes(target, None, torch.tensor([[2, 0]]), torch.tensor([[7.0, 8.0]]))
    >>> target
    tensor([[8., 0., 7.],
            [0., 0., 0.]])
    """
    target_RV.put_(places_of(rows_r, ids_rK, target_RV.shape[1]), values_rK, accumulate=add)


class Ranking(NamedTuple):
    """The K most probable classes of every row, descending: log-probabilities and ids `[R, K]`."""

    values: Tensor
    ids: Tensor


class Softmax(NamedTuple):
    """Logits over the temperature and their softmax, `[R, V]`; one class's logit and log-probability, `[R]`.

    log p_k = (z_k - base) + log_base: the difference first, so that large logits lose nothing. Compiled loops keep
    no probabilities, and have found the entropy `[R]` along.
    """

    logits: Tensor
    kept: Tensor | None
    base: Tensor
    log_base: Tensor
    known_entropy: Tensor | None = None

    @property
    def probs(self) -> Tensor:
        """Made anew, where they are not kept."""
        return torch.softmax(self.logits, dim=-1) if self.kept is None else self.kept

    @staticmethod
    def of(logits_RV: Tensor, probable_R1: Tensor | None = None, *, out: Tensor | None = None) -> Softmax:
        """Of logits over the temperature.

        Args:
            probable_R1: a class of every row that is likely not to be rare; saves looking for the largest, where
                it may be asked whether it is.
            out: takes the probabilities.
        """
        probs_RV = torch.softmax(logits_RV, dim=-1, out=out)
        if probable_R1 is not None and devices.reading_is_free(logits_RV.device):
            base, prob = (tensor.gather(1, probable_R1).squeeze(1) for tensor in (logits_RV, probs_RV))
            # further down the difference of logits, and below the smallest normal number p itself, round away
            rare = (~(prob > RARE)).nonzero().squeeze(1)
            for values, own in ((logits_RV, base), (probs_RV, prob)):
                if rare.numel():
                    own[rare] = values[rare].amax(dim=-1)
            return Softmax(logits_RV, probs_RV, base, prob.log())
        if logits_RV.numel() == 0:
            empty_R = logits_RV.new_zeros(logits_RV.shape[0])
            return Softmax(logits_RV, probs_RV, empty_R, empty_R)
        return Softmax(logits_RV, probs_RV, logits_RV.amax(dim=-1), probs_RV.amax(dim=-1).log())

    def first(self, count: int) -> Softmax:
        """The first `count` rows."""
        return self._each(lambda tensor: tensor[:count])

    def rows(self, rows: Tensor | None) -> Softmax:
        """Some rows, copied; None: all of them, as they are."""
        return self if rows is None else self._each(lambda tensor: tensor[rows])

    def _each(self, part: Callable[[Tensor], Tensor]) -> Softmax:
        chosen: list[Any] = [None if tensor is None else part(tensor) for tensor in self]
        return Softmax(*chosen)

    def log_probs(self, ids_RK: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """Log-probabilities of some classes (None: all) of some rows (None: all)."""
        logits, base, log_base = self.logits, self.base, self.log_base
        if rows is not None:
            base, log_base = base[rows], log_base[rows]
        if ids_RK is not None:
            logits = gather_classes(logits, rows, ids_RK)
        elif rows is not None:
            logits = logits[rows]
        return (logits - base.unsqueeze(1)).add_(log_base.unsqueeze(1))

    def ranked(self, values: Tensor, ids: Tensor, rows: Tensor | None = None) -> Ranking:
        """Of the logits `values [r, K]` of some rows (None: all) and their classes."""
        base, log_base = (self.base, self.log_base) if rows is None else (self.base[rows], self.log_base[rows])
        return Ranking((values - base.unsqueeze(1)).add_(log_base.unsqueeze(1)), ids)

    def entropy(self) -> Tensor:
        """Entropy of every row in nats; classes of probability 0 contribute 0."""
        if self.known_entropy is not None:
            return self.known_entropy
        shifted = self.logits - self.base.unsqueeze(1)
        free, lowest = devices.reading_is_free(shifted.device), torch.finfo(shifted.dtype).min
        expected = torch.linalg.vecdot(self.probs, shifted if free else shifted.clamp_min_(lowest))
        if free and bool(torch.isnan(expected).any()):
            # 0 * -inf
            expected = torch.linalg.vecdot(self.probs, shifted.clamp_min_(lowest))
        return -(expected + self.log_base)
