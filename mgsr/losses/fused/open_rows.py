"""DAC-KL of the rows that their most probable classes do not decide, where a GPU would be waited for to know them.

There every row of a tile is computed from as many classes (`selection.ONLY_DEPTH`), and stays open where these are
not enough. When all tiles are under way it is asked once which rows did. They are few, and come again with all
their classes.

Shapes: M response rows of a call, n open ones; r of them at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mgsr.losses.fused.dac_kl import dac_kl_at
from mgsr.losses.fused.logit_gradient import TokenTerm, add_up
from mgsr.losses.fused.model_rows import ModelRows, StudentRows
from mgsr.losses.fused.response_rows import ResponseRows
from mgsr.losses.fused.selection import RowBounds
from mgsr.losses.fused.tile_models import Tile
from mgsr.losses.fused.workspace import Workspace


class OpenRows(NamedTuple):
    """Their places among the M rows, and what `TokenTerm` says of them, `[n]`."""

    place: Tensor
    loss: Tensor
    clipped: Tensor
    bounds_grad: Tensor | None
    limits: Tensor | None

    def put(self, name: str, column_M: Tensor) -> Tensor:
        """A column of per-row values with those of the open rows in their places."""
        limits = {} if self.limits is None else {"clipped_min": self.limits[0], "clipped_max": self.limits[1]}
        values = {"dac_kl": self.loss, "clipped": self.clipped, **limits}.get(name)
        return column_M if values is None else column_M.index_copy(0, self.place, values)


def close_rows(
    student: StudentRows,
    teacher: ModelRows,
    rows: ResponseRows,
    cached: Sequence[bool],
    bounds: RowBounds,
    terms: Sequence[tuple[Tensor, tuple[Tensor, Tensor]]],
    room: Workspace,
    *,
    size: int,
    temperature: float,
    scale: float,
) -> OpenRows | None:
    """What is left of DAC-KL; its gradient is pulled to the student's rows. None: nothing is.

    Args:
        cached: which of the M rows are, see `ModelRows.cached_among`.
        terms: which rows of a tile are open, and their bounds; of all tiles in order.
        size: rows at a time.
        scale: weight over denominator.
    """
    places = [place for place, is_open in enumerate(torch.cat([mask for mask, _ in terms]).tolist()) if is_open]
    if not places:
        return None
    lower_M, upper_M = (torch.cat([given[side].detach() for _, given in terms]) for side in (0, 1))
    learned = any(bound.requires_grad for _, given in terms for bound in given)
    # cached rows apart from the others: of those no hidden state is read
    groups = [[place for place in places if (bool(cached) and cached[place]) is kind] for kind in (True, False)]
    order, found = [], []
    for group in groups:
        for first in range(0, len(group), size):
            some = group[first : first + size]
            place = torch.tensor(some, device=lower_M.device)
            chosen = rows.place[place]
            logits, states = student.logits(chosen, room.take("student logits", len(some), student.width))
            known = [cached[i] for i in some if cached]
            taught, _ = teacher.logits(chosen, room.take("teacher logits", len(some), student.width), known)
            grad = None
            if student.wants_gradient and scale != 0.0:
                grad = logits if student.layer.softcap is None else room.take("gradient", *logits.shape)
            bound = lower_M[place].to(logits.dtype), upper_M[place].to(logits.dtype)
            tile = Tile.of(
                taught, logits, rows.labels[place], room,
                temperature=temperature, depth=student.width, features=0, collect=False,
                stored=teacher.stored(chosen, known),
            )  # fmt: skip
            term = dac_kl_at(tile, bounds, *bound, None if grad is None else scale, None, learned=learned)
            if grad is not None:
                assert tile.q is not None
                add_up(tile.q, term.gradient, None, grad)
                if temperature != 1.0:
                    grad.div_(temperature)
                student.pull(chosen, grad, logits, states)
            order.append(place)
            found.append(term)
    return _joined(order, found)


def _joined(order: list[Tensor], found: list[TokenTerm]) -> OpenRows:
    grads, limits = (
        None if getattr(found[0], name) is None else torch.cat([getattr(term, name) for term in found], dim=1)
        for name in ("bounds_grad", "limits")
    )
    loss, clipped = (torch.cat([getattr(term, name) for term in found]) for name in ("loss", "clipped"))
    return OpenRows(torch.cat(order), loss, clipped, grads, limits)
