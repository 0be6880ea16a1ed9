"""Which classes of a tile are read: DAC-KL over a tile by top-k selection, with a full sort only where needed.

Shapes: R rows, V classes, K selected classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mgsr.losses.clipping import class_quantiles, ranked_quantile
from mgsr.losses.divergences import kl_from_log_probs
from mgsr.losses.fused.dac_kl import ClipOptions, RowGradients, Selected, clipped_mass, clipped_rows, least_exact
from mgsr.losses.fused.softmax import Side
from mgsr.losses.fused.workspace import Workspace
from mgsr.losses.ranking import top_classes

DEPTHS = (512, 2048, 8192)
"""Classes selected at first, then for the rows which those don't cover; what is left takes a full sort."""


COPIED_ELEMENTS = 650_000
"""Logits that are copied at a time on a CPU to be ranked again."""
LEAST_LEFT = 0.05
"""Share of a mass that must be left for a difference to be taken: twenty times its rounding at most."""


class Ranking(NamedTuple):
    """The K most probable classes of every row, descending: log-probabilities and ids `[R, K]`."""

    values: Tensor
    ids: Tensor


class Tile(NamedTuple):
    """One tile: both models' views of it, the labels `[R]` and memory to work in."""

    teacher: Side
    student: Side
    labels: Tensor
    room: Workspace


class Patch(NamedTuple):
    """A correction to the gradient `q * row_scale`: `values` replace entries `ids` of `rows`, or, without
    ids, are added to whole rows. rows None = all."""

    rows: Tensor | None
    ids: Tensor | None
    values: Tensor


class ClippedTile(NamedTuple):
    """DAC-KL of a tile: loss, mass of the rest bin, and the parts of its gradients, each `[R]` but the patches.

    `row_scale` and `patches` give the gradient to the logits divided by the temperature, times `coefficient`;
    `bounds [4, R]` those of `RowGradients.bounds`; `limits [2, R]` the clipped mass at two other pairs of bounds.
    """

    loss: Tensor
    clipped: Tensor
    row_scale: Tensor
    patches: list[Patch]
    bounds: Tensor | None
    limits: Tensor | None


class Request(NamedTuple):
    """What `clipped_tile` is asked for besides the loss.

    `coefficient`: factor on the gradient; None = no gradient to the logits. `base_scale [R]`: added to the row
    scale (another term's multiple of q). `bounds`: gradients of the bounds. `limits`: other (lower, upper) pairs.
    """

    coefficient: float | None = None
    base_scale: Tensor | None = None
    bounds: bool = False
    limits: tuple[tuple[float, float], ...] = ()


def rank_logits(logits_RV: Tensor, features: int = 0) -> Tensor:
    """Ids of the first selection: all of a small vocabulary, else the first depth (at least `features`)."""
    return top_classes(logits_RV, max(DEPTHS[0], features))[1]


