"""The three terms of one tile of rows from its logits, and their gradient to the student's logits.

Shapes: R rows of the tile, V classes. The logits may hold one row more than the tile: the halo, which only takes
part in the span pair that crosses the tile's end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mgsr.losses.clipping import PairSummary
from mgsr.losses.divergences import DIVERGENCES
from mgsr.losses.fused.dac_kl import ClipOptions
from mgsr.losses.fused.gather_classes import pick, put
from mgsr.losses.fused.selection import (
    ClippedTile,
    Patch,
    Ranking,
    Request,
    Tile,
    clipped_tile,
    everything_kept,
    rank_logits,
)
from mgsr.losses.fused.softmax import Side
from mgsr.losses.fused.span_correlation import SpanPull, span_tile
from mgsr.losses.fused.workspace import Workspace
from mgsr.losses.span_correlation import check_relation

BoundsOf = Callable[[Tensor, Tensor, "PairSummary | None"], "tuple[Tensor, Tensor]"]
"""(teacher logits, student logits, summary) -> lower [R], upper [R] of the tile."""


@dataclass(frozen=True)
class TermOptions:
    """What is computed, alike for every tile. `scales`: weight over denominator of the three terms."""

    scales: tuple[float, float, float]
    divergence: str = "dac_kl"
    divergence_kwargs: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    clipping: ClipOptions = field(default_factory=ClipOptions)
    span_norm: str = "l2_squared"
    span_relation: str = "hadamard"
    features: int = 0
    keep_all: bool = False
    limits: tuple[tuple[float, float], ...] = ()
    collect: bool = False

    def __post_init__(self) -> None:
        check_relation(self.span_norm, self.span_relation)
        if self.divergence != "dac_kl" and self.divergence not in DIVERGENCES:
            known = ", ".join(["dac_kl", *DIVERGENCES])
            raise ValueError(f"divergence must be one of {known}, got {self.divergence!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")


class TileRows(NamedTuple):
    """Everything that is known of the tile's rows, `[R]` each; `is_pair[i]`: rows i, i + 1 are a span pair."""

    labels: Tensor
    truth: Tensor
    is_pair: Tensor


class TileTerms(NamedTuple):
    """Sums over the tile, gradients and per-row values.

    `halo_grad [1, V]`: the gradient to the halo row's logits, None without a halo. `bounds_grad`: see
    `RowGradients.bounds`.
    """

    sft: Tensor
    dac_kl: Tensor
    span: Tensor
    clipped: Tensor
    halo_grad: Tensor | None
    bounds_grad: Tensor | None
    stats: dict[str, Tensor]


def tile_terms(
    teacher_logits: Tensor | None,
    student_logits: Tensor,
    rows: TileRows,
    bounds_of: BoundsOf,
    options: TermOptions,
    room: Workspace,
    *,
    grad: Tensor | None,
) -> TileTerms:
    """The terms of one tile (see the top of the file). Called without gradient tracking.

    `grad [R, V]` takes the gradient to the logits of the tile's own rows, None: it isn't wanted. It may be
    `student_logits` themselves, which are read for the last time before.
    """
    need_logits_grad = grad is not None
    count, tau = rows.labels.numel(), options.temperature
    logits_S = student_logits if tau == 1.0 else student_logits / tau
    ranked = teacher_logits is not None and options.divergence == "dac_kl" and not options.keep_all
    best = ids = None
    if teacher_logits is not None:
        logits_T = teacher_logits if tau == 1.0 else teacher_logits / tau
        # all rows, the halo too: its most probable class is then known
        ids = rank_logits(logits_T, options.features) if ranked else None
        best = None if ids is None else ids[:, :1]
    student = Side.of(logits_S, best, out=room.take("student probabilities", *logits_S.shape))
    # cross-entropy is always at temperature 1
    plain = student if tau == 1.0 else Side.of(student_logits, best)
    labels = rows.labels.unsqueeze(1)
    picked = plain.first(count).log_probs(labels).squeeze(1)
    sft = -torch.where(rows.truth, picked, torch.zeros_like(picked)).sum()
    sft_scale = rows.truth.to(picked.dtype) * options.scales[0]
    zero = torch.zeros_like(sft)
    if teacher_logits is None:
        if grad is not None:
            torch.mul(plain.probs[:count], sft_scale.unsqueeze(1), out=grad)
            grad.scatter_add_(1, labels, -sft_scale.unsqueeze(1))
        return TileTerms(sft, zero, zero, zero, None, None, {})
    teacher = Side.of(logits_T, best, out=room.take("teacher probabilities", *logits_T.shape))
    tile = Tile(teacher.first(count), student.first(count), rows.labels, room)
    logits = teacher_logits[:count], student_logits[:count]
    # at temperature 1 cross-entropy's multiple of q goes into the same pass over the vocabulary
    base_scale = sft_scale if tau == 1.0 else None
    summary = None
    if options.divergence == "dac_kl":
        ranking = None if ids is None else Ranking(tile.teacher.log_probs(ids[:count]), ids[:count])
        if options.features and ranking is not None:
            summary = _summary(tile, ranking, options.features)
        clipped = _clipped(tile, ranking, summary, bounds_of, options, base_scale, need_logits_grad)
    else:
        clipped = _other_divergence(tile, logits, options, base_scale, need_logits_grad)
    if base_scale is not None and options.scales[1] == 0.0:
        clipped = clipped._replace(row_scale=base_scale, patches=[])
    wants_span_grad = need_logits_grad and options.scales[2] != 0.0
    span, pull = span_tile(
        teacher.probs,
        student.probs,
        rows.is_pair,
        norm=options.span_norm,
        relation=options.span_relation,
        scale=options.scales[2] if wants_span_grad else None,
        room=room,
    )
    stats = _stats(tile, teacher_logits[:count], clipped, summary, options) if options.collect else {}
    halo = None
    if grad is not None:
        halo = _assemble(student.probs, clipped, pull, grad)
        if tau != 1.0:
            grad.div_(tau).addcmul_(plain.probs[:count], sft_scale.unsqueeze(1))
            halo = None if halo is None else halo.div_(tau)
        grad.scatter_add_(1, labels, -sft_scale.unsqueeze(1))
    return TileTerms(sft, clipped.loss.sum(), span, clipped.clipped.sum(), halo, clipped.bounds, stats)


