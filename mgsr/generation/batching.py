"""Which rows are read together: batches that fit into memory, and within one the passes that pad least.

A padded batch costs rows x longest row. Prompts have a long tail (a question alone, or a question and a page to
read), so one long row makes all others as dear as itself. A further pass has a price too: it streams all weights
once more. Rows sorted by length are cut where that makes the sum of both least.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn

from mgsr.runtime.devices import is_out_of_memory
from mgsr.runtime.errors import UserError
from mgsr.runtime.progress import say

T = TypeVar("T")

# keys that were named already: once per process
_SAID: set[str] = set()


class FittingBatches:
    """Cuts work into batches, smaller ones from the first that memory does not suffice for.

        for batch in batches.of(items):
            try:
                ...
            except RuntimeError as error:
                batches.halve(error)
                continue

    Args:
        size: items per batch to begin with.
        key: the configuration key that is named when it has to shrink; None: never shrink.
    """

    def __init__(self, size: int, key: str | None) -> None:
        self.size, self.key = size, key
        self._first = size
        self._tried, self._again = 0, False

    def of(self, items: Sequence[T]) -> Iterator[Sequence[T]]:
        """Every batch in order; after `halve` the first half of the same one."""
        start = 0
        while start < len(items):
            batch = items[start : start + self.size]
            self._tried, self._again = len(batch), False
            yield batch
            if not self._again:
                start += len(batch)

    def halve(self, error: RuntimeError) -> None:
        """Take half of the batch that was given last, because it failed with `error`.

        Raises:
            UserError: it was one item.
            RuntimeError: the error itself, if it is of another kind or no key is named.
        """
        if self.key is None or not is_out_of_memory(error):
            raise error
        if self._tried == 1:
            raise UserError(
                f"out of memory with one sequence at a time (`{self.key}` is {self._first}): shorten "
                "data.max_length or max_new_tokens, or take a smaller model"
            ) from None
        self.size, self._again = self._tried // 2, True
        if self.key not in _SAID:
            say(
                f"out of memory with {self._tried} sequences at once: going on with {self.size}; "
                f"set {self.key} lower"
            )
            _SAID.add(self.key)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class PassPrice:
    """What a further pass costs at least, on one kind of device.

    Attributes:
        tokens: in token positions: with fewer of them a pass is bound by the weights that it streams, not by
            arithmetic.
        work: in multiply-adds: a pass of a small model costs its calls, whatever it computes; what the device
            computes meanwhile.
    """

    tokens: int
    work: int


ACCELERATOR = PassPrice(512, 10**10)
"""Calls of ten milliseconds, a thousand multiply-adds a nanosecond."""

CPU = PassPrice(64, 10**8)
"""Calls of two milliseconds, fifty multiply-adds a nanosecond."""

SHORT = 200
"""Texts of fewer tokens are scored in one pass, and read at an accelerator's price on a CPU too. Only a few per
cent of a round could be saved there, and which rows are read together decides the last digits of numbers that are
on record."""


def passes(model: nn.Module, lengths: Sequence[int], *, together_below: int = 0) -> list[list[int]]:
    """Indices of rows that a model best reads in one pass each, see `similar_lengths`.

    Args:
        together_below: where the longest text is shorter than this, all are read in one pass.
    """
    longest = max(lengths)
    if longest < together_below:
        return [list(range(len(lengths)))]
    return similar_lengths(lengths, price_of_pass(model, longest))


def price_of_pass(model: nn.Module, longest: int) -> int:
    """What a further pass of a model costs, in token positions, each of which takes a multiply-add per parameter.

    Args:
        longest: tokens of the longest text.

    >>> price_of_pass(nn.Linear(100, 1000, bias=False), SHORT), price_of_pass(nn.Linear(100, 1000, bias=False), 99)
    (1000, 100000)
    """
    weights = list(model.parameters())
    on_cpu = all(weight.device.type == "cpu" for weight in weights)
    price = CPU if on_cpu and longest >= SHORT else ACCELERATOR
    return max(price.tokens, price.work // max(1, sum(weight.numel() for weight in weights)))


def similar_lengths(lengths: Sequence[int], price: int) -> list[list[int]]:
    """Indices of rows, in groups that make `sum(rows x longest row + price)` over the groups least.

    Groups come shortest first, the rows of each in ascending order; rows of equal length stay together, and of
    equally good cuts the one with fewer groups is taken.

    >>> similar_lengths([40, 300, 41, 42] * 8, 512)[1]
    [1, 5, 9, 13, 17, 21, 25, 29]
    >>> similar_lengths([40, 41, 42], 512)
    [[0, 1, 2]]
    """
    if not lengths:
        return []
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    # rows before every place where a cut is worth thinking of: behind the last row of a length
    ends = [i + 1 for i in range(len(order)) if i + 1 == len(order) or lengths[order[i]] != lengths[order[i + 1]]]
    best: list[tuple[int, int, int]] = [(0, 0, 0)]  # cost, groups, and the cut before, of the rows up to each end
    for index, end in enumerate(ends):
        width = lengths[order[end - 1]]
        starts = [0, *ends[:index]]
        best.append(
            min(
                (best[cut][0] + (end - start) * width + price, best[cut][1] + 1, cut)
                for cut, start in enumerate(starts)
            )
        )
    cuts, at = [], len(ends)
    while at:
        cuts.append(at)
        at = best[at][2]
    bounds = [0, *(ends[cut - 1] for cut in reversed(cuts))]
    return [sorted(order[a:b]) for a, b in pairwise(bounds)]
