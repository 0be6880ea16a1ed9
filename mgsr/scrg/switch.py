"""Where a teacher takes a text over: the first position at which the two models are too far apart.

Shapes: N response positions of all sequences end to end, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch

from mgsr.losses.divergences import forward_kl, jensen_shannon
from mgsr.scrg.records import TokenLogits

MEASURES = {"kl": forward_kl, "jsd": jensen_shannon}
"""KL(p || q), and the Jensen-Shannon divergence of beta 1/2; both in nats."""


def divergences(
    teacher: TokenLogits,
    student: TokenLogits,
    lengths: Sequence[int],
    measure: str,
    vocab_size: int | None = None,
    *,
    tile_size: int = 256,
) -> list[list[float]]:
    """A measure at every response position, by sequence.

    Args:
        lengths: of the responses, in their order; measure: a name in `MEASURES`.

    Raises:
        ValueError: the lengths are not those of the scores.
    """
    total = sum(lengths)
    if len(teacher) != total or len(student) != total:
        raise ValueError(f"{total} tokens, but scores of {len(teacher)} (teacher) and {len(student)} (student)")
    values: list[float] = []
    for start in range(0, total, tile_size):
        rows = slice(start, min(start + tile_size, total))
        taught = teacher[rows][:, :vocab_size]
        own = student[rows][:, :vocab_size].to(taught.device)
        with torch.no_grad():
            values += MEASURES[measure](taught, own).tolist()
    rest = iter(values)
    return [list(islice(rest, length)) for length in lengths]


def first_above(values: Sequence[float], threshold: float) -> int | None:
    """The first position with a value above `threshold`.

    >>> first_above([0.1, 0.4, 0.9], 0.3), first_above([0.1], 0.3)
    (1, None)
    """
    return next((place for place, value in enumerate(values) if value > threshold), None)


def first_above_recent(values: Sequence[float], factor: float, window: int) -> int | None:
    """The first position whose value is above `factor` times the mean of the `window` before it.

    >>> first_above_recent([1.0, 1.0, 1.0, 5.0], 3.0, 2), first_above_recent([9.0, 0.1, 0.1], 3.0, 2)
    (3, None)
    """
    for place in range(window, len(values)):
        if values[place] > factor * sum(values[place - window : place]) / window:
            return place
    return None
