"""Which classes of a tile DAC-KL reads: the most probable ones, and all of them only where it must.

With the clipped ramp the mask is exactly 0 for every class with c_k >= upper + 4 s, so that the few hundred most
probable classes hold all that is kept; the others only add to the rest bin.

Shapes: R rows, V classes, K selected classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mgsr.losses.clip_bounds import RAMP_REACH, ClipOptions, ranked_quantile
from mgsr.losses.fused.masses import LEAST_EXACT, Before, mass_afresh, masses_outside
from mgsr.losses.fused.tile_models import Tile
from mgsr.losses.fused.workspace import Ranking, Softmax
from mgsr.losses.ranking import top_classes
from mgsr.runtime import devices

DEPTHS = (256, 1024, 4096, 16384)
"""Classes selected at first, then for the rows which those don't cover; what is left takes a full sort."""
Limits = tuple[tuple[float, float], ...]
ONLY_DEPTH = 2048
"""Classes selected where it is not to be asked which rows those cover; what is left then comes last of all."""


class RowBounds:
    """Bounds of the rows of one call, handed out tile by tile.

    Attributes:
        features: classes in the summary that the module asks for; 0 = it reads logits, or there is none.
        depth: classes of the first selection; 0 where no row needs one.
        price: of a unit of clipped mass, from a priced module.
        keeps_all: every class is kept in the normalised form: the full KL.
        limits: the bounds of a priced module that clip least and most, where they are to be looked at.
    """

    def __init__(
        self, clip: Any, options: ClipOptions, kept_M: Tensor, rows: int, dtype: torch.dtype, *, collect: bool
    ) -> None:
        self.options, self.keeps_all = options, False
        self._module: Any = None
        self._given: tuple[Tensor, Tensor] | None = None
        self._grad = torch.is_grad_enabled()
        if isinstance(clip, (tuple, list)):
            if len(clip) != 2:
                raise ValueError(f"clip must be (lower, upper) or a module, got {len(clip)} values")
            if options.form == "normalised" and not any(isinstance(bound, Tensor) for bound in clip):
                self.keeps_all = clip[0] <= -options.margin and clip[1] >= 1.0 + options.margin
            lower, upper = (torch.as_tensor(b, dtype=dtype, device=kept_M.device) for b in clip)
            self._given = (lower.expand(rows)[kept_M], upper.expand(rows)[kept_M])
        elif callable(clip):
            self._module = clip
        else:
            raise ValueError(f"clip must be (lower, upper) or a module that returns them, got {clip!r}")
        self.features = int(getattr(clip, "summary_features", 0))
        first = DEPTHS[0] if devices.reading_is_free(kept_M.device) else ONLY_DEPTH
        self.depth = 0 if self.keeps_all else max(first, self.features)
        self.price: Tensor | None = None
        self.limits: Limits = ()
        if getattr(clip, "objective", None) == "priced":
            self.price = self._module.price.detach()
            if collect:
                least, most = -RAMP_REACH * options.sharpness, float(clip.lower_max)
                self.limits = ((least, float(clip.upper_max)), (most, float(clip.upper_min)))

    def tile(self, start: int, tile: Tile) -> tuple[Tensor, Tensor]:
        """Bounds of a tile whose first row is row `start`, in the grad mode that the object was made in."""
        with torch.set_grad_enabled(self._grad):
            if self._given is not None:
                lower, upper = (bound[start : start + tile.labels.numel()] for bound in self._given)
            elif tile.summary is not None:
                lower, upper = self._module(summary=tile.summary)
            else:
                lower, upper = self._module(tile.teacher.logits.detach(), tile.student.logits.detach())
        return lower, upper


class Selected(NamedTuple):
    """What is read of the selected classes, `[R, K]` each, and of all others together, `[R]`.

    `target [R, 1]` is the column of the target class, None where it has no bin of its own. `last`, `apart [R]` say
    for compiled loops which classes are selected, see `row_loops.masses_outside`.
    """

    log_p: Tensor
    log_q: Tensor
    p: Tensor
    q: Tensor
    c: Tensor
    target: Tensor | None
    outside_p: Tensor | None = None
    outside_q: Tensor | None = None
    last: Tensor | None = None
    apart: Tensor | None = None


