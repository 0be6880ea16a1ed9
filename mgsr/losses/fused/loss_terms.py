"""The result of `tiled_objective`: means over the tiles, their weighted sum, and per-row statistics.

Shapes: M response rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mgsr.losses.clip_bounds import RowBounds
from mgsr.losses.fused.precomputed_gradients import attach_gradients
from mgsr.losses.fused.tile import TermOptions, TileTerms
from mgsr.losses.reduction import TermCounts


@dataclass(frozen=True)
class RowStats:
    """What was seen at the M response rows, in order; detached, `[M]` each.

    `index` are positions in the call's N rows. `teacher_log_prob` of the label is at temperature 1,
    `teacher_entropy` at the call's temperature. Bounds and masses are None for a divergence other than DAC-KL;
    `clipped` (= 1 - retained_mass) at the limits of the ranges is there for a priced clip network only.
    """

    index: Tensor
    teacher_log_prob: Tensor
    teacher_entropy: Tensor
    dac_kl: Tensor
    lower: Tensor | None = None
    upper: Tensor | None = None
    retained_mass: Tensor | None = None
    clipped: Tensor | None = None
    clipped_min: Tensor | None = None
    clipped_max: Tensor | None = None


class LossTerms(NamedTuple):
    """Scalars. `total` and `clip_penalty` are differentiable, the three means are detached."""

    total: Tensor
    sft: Tensor
    dac_kl: Tensor
    span: Tensor
    clip_penalty: Tensor
    rows: RowStats | None = None


def finish(
    tiles: list[TileTerms],
    inputs: list[tuple[Tensor | None, Tensor | None]],
    bounds: RowBounds | None,
    price: Tensor | None,
    options: TermOptions,
    weights: Sequence[float],
    counts: TermCounts,
    kept_M: Tensor,
    dtype: torch.dtype,
) -> LossTerms:
    """Means, their weighted sum with its gradients attached, and the collected rows."""

    def mean(name: str, count: float) -> Tensor:
        total = torch.stack([getattr(tile, name) for tile in tiles]).sum()
        return total / count if count > 0 else torch.zeros_like(total)

    means = [mean("sft", counts.sft), mean("dac_kl", counts.dac_kl), mean("span", counts.span)]
    total = torch.zeros_like(means[0])
    for weight, value in zip(weights, means, strict=True):
        # a term without weight is left out: 0 * inf would be NaN
        if weight != 0:
            total = total + float(weight) * value
    penalty = torch.zeros_like(total)
    if price is not None and weights[1] != 0:
        penalty = float(weights[1]) * price.to(dtype) * mean("clipped", counts.dac_kl)
    known: list[tuple[Tensor, Tensor | None, Tensor | None]] = [
        (tensor, grad, None) for tensor, grad in inputs if tensor is not None and grad is not None
    ]
    lower = upper = None
    if bounds is not None:
        lower, upper = bounds.joined()
        if torch.is_grad_enabled() and (lower.requires_grad or upper.requires_grad):
            grads = torch.cat([tile.bounds_grad for tile in tiles if tile.bounds_grad is not None], dim=1)
            grads = grads * options.scales[1]
            priced = None if price is None else grads[2:] * price.to(dtype)
            for row, bound in enumerate((lower, upper)):
                known.append((bound, grads[row], None if priced is None else priced[row]))
    total, penalty = attach_gradients(total, penalty, known)
    stats = _row_stats(tiles, kept_M, lower, upper) if options.collect else None
    return LossTerms(total, means[0], means[1], means[2], penalty, stats)


def _row_stats(tiles: list[TileTerms], kept_M: Tensor, lower: Tensor | None, upper: Tensor | None) -> RowStats:
    columns = {name: torch.cat([tile.stats[name] for tile in tiles]) for name in tiles[0].stats}
    if lower is None or upper is None:
        columns.pop("clipped")
        return RowStats(index=kept_M, **columns)
    return RowStats(
        index=kept_M,
        lower=lower.detach(),
        upper=upper.detach(),
        retained_mass=1.0 - columns["clipped"],
        **columns,
    )