def _clipped(
    tile: Tile,
    ranking: Ranking | None,
    summary: PairSummary | None,
    bounds_of: BoundsOf,
    options: TermOptions,
    base_scale: Tensor | None,
    need_logits_grad: bool,
) -> ClippedTile:
    lower, upper = bounds_of(tile.teacher.logits, tile.student.logits, summary)
    coefficient = options.scales[1] if need_logits_grad and options.scales[1] != 0.0 else None
    request = Request(coefficient, base_scale, lower.requires_grad or upper.requires_grad, options.limits)
    if ranking is None:
        return everything_kept(tile, request)
    plain = [bound.detach().to(tile.teacher.probs.dtype) for bound in (lower, upper)]
    return clipped_tile(tile, ranking, plain[0], plain[1], options.clipping, request)


def _summary(tile: Tile, ranking: Ranking, features: int) -> PairSummary:
    return PairSummary(
        ranking.values[:, :features],
        tile.student.log_probs(ranking.ids[:, :features]),
        tile.teacher.entropy(),
        tile.student.entropy(),
    )


def _other_divergence(
    tile: Tile,
    logits: tuple[Tensor, Tensor],
    options: TermOptions,
    base_scale: Tensor | None,
    need_logits_grad: bool,
) -> ClippedTile:
    """A divergence by name. The forward KL has a closed form here; the others go through autograd."""
    if options.divergence == "forward_kl" and not options.divergence_kwargs:
        return everything_kept(tile, Request(options.scales[1] if need_logits_grad else None, base_scale))
    with torch.enable_grad():
        student = logits[1].detach().requires_grad_(need_logits_grad)
        function = DIVERGENCES[options.divergence]
        loss = function(logits[0], student, temperature=options.temperature, **options.divergence_kwargs)
    zero = torch.zeros_like(loss.detach())
    patches = []
    if need_logits_grad:
        (grad,) = torch.autograd.grad(loss, student, torch.full_like(loss, options.scales[1]))
        # `_assemble` works on the logits over the temperature
        patches = [Patch(None, None, grad * options.temperature)]
    scale = zero if base_scale is None else base_scale
    return ClippedTile(loss.detach(), zero, scale, patches, None, None)


def _assemble(q: Tensor, clipped: ClippedTile, pull: SpanPull | None, out: Tensor) -> Tensor | None:
    """Gradient to the logits over the temperature: the tile's rows to `out [R, V]`, a halo row's is returned.

    q * row_scale with its patches, and of the span term's gradient g to q (`pull`): q * (g - <g, q>); the halo
    has the latter alone.
    """
    scale, patches, count = clipped.row_scale, clipped.patches, out.shape[0]
    halo = None
    if pull is None:
        torch.mul(q[:count], scale.unsqueeze(1), out=out)
    else:
        direction, centre = pull
        # before `q` may be overwritten: a patch stands for what row_scale gives, and must keep the span's part
        patches = [_with_span(patch, q, direction, centre) for patch in patches]
        torch.addcmul(direction[:count], q[:count], (scale - centre[:count]).unsqueeze(1), out=out)
        if q.shape[0] > count:
            halo = torch.addcmul(direction[count:], q[count:], centre[count:].unsqueeze(1), value=-1.0)
    for rows, ids, values in patches:
        if ids is not None:
            put(out, rows, ids, values)
        elif rows is None:
            out += values
        else:
            out.index_add_(0, rows, values)
    return halo


def _with_span(patch: Patch, q: Tensor, pulled: Tensor, centre: Tensor) -> Patch:
    """The patch with q * g - q * <g, q> added (`pulled`, q * `centre`).

    One that is added to whole rows leaves that in place anyway.
    """
    rows, ids, values = patch
    if ids is None:
        return patch
    centre = centre[: ids.shape[0]] if rows is None else centre[rows]
    span = pick(pulled, rows, ids).addcmul_(pick(q, rows, ids), centre.unsqueeze(1), value=-1.0)
    return Patch(rows, ids, span.add_(values))


def _stats(
    tile: Tile, teacher_logits: Tensor, clipped: ClippedTile, summary: PairSummary | None, options: TermOptions
) -> dict[str, Tensor]:
    plain = tile.teacher if options.temperature == 1.0 else Side.of(teacher_logits)
    stats = {
        "teacher_log_prob": plain.log_probs(tile.labels.unsqueeze(1)).squeeze(1),
        # a pass over the vocabulary that the clip network's input has made already
        "teacher_entropy": tile.teacher.entropy() if summary is None else summary.teacher_entropy,
        "dac_kl": clipped.loss,
        "clipped": clipped.clipped,
    }
    if clipped.limits is not None:
        stats["clipped_min"], stats["clipped_max"] = clipped.limits[0], clipped.limits[1]
    return stats