def _ranked(teacher: Softmax, rows: Tensor | None, depth: int) -> Ranking:
    """The `depth` most probable classes of some rows, from the logits: they are in the same order."""
    return teacher.ranked(*top_classes(teacher.logits, depth, rows), rows)


def selected_rows(
    tile: Tile,
    ranking: Ranking,
    lower_R: Tensor,
    upper_R: Tensor,
    options: ClipOptions,
    limits: Limits = (),
) -> Iterator[tuple[Tensor | None, Tensor | None, Selected]]:
    """Rows with the classes that decide them: (rows or None for all, ids or None for all classes, selection).

    `limits`: other pairs of bounds, at which the classes must do too.

    A row may come again with more classes, the former among them: the later counts. Sorting the covered rows of
    a group out would cost more than to compute a few twice. Rows with all classes come in no other group.
    """
    width, target_R = tile.teacher.logits.shape[-1], _target(tile, ranking, options)
    if ranking.ids.shape[-1] == width:
        yield None, None, _all_classes(tile, ranking, target_R, options, None)
        return
    reach_R, empty_R = _reach(lower_R, upper_R, options, limits)
    # where everything up to the end of the ranking may be kept, no selection can be enough
    needs_all_classes_R = ~(empty_R | (reach_R <= 1.0))
    left = (~needs_all_classes_R).nonzero().squeeze(1)
    unsettled = [needs_all_classes_R.nonzero().squeeze(1)]
    groups: list[tuple[Tensor | None, Tensor, Selected]] = []
    before: Before | None = None
    # a clip network's summary may have asked for more classes than the first depth
    first = ranking.ids.shape[-1]
    for depth in (first, *(deeper for deeper in DEPTHS if deeper > first)):
        if left.numel() == 0 or depth >= width:
            break
        rows = None if left.numel() == lower_R.numel() else left
        if depth != first:
            ranked = _ranked(tile.teacher, rows, depth)
        else:
            ranked = ranking if rows is None else Ranking(ranking.values[rows], ranking.ids[rows])
        ids, part, exact = _most_probable(tile, rows, ranked, target_R[left], options, before)
        groups.append((rows, ids, part))
        open_R = ~(exact & ((part.c[:, -1] >= reach_R[left]) | empty_R[left]))
        left = left[open_R]
        assert part.outside_p is not None and part.outside_q is not None
        before = Before(depth, part.outside_p[open_R], part.outside_q[open_R])
    for rows, ids, part in groups:
        if left.numel() == 0:
            yield rows, ids, part
            continue
        given = torch.arange(lower_R.numel(), device=left.device) if rows is None else rows
        settled = ~torch.isin(given, left)
        yield given[settled], ids[settled], _some(part, settled)
    rest = torch.cat([*unsettled, left])
    if rest.numel():
        rows = None if rest.numel() == lower_R.numel() else rest.sort().values
        subtile = tile._replace(teacher=tile.teacher.rows(rows), student=tile.student.rows(rows))
        ranked = _ranked(subtile.teacher, None, width)
        target_R = target_R if rows is None else target_R[rows]
        yield rows, None, _all_classes(subtile, ranked, target_R, options, rows)


def decided_at_once(
    tile: Tile,
    ranking: Ranking,
    lower_R: Tensor,
    upper_R: Tensor,
    options: ClipOptions,
    limits: Limits = (),
) -> tuple[Tensor | None, Selected, Tensor | None]:
    """Without a look: ids (None for all classes), selection of all rows, and for which rows it won't do."""
    target_R = _target(tile, ranking, options)
    if ranking.ids.shape[-1] == tile.teacher.logits.shape[-1]:
        return None, _all_classes(tile, ranking, target_R, options, None), None
    reach_R, empty_R = _reach(lower_R, upper_R, options, limits)
    ids, part, exact_R = _most_probable(tile, None, ranking, target_R, options, None)
    return ids, part, ~(exact_R & ((part.c[:, -1] >= reach_R) | empty_R))


