"""The three terms of a tile of rows from its logits, and their gradient to the student's logits.

Tiles are made one after the other; where plain operations do the work, each is worked on in parts of a few rows.

Shapes: N rows of a call, M response rows, R rows of a tile or part, V classes. The logits may hold one row more:
the halo, which only takes part in the span pair that crosses the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mgsr.losses.divergences import Divergence
from mgsr.losses.fused.cross_entropy import cross_entropy_tile
from mgsr.losses.fused.dac_kl import dac_kl_tile
from mgsr.losses.fused.divergences import Named, divergence_tile, divergences_tile
from mgsr.losses.fused.logit_gradient import LogitGradient, TokenTerm, add_up
from mgsr.losses.fused.model_rows import ModelRows, StudentRows
from mgsr.losses.fused.open_rows import OpenRows, close_rows
from mgsr.losses.fused.response_rows import ResponseRows
from mgsr.losses.fused.selection import RowBounds
from mgsr.losses.fused.span_correlation import span_tile
from mgsr.losses.fused.tile_models import Tile
from mgsr.losses.fused.workspace import Workspace
from mgsr.losses.teacher_topk import StoredRanking

TILE_ELEMENTS = {"cpu": 7_600_000, "cuda": 263_000_000}
"""Logits per tile where no `tile_size` is given, by device type.

A GPU waits for the kernels of a small tile to be launched, and reads and writes the gradient of the output layer
once per tile. On an H200 the three terms of 8,192 tokens over 128,256 classes (hidden size 4,096, bfloat16) took
477 ms in tiles of 249 rows, 195 ms in tiles of 1,024 and 157 ms in tiles of 2,048 before they were worked on in
parts and by kernels, and added 3.1, 5.3 and 8.6 GiB.
"""
PART_ELEMENTS = {"cpu": 2_600_000, "cuda": 33_000_000}
"""Logits that are worked on at a time: what a CPU's core has cache for, and what a GPU has memory for to spare."""


class TermOptions(NamedTuple):
    """What is computed, alike for every tile.

    `written`: the divergence on written text, None for the same as on ground truth. `scales`: weight over
    denominator of the three terms. `rows_by`: loops or kernels, see `rows.rows_by`.
    """

    scales: tuple[float, float, float]
    divergence: str | Divergence
    divergence_kwargs: dict[str, Any]
    written: Named | None
    temperature: float
    span_norm: str
    span_relation: str
    collect: bool
    rows_by: ModuleType | None


class TileTerms(NamedTuple):
    """Sums over a tile, gradients and per-row values.

    `halo_grad [1, V]`: the gradient to the halo row's logits, None without a halo. `bounds`, `bounds_grad` and
    `open`: see `TokenTerm`.
    """

    sft: Tensor
    dac_kl: Tensor
    span: Tensor
    clipped: Tensor
    halo_grad: Tensor | None
    bounds: tuple[Tensor, Tensor] | None
    bounds_grad: Tensor | None
    stats: dict[str, Tensor]
    open: Tensor | None


