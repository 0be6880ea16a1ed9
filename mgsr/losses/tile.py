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

from mgsr.losses.clipping import PairSummary, entropy
from mgsr.losses.dac_tile import ClipOptions
from mgsr.losses.divergences import DIVERGENCES
from mgsr.losses.selection import (
    ClippedTile,
    Patch,
    Ranking,
    Request,
    Tile,
    clipped_tile,
    everything_kept,
    rank_tile,
)
from mgsr.losses.span import check_relation, correlation_difference

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
    """Sums over the tile, gradients and per-row values. `bounds_grad`: see `RowGradients.bounds`."""

    sft: Tensor
    dac_kl: Tensor
    span: Tensor
    clipped: Tensor
    grad_logits: Tensor | None
    bounds_grad: Tensor | None
    stats: dict[str, Tensor]


def tile_terms(
    teacher_logits: Tensor | None,
    student_logits: Tensor,
    rows: TileRows,
    bounds_of: BoundsOf,
    options: TermOptions,
    *,
    need_logits_grad: bool,
) -> TileTerms:
    """The terms of one tile (see the top of the file). Called without gradient tracking."""
    count = rows.labels.numel()
    log_q_1 = torch.log_softmax(student_logits, dim=-1)
    picked = log_q_1[:count].gather(1, rows.labels.unsqueeze(1)).squeeze(1)
    sft = -torch.where(rows.truth, picked, torch.zeros_like(picked)).sum()
    sft_scale = rows.truth.to(picked.dtype) * options.scales[0]
    zero = torch.zeros_like(sft)
    if teacher_logits is None:
        grad = _sft_gradient(log_q_1, rows.labels, sft_scale) if need_logits_grad else None
        return TileTerms(sft, zero, zero, zero, grad, None, {})
    tau = options.temperature
    log_q = log_q_1 if tau == 1.0 else torch.log_softmax(student_logits / tau, dim=-1)
    log_p = torch.log_softmax(teacher_logits if tau == 1.0 else teacher_logits / tau, dim=-1)
    p, q = log_p.exp(), log_q.exp()
    tile = Tile(log_p[:count], log_q[:count], p[:count], q[:count], rows.labels)
    logits = teacher_logits[:count], student_logits[:count]
    # at temperature 1 cross-entropy's multiple of q goes into the same pass over the vocabulary
    base_scale = sft_scale if tau == 1.0 else None
    if options.divergence == "dac_kl":
        clipped = _clipped(tile, logits, bounds_of, options, base_scale, need_logits_grad)
    else:
        clipped = _other_divergence(tile, logits, options, base_scale, need_logits_grad)
    if base_scale is not None and options.scales[1] == 0.0:
        clipped = clipped._replace(row_scale=base_scale, patches=[])
    span, span_grad = _span(p, q, rows.is_pair, options, need_logits_grad)
    grad = None
    if need_logits_grad:
        grad = _assemble(q, clipped, count)
        if span_grad is not None:
            grad += span_grad
        if tau != 1.0:
            grad /= tau
            grad += _sft_gradient(log_q_1, rows.labels, sft_scale)
        else:
            grad[:count].scatter_add_(1, rows.labels.unsqueeze(1), -sft_scale.unsqueeze(1))
    stats = _stats(tile, teacher_logits[:count], clipped, options) if options.collect else {}
    return TileTerms(sft, clipped.loss.sum(), span, clipped.clipped.sum(), grad, clipped.bounds, stats)


