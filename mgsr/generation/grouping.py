"""Which rows of a batch are read together: ragged text in few passes with little padding.

A padded batch costs rows x longest row. Prompts have a long tail (a question alone, or a question and a page to
read), so one long row makes all others as dear as itself. A further pass has a price too: it streams all weights
once more. Rows sorted by length are cut where that makes the sum of both least.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

PASS_TOKENS = 512
"""Least price of a further pass, in token positions: with fewer of them a pass is bound by the weights it streams
rather than by arithmetic."""

PASS_WORK = 10**10
"""Least price in multiply-adds: a pass of a small model costs its calls, whatever it computes. They take some ten
milliseconds, in which a processor does a billion of them and an accelerator a thousand times as many."""


def price_of_pass(parameters: int) -> int:
    """What a further pass of a model costs, in token positions, each of which takes a multiply-add per parameter.

    >>> price_of_pass(10**5), price_of_pass(10**9)
    (100000, 512)
    """
    return max(PASS_TOKENS, PASS_WORK // max(1, parameters))


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