def rows_per_tile(tile_size: int | None, count: int, width: int, device_type: str) -> int:
    """Rows whose logits are made at a time: `tile_size`, or `count` in equal tiles of at most `TILE_ELEMENTS`."""
    if tile_size is not None:
        if tile_size < 1:
            raise ValueError(f"tile_size must be at least 1, got {tile_size}")
        return tile_size
    size = max(64, TILE_ELEMENTS.get(device_type, TILE_ELEMENTS["cpu"]) // width)
    tiles = max(1, math.ceil(count / size))
    return max(1, math.ceil(count / tiles))


def rows_per_part(tile_size: int | None, size: int, width: int, device_type: str, *, whole: bool = False) -> int:
    """Rows of a tile that are worked on at a time; `whole`: all of them, by loops or kernels."""
    if tile_size is not None or whole:
        return size
    parts = max(1, round(size * width / PART_ELEMENTS.get(device_type, PART_ELEMENTS["cpu"])))
    return max(1, math.ceil(size / parts))


def run_tiles(
    student: StudentRows,
    teacher: ModelRows | None,
    rows: ResponseRows,
    bounds: RowBounds | None,
    options: TermOptions,
    tile_size: int | None,
) -> tuple[list[TileTerms], OpenRows | None]:
    """All tiles in order, and rows that came again, whose share is not in the tiles.

    Their gradients are pulled to the student's rows. Called without gradient tracking.
    """
    place_M, pairs, count = rows.place, rows.pairs, rows.place.numel()
    device, width = place_M.device, student.width
    size = rows_per_tile(tile_size, count, width, device.type)
    part_size = rows_per_part(tile_size, size, width, device.type, whole=options.rows_by is not None)
    cached = [] if teacher is None else teacher.cached_among(place_M)

    def ranked(first: int, stop: int) -> StoredRanking | None:
        return None if teacher is None else teacher.stored(place_M[first:stop], cached[first:stop])

    tiles: list[TileTerms] = []
    room = Workspace(device, student.dtype)
    # without any row one empty tile still calls the clip module: its parameters then get a zero gradient
    for start in range(0, max(count, 1), size):
        stop = min(start + size, count)
        end = stop + int(stop < count and pairs[stop - 1])
        chosen = place_M[start:end]
        logits, states = student.logits(chosen, room.take("student logits", end - start, width))
        taught = None
        if teacher is not None:
            memory = room.take("teacher logits", end - start, width)
            taught, _ = teacher.logits(chosen, memory, cached[start:end])
        grad = None
        if student.wants_gradient:
            # the gradient takes the logits' place, unless a soft cap reads them once more
            grad = logits if student.layer.softcap is None else room.take("gradient", *logits.shape)
        tiles += _parts(logits, taught, ranked, grad, rows, (start, stop), bounds, options, part_size, room)
        if grad is not None:
            student.pull(chosen, grad, logits, states)
    left = None
    terms = [(tile.open, tile.bounds) for tile in tiles if tile.open is not None and tile.bounds is not None]
    if terms and teacher is not None and bounds is not None:
        left = close_rows(
            student,
            teacher,
            rows,
            cached,
            bounds,
            terms,
            room,
            size=rows_per_part(None, size, width, device.type),
            temperature=options.temperature,
            scale=options.scales[1],
        )
    return tiles, left


def _parts(
    logits: Tensor,
    taught: Tensor | None,
    ranked: Callable[[int, int], StoredRanking | None],
    grad: Tensor | None,
    rows: ResponseRows,
    span: tuple[int, int],
    bounds: RowBounds | None,
    options: TermOptions,
    size: int,
    room: Workspace,
) -> list[TileTerms]:
    """A tile's terms a few rows at a time; their gradient to the logits goes to `grad`, which may be `logits`.

    A product of matrices wants many rows at once, the many passes over what comes out want few: those stay in a
    processor's cache.
    """
    (start, stop), pairs = span, rows.pairs
    found = []
    carried: Tensor | None = None
    for first in range(start, max(stop, start + 1), size):
        last = min(first + size, stop)
        reach = last + int(last < len(pairs) and pairs[last - 1])
        here = slice(first - start, reach - start)
        own = rows.some(first, last)
        out = None if grad is None else grad[first - start : last - start]
        theirs = None if taught is None else taught[here]
        stored = ranked(first, reach)
        terms = tile_terms(theirs, logits[here], own, bounds, first, options, room, grad=out, stored=stored)
        if out is not None and carried is not None:
            out[:1] += carried
        # the halo row's gradient waits for its own part, which still needs the logits there
        carried = terms.halo_grad
        found.append(terms._replace(halo_grad=None))
    if grad is not None and reach > stop:
        # the tile's own halo
        grad[stop - start :] = 0.0 if carried is None else carried
    return found


def tile_terms(
    teacher_logits: Tensor | None,
    student_logits: Tensor,
    rows: ResponseRows,
    bounds: RowBounds | None,
    start: int,
    options: TermOptions,
    room: Workspace,
    *,
    grad: Tensor | None,
    stored: StoredRanking | None = None,
) -> TileTerms:
    """The terms of one tile or part.

    Args:
        rows: its own rows, without the halo.
        bounds: of DAC-KL; None for another divergence.
        start: place of its first row among the call's response rows.
        grad: `[R, V]`, takes the gradient to the logits of its own rows; None: it isn't wanted. It may be
            `student_logits` themselves, which are read for the last time before.
        stored: which rows of the teacher come from a cache.
    """
    labels = rows.labels
    # without a teacher cross-entropy is alone, and always at temperature 1
    tau = 1.0 if teacher_logits is None else options.temperature
    coefficients = [scale if grad is not None and scale != 0.0 else None for scale in options.scales]
    tile = Tile.of(
        teacher_logits,
        student_logits,
        labels,
        room,
        temperature=tau,
        depth=0 if bounds is None else bounds.depth,
        features=0 if bounds is None else bounds.features,
        collect=options.collect,
        rows_by=options.rows_by,
        is_pair=rows.is_pair,
        span_scale=coefficients[2],
        stored=stored,
    )
    factor = rows.truth.to(tile.log_q.dtype) * options.scales[0]
    # at temperature 1 cross-entropy's multiple of q goes into the same pass over the vocabulary
    base = factor if tau == 1.0 else None
    stats: dict[str, Tensor] = {}
    pull = None
    if teacher_logits is None:
        zero = torch.zeros_like(factor)
        token, span = TokenTerm(zero, LogitGradient(factor, []), zero), zero.sum()
    else:
        logits = teacher_logits[: labels.numel()], student_logits[: labels.numel()]
        if bounds is not None:
            token = dac_kl_tile(tile, bounds, start, coefficients[1], base)
        else:
            which, kwargs, scale = options.divergence, options.divergence_kwargs, coefficients[1]
            if options.written is None:
                token = divergence_tile(tile, logits, which, kwargs, tau, scale, base)
            else:
                both = (which, kwargs), options.written
                token = divergences_tile(tile, logits, rows.truth, *both, tau, scale, base)
        if tile.pair is not None:
            span = tile.pair.span()
        else:
            assert tile.p is not None and tile.q is not None
            span, pull = span_tile(
                tile.p,
                tile.q,
                rows.pairs,
                norm=options.span_norm,
                relation=options.span_relation,
                scale=coefficients[2],
                room=room,
            )
        stats = _stats(tile, token) if tile.log_p is not None else {}
    halo, minus_labels = None, grad
    if grad is not None:
        if tile.pair is not None:
            at_labels = factor if base is not None else torch.zeros_like(factor)
            halo = tile.pair.add_up(token.gradient, labels, at_labels, grad)
            minus_labels = None if base is not None else grad
        else:
            assert tile.q is not None
            halo = add_up(tile.q, token.gradient, pull, grad)
        if tau != 1.0:
            grad.div_(tau).addcmul_(tile.plain.probs, factor.unsqueeze(1))
            halo = None if halo is None else halo.div_(tau)
    sft = cross_entropy_tile(tile.log_q, rows.truth, labels, factor, minus_labels)
    sums = sft, token.loss.sum(), span, token.clipped.sum()
    return TileTerms(*sums, halo, token.bounds, token.bounds_grad, stats, token.open)


def _stats(tile: Tile, token: TokenTerm) -> dict[str, Tensor]:
    assert tile.log_p is not None
    stats = {
        "teacher_log_prob": tile.log_p,
        # a pass over the vocabulary that the clip network's input has made already
        "teacher_entropy": tile.teacher.entropy() if tile.summary is None else tile.summary.teacher_entropy,
        "dac_kl": token.loss,
        "clipped": token.clipped,
    }
    if token.limits is not None:
        stats["clipped_min"], stats["clipped_max"] = token.limits[0], token.limits[1]
    return stats