def _sft_gradient(log_q: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """scale * (q - onehot(label)); the halo row has none."""
    grad = log_q.exp()
    grad[labels.numel() :] = 0.0
    own = grad[: labels.numel()]
    own *= scale.unsqueeze(1)
    own.scatter_add_(1, labels.unsqueeze(1), -scale.unsqueeze(1))
    return grad


def _clipped(
    tile: Tile,
    logits: tuple[Tensor, Tensor],
    bounds_of: BoundsOf,
    options: TermOptions,
    base_scale: Tensor | None,
    need_logits_grad: bool,
) -> ClippedTile:
    summary, ranking = None, None
    if not options.keep_all:
        ranking = rank_tile(tile.log_p, options.features)
    if options.features and ranking is not None:
        summary = _summary(tile, ranking, options.features)
    if summary is None and options.temperature != 1.0:
        logits = logits[0] / options.temperature, logits[1] / options.temperature
    lower, upper = bounds_of(*logits, summary)
    coefficient = options.scales[1] if need_logits_grad and options.scales[1] != 0.0 else None
    request = Request(coefficient, base_scale, lower.requires_grad or upper.requires_grad, options.limits)
    if ranking is None:
        return everything_kept(tile, request)
    plain = [bound.detach().to(tile.p.dtype) for bound in (lower, upper)]
    return clipped_tile(tile, ranking, plain[0], plain[1], options.clipping, request)


def _summary(tile: Tile, ranking: Ranking, features: int) -> PairSummary:
    ids = ranking.ids[:, :features]
    return PairSummary(
        ranking.values[:, :features],
        tile.log_q.gather(1, ids),
        entropy(tile.log_p, tile.p),
        entropy(tile.log_q, tile.q),
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


def _assemble(q: Tensor, clipped: ClippedTile, count: int) -> Tensor:
    """Gradient to the logits over the temperature: q * row_scale with its patches; the halo row is 0."""
    scale = torch.nn.functional.pad(clipped.row_scale, (0, q.shape[0] - count))
    grad = q * scale.unsqueeze(1)
    own = grad[:count]
    for rows, ids, values in clipped.patches:
        if ids is None:
            if rows is None:
                own += values
            else:
                own.index_add_(0, rows, values)
        elif rows is None:
            own.scatter_(1, ids, values)
        else:
            own[rows.unsqueeze(1), ids] = values
    return grad


def _span(
    p: Tensor, q: Tensor, is_pair: Tensor, options: TermOptions, need_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum over the tile's pairs, and its scaled gradient to the logits over the temperature."""
    left = is_pair.nonzero().squeeze(1)
    if left.numel() == 0:
        return p.new_zeros(()), None
    need_grad = need_grad and options.scales[2] != 0.0
    q_left, q_right = q[left], q[left + 1]
    with torch.set_grad_enabled(need_grad):
        for tensor in (q_left, q_right):
            tensor.requires_grad_(need_grad)
        value = correlation_difference(
            p[left], p[left + 1], q_left, q_right, norm=options.span_norm, relation=options.span_relation
        ).sum()
    if not need_grad:
        return value, None
    scale = torch.full_like(value, options.scales[2])
    grads = torch.autograd.grad(value, (q_left, q_right), scale)
    out = torch.zeros_like(q)
    for rows, prob, grad in ((left, q_left.detach(), grads[0]), (left + 1, q_right.detach(), grads[1])):
        pulled = grad * prob
        # softmax backward: q * (g - <g, q>)
        pulled -= prob * pulled.sum(dim=-1, keepdim=True)
        out.index_add_(0, rows, pulled)
    return value.detach(), out


def _stats(tile: Tile, teacher_logits: Tensor, clipped: ClippedTile, options: TermOptions) -> dict[str, Tensor]:
    log_p_1 = tile.log_p if options.temperature == 1.0 else torch.log_softmax(teacher_logits, dim=-1)
    stats = {
        "teacher_log_prob": log_p_1.gather(1, tile.labels.unsqueeze(1)).squeeze(1),
        "teacher_entropy": entropy(tile.log_p, tile.p),
        "dac_kl": clipped.loss,
        "clipped": clipped.clipped,
    }
    if clipped.limits is not None:
        stats["clipped_min"], stats["clipped_max"] = clipped.limits[0], clipped.limits[1]
    return stats
