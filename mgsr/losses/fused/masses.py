"""The mass of all classes outside the chosen ones, which goes into DAC-KL's rest bin.

Shapes: R rows, V classes, r chosen rows, K chosen classes of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mgsr.losses.fused.workspace import Workspace

LEAST_EXACT = {dtype: 1e8 * torch.finfo(dtype).tiny for dtype in (torch.float32, torch.float64)}
"""Sums of probabilities below this may have lost parts to underflow."""
LEAST_LEFT = 0.05
"""Share of a mass that must be left for a difference to be taken: twenty times its rounding at most."""


class Before(NamedTuple):
    """Of rows whose selection was not deep enough: its depth, and both models' mass outside it, `[r]`."""

    depth: int
    outside_p: Tensor
    outside_q: Tensor


def masses_outside(
    p: Tensor, q: Tensor, before: Before | None, afresh: Callable[[Tensor | None], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Both models' mass of all classes but the chosen ones: `before` less what was chosen since, or `afresh`.

    A difference spares the pass over all classes, where enough is left for the rounding of what is taken away not
    to count.
    """
    if before is None:
        return afresh(None)
    outside_p = before.outside_p - p[:, before.depth :].sum(dim=-1)
    outside_q = before.outside_q - q[:, before.depth :].sum(dim=-1)
    sure = (outside_p > LEAST_LEFT * before.outside_p) & (outside_q > LEAST_LEFT * before.outside_q)
    unsure = (~sure).nonzero().squeeze(1)
    if unsure.numel():
        outside_p[unsure], outside_q[unsure] = afresh(unsure)
    return outside_p, outside_q


def mass_afresh(probs_RV: Tensor, ids: Tensor, rows: Tensor | None, room: Workspace) -> Tensor:
    """Probability of all classes but the given ones, of some rows (None: all).

    Zeroed and summed, not 1 - sum: what is left can be far below the rounding of 1. Of all rows, the places are
    filled again afterwards: much cheaper than a copy.
    """
    if rows is not None:
        return room.rows_of("some rows", probs_RV, rows).scatter_(1, ids, 0.0).sum(dim=-1)
    kept = probs_RV.gather(1, ids)
    probs_RV.scatter_(1, ids, 0.0)
    mass = probs_RV.sum(dim=-1)
    probs_RV.scatter_(1, ids, kept)
    return mass
