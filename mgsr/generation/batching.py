"""Which rows of a batch are read together: ragged text in few passes with little padding.

A padded batch costs rows x longest row. Prompts have a long tail (a question alone, or a question and a page to
read), so one long row makes all others as dear as itself. A further pass has a price too: it streams all weights
once more. Rows sorted by length are cut where that makes the sum of both least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn


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