def _target(tile: Tile, ranking: Ranking, options: ClipOptions) -> Tensor:
    return ranking.ids[:, 0] if options.target == "argmax" else tile.labels


def _reach(lower_R: Tensor, upper_R: Tensor, options: ClipOptions, limits: Limits) -> tuple[Tensor, Tensor]:
    """From which quantile on every class is clipped, and in which rows all are; `limits`: at those bounds too."""
    reach_R = upper_R
    for _, high in limits:
        reach_R = reach_R.clamp_min(high)
    return reach_R + options.margin, (lower_R >= 1.0 + options.margin) & (not limits)


def _some(part: Selected, rows: Tensor) -> Selected:
    chosen: list[Any] = [None if value is None else value[rows] for value in part]
    return Selected(*chosen)


def _quantiles(tile: Tile, ranking: Ranking, rows: Tensor | None, options: ClipOptions) -> Tensor:
    """c of the ranked classes of some rows (None: all); 1 for those of a cached teacher that the cache lacks."""
    c = ranked_quantile(ranking.values, options.quantile, tile.teacher.logits.shape[-1])
    if tile.stored is None:
        return c
    known = tile.stored.known[: tile.labels.numel()] if rows is None else tile.stored.known[rows]
    return c.masked_fill(torch.arange(c.shape[-1], device=c.device) >= known.unsqueeze(1), 1.0)


def _all_classes(
    tile: Tile, ranking: Ranking, target_R: Tensor, options: ClipOptions, rows: Tensor | None
) -> Selected:
    """Every class, in the order of the ids; `rows` says which of the tile's `tile` holds (None: all)."""
    ranked = _quantiles(tile, ranking, rows, options)
    c = torch.empty_like(ranking.values).scatter_(-1, ranking.ids, ranked)
    target = target_R.unsqueeze(1) if options.keep_target else None
    teacher, student = tile.teacher, tile.student
    return Selected(teacher.log_probs(), student.log_probs(), teacher.probs, student.probs, c, target)


def _most_probable(
    tile: Tile,
    rows: Tensor | None,
    ranking: Ranking,
    target_R: Tensor,
    options: ClipOptions,
    before: Before | None,
) -> tuple[Tensor, Selected, Tensor]:
    """The ranked classes of some rows, and whether the mass outside them is exact (not lost to underflow), `[R]`.

    The last place goes to the target where that is further down: a row counts as covered only if the class of
    the last place is clipped, and everything behind it is clipped as well.
    """
    c = _quantiles(tile, ranking, rows, options)
    ids, target, log_p = ranking.ids, None, ranking.values
    last, apart = ids[:, -1], torch.full_like(target_R, -1)
    if options.keep_target:
        target = torch.zeros_like(target_R).unsqueeze(1)
        if options.target == "label":
            absent = (ids != target_R.unsqueeze(-1)).all(dim=-1)
            last, apart = torch.where(absent, ids[:, -2], last), torch.where(absent, target_R, apart)
            ids = ids.clone()
            ids[:, -1] = torch.where(absent, target_R, ids[:, -1])
            target = (ids == target_R.unsqueeze(-1)).long().argmax(dim=-1, keepdim=True)
            log_p = tile.teacher.log_probs(ids, rows)
            # a label in the last place: the former selection need not lie within this one
            before = None
    log_q = tile.student.log_probs(ids, rows)
    p, q = log_p.exp(), log_q.exp()

    def afresh(some: Tensor | None) -> tuple[Tensor, Tensor]:
        own, places, edge = ids, rows, (last, apart)
        if some is not None:
            own, places, edge = ids[some], some if rows is None else rows[some], (last[some], apart[some])
        if tile.pair is not None:
            return tile.pair.outside(*edge, places)
        masses = (mass_afresh(side.probs, own, places, tile.room) for side in (tile.teacher, tile.student))
        return next(masses), next(masses)

    outside_p, outside_q = masses_outside(p, q, before, afresh)
    exact = outside_q > LEAST_EXACT[outside_q.dtype]
    edge = (None, None) if tile.pair is None else (last, apart)
    return ids, Selected(log_p, log_q, p, q, c, target, outside_p, outside_q, *edge), exact