def _ranked(teacher: Side, rows: Tensor | None, depth: int, room: Workspace) -> Ranking:
    """The `depth` most probable classes of some rows, from the logits: they are in the same order."""
    if rows is None or teacher.logits.device.type != "cpu":
        logits = teacher.logits if rows is None else teacher.logits[rows]
        ids = top_classes(logits, depth)[1]
    else:
        # a few at a time: how many there are depends on the text, the memory should not
        few = rows.split(max(1, COPIED_ELEMENTS // teacher.logits.shape[1]))
        ids = torch.cat([top_classes(room.rows_of("some rows", teacher.logits, r), depth)[1] for r in few])
    return Ranking(teacher.log_probs(ids, rows), ids)


def everything_kept(tile: Tile, request: Request) -> ClippedTile:
    """`clipped_tile` for bounds that keep every class in the normalised form: the full KL."""
    loss = kl_from_log_probs(tile.teacher.log_probs(), tile.student.log_probs())
    zero = torch.zeros_like(loss)
    scale, patches = zero, []
    if request.coefficient is not None:
        p = tile.teacher.probs
        scale = p.sum(dim=-1) * request.coefficient
        patches = [Patch(None, None, p * -request.coefficient)]
        if request.base_scale is not None:
            scale = scale + request.base_scale
    bounds = zero.expand(4, -1) if request.bounds else None
    return ClippedTile(loss, zero, scale, patches, bounds, None)


def clipped_tile(
    tile: Tile, ranking: Ranking, lower_R: Tensor, upper_R: Tensor, options: ClipOptions, request: Request
) -> ClippedTile:
    """DAC-KL of every row of a tile, each from as few classes as hold all that is kept."""
    zero = torch.zeros_like(lower_R)
    out = ClippedTile(
        zero.clone(),
        zero.clone(),
        zero.clone(),
        [],
        zero.new_zeros((4, zero.numel())) if request.bounds else None,
        zero.new_zeros((len(request.limits), zero.numel())) if request.limits else None,
    )
    for rows, ids, part in _groups(tile, ranking, lower_R, upper_R, options, request):
        every = slice(None) if rows is None else rows
        lower, upper = lower_R[every].unsqueeze(-1), upper_R[every].unsqueeze(-1)
        loss, clipped, gradients = clipped_rows(part, lower, upper, options, bounds=request.bounds)
        out.loss[every], out.clipped[every] = loss, clipped
        if out.bounds is not None and gradients.bounds is not None:
            for row, values in zip(out.bounds, gradients.bounds, strict=True):
                row[every] = values
        if out.limits is not None:
            for row, (low, high) in zip(out.limits, request.limits, strict=True):
                limits = torch.full_like(lower, low), torch.full_like(upper, high)
                row[every] = clipped_mass(part, *limits, options)
        if request.coefficient is not None:
            base = None if request.base_scale is None else request.base_scale[every]
            scale, patch = _gradient(part, ids, gradients, request.coefficient, base)
            out.row_scale[every] = scale
            out.patches.append(Patch(rows, ids, patch))
    return out


def _gradient(
    part: Selected, ids: Tensor | None, gradients: RowGradients, coefficient: float, base: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Row scale and patch. With L's gradient g on log q, that on the logits is g_k - q_k * sum(g)."""
    kept_scale = -gradients.total * coefficient
    if base is not None:
        kept_scale = kept_scale + base
    sparse = gradients.log_q * coefficient
    if ids is None:
        return kept_scale, sparse
    # outside the selection g_k = -ratio * q_k; selected entries are set, not added: a large ratio would cancel
    scale = kept_scale - gradients.ratio * coefficient
    return scale, sparse.addcmul_(part.q, kept_scale.unsqueeze(-1))


def _groups(
    tile: Tile, ranking: Ranking, lower_R: Tensor, upper_R: Tensor, options: ClipOptions, request: Request
) -> Iterator[tuple[Tensor | None, Tensor | None, Selected]]:
    """Rows with the classes that decide them: (rows or None for all, ids or None for all classes, selection).

    A row may come again with more classes, the former among them: the later counts. Sorting the covered rows of
    a group out would cost more than to compute a few twice. Rows with all classes come in no other group.
    """
    width = tile.teacher.logits.shape[-1]
    target_R = ranking.ids[:, 0] if options.target == "argmax" else tile.labels
    if ranking.ids.shape[-1] == width:
        yield None, None, _all_classes(tile, ranking, target_R, options)
        return
    reach_R = upper_R
    for _, high in request.limits:
        reach_R = reach_R.clamp_min(high)
    reach_R = reach_R + options.margin
    empty_R = (lower_R >= 1.0 + options.margin) & (not request.limits)
    # where everything up to the end of the ranking may be kept, no selection can be enough
    hopeless_R = ~(empty_R | (reach_R <= 1.0))
    left = (~hopeless_R).nonzero().squeeze(1)
    unsettled = [hopeless_R.nonzero().squeeze(1)]
    groups: list[tuple[Tensor | None, Tensor, Selected]] = []
    before: _Before | None = None
    for depth in DEPTHS:
        if left.numel() == 0 or depth >= width:
            break
        rows = None if left.numel() == lower_R.numel() else left
        if depth != DEPTHS[0]:
            ranked = _ranked(tile.teacher, rows, depth, tile.room)
        else:
            ranked = ranking if rows is None else Ranking(ranking.values[rows], ranking.ids[rows])
        ids, part, exact = _most_probable(tile, rows, ranked, target_R[left], options, before)
        groups.append((rows, ids, part))
        open_R = ~(exact & ((part.c[:, -1] >= reach_R[left]) | empty_R[left]))
        left = left[open_R]
        assert part.outside_p is not None and part.outside_q is not None
        before = _Before(depth, part.outside_p[open_R], part.outside_q[open_R])
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
        subtile = Tile(tile.teacher.rows(rows), tile.student.rows(rows), tile.labels, tile.room)
        ranked = _ranked(subtile.teacher, None, width, tile.room)
        yield rows, None, _all_classes(subtile, ranked, target_R if rows is None else target_R[rows], options)


def _some(part: Selected, rows: Tensor) -> Selected:
    chosen: list[Any] = [None if value is None else value[rows] for value in part]
    return Selected(*chosen)


def _all_classes(tile: Tile, ranking: Ranking, target_R: Tensor, options: ClipOptions) -> Selected:
    """Every class, in the order of the ids."""
    c = class_quantiles(ranking.values, ranking.ids, options.quantile)
    target = target_R.unsqueeze(1) if options.keep_target else None
    teacher, student = tile.teacher, tile.student
    return Selected(teacher.log_probs(), student.log_probs(), teacher.probs, student.probs, c, target)


class _Before(NamedTuple):
    """Of rows whose selection was not deep enough: its depth, and both models' mass outside it, `[r]`."""

    depth: int
    outside_p: Tensor
    outside_q: Tensor


def _most_probable(
    tile: Tile,
    rows: Tensor | None,
    ranking: Ranking,
    target_R: Tensor,
    options: ClipOptions,
    before: _Before | None,
) -> tuple[Tensor, Selected, Tensor]:
    """The ranked classes of some rows, and whether the mass outside them is exact (not lost to underflow), `[R]`.

    The last place goes to the target where that is further down: a row counts as covered only if the class of
    the last place is clipped, and everything behind it is clipped as well.
    """
    c = ranked_quantile(ranking.values, options.quantile, tile.teacher.logits.shape[-1])
    ids, target, log_p = ranking.ids, None, ranking.values
    if options.keep_target:
        target = torch.zeros_like(target_R).unsqueeze(1)
        if options.target == "label":
            absent = (ids != target_R.unsqueeze(-1)).all(dim=-1)
            ids = ids.clone()
            ids[:, -1] = torch.where(absent, target_R, ids[:, -1])
            target = (ids == target_R.unsqueeze(-1)).long().argmax(dim=-1, keepdim=True)
            log_p = tile.teacher.log_probs(ids, rows)
            # a label in the last place: the former selection need not lie within this one
            before = None
    log_q = tile.student.log_probs(ids, rows)
    p, q = log_p.exp(), log_q.exp()
    depth = 0 if before is None else before.depth
    outside_p = _mass_outside(tile.teacher, ids, rows, tile.room, p[:, depth:], before and before.outside_p)
    outside_q = _mass_outside(tile.student, ids, rows, tile.room, q[:, depth:], before and before.outside_q)
    exact = outside_q > least_exact(outside_q.dtype)
    return ids, Selected(log_p, log_q, p, q, c, target, outside_p, outside_q), exact


def _mass_outside(
    side: Side, ids: Tensor, rows: Tensor | None, room: Workspace, added: Tensor, before: Tensor | None
) -> Tensor:
    """`Side.mass_outside`; `before` less the classes that were added spares the pass over all classes.

    Only where that leaves enough for the rounding of what is taken away not to count.
    """
    if before is None:
        return side.mass_outside(ids, rows, room)
    mass = before - added.sum(dim=-1)
    unsure = (~(mass > LEAST_LEFT * before)).nonzero().squeeze(1)
    if unsure.numel():
        mass[unsure] = side.mass_outside(ids[unsure], unsure if rows is None else rows[unsure], room)
    return mass
