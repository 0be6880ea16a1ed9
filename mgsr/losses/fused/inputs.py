"""What `tiled_objective` makes of its arguments before the first tile: checks, rows, denominators, tile size.

Shapes: N rows, M rows that are response tokens, V classes, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mgsr.losses.clip_bounds import RowBounds
from mgsr.losses.fused.dac_kl import ClipOptions
from mgsr.losses.fused.tile import TileRows
from mgsr.losses.reduction import IGNORED, TermCounts, span_pairs, term_counts

TILE_ELEMENTS = {"cpu": 12_000_000, "cuda": 32_000_000}
"""Logits per tile where no `tile_size` is given, by device type."""
PART_ELEMENTS = 2_600_000
"""Logits that are worked on at a time on a CPU: what a core's cache holds."""


def check_inputs(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | None,
    teacher_weight: Tensor | None,
    labels: Tensor,
    span_ids: Tensor | None,
    sft_mask: Tensor | None,
    weights: Sequence[float],
    vocab_size: int | None,
) -> int:
    """Refuse what doesn't fit together; returns the number of classes used."""
    if len(weights) != 3:
        raise ValueError(f"weights must be three numbers (sft, dac_kl, span), got {len(weights)}")
    if (teacher_hidden is None) != (teacher_weight is None):
        raise ValueError("teacher_hidden and teacher_weight must be given both or not at all")
    if teacher_hidden is None and (weights[1] != 0 or weights[2] != 0):
        raise ValueError(f"without a teacher the weights of dac_kl and span must be 0, got {tuple(weights)}")
    count = labels.numel()
    if labels.dim() != 1:
        raise ValueError(f"labels must be one-dimensional, got shape {tuple(labels.shape)}")
    named = [("student_hidden", student_hidden), ("teacher_hidden", teacher_hidden)]
    for name, tensor in [*named, ("span_ids", span_ids), ("sft_mask", sft_mask)]:
        if tensor is not None and tensor.shape[0] != count:
            raise ValueError(f"{name} has {tensor.shape[0]} rows, labels {count}")
    widths = [weight.shape[0] for weight in (student_weight, teacher_weight) if weight is not None]
    width = vocab_size if vocab_size is not None else widths[0]
    if vocab_size is None and len(set(widths)) > 1:
        raise ValueError(
            f"the output layers have {widths[0]} and {widths[1]} classes; give the shared `vocab_size`"
        )
    if not 0 < width <= min(widths):
        raise ValueError(f"vocab_size must lie between 1 and {min(widths)}, got {width}")
    bad = (labels != IGNORED) & ((labels < 0) | (labels >= width))
    if bool(bad.any()):
        raise ValueError(f"label {int(labels[bad][0])} lies outside the {width} classes (and isn't {IGNORED})")
    return width


def response_rows(
    labels: Tensor, span_ids: Tensor | None, sft_mask: Tensor | None, response_N: Tensor, kept_M: Tensor
) -> TileRows:
    """Labels, ground truth and pairs of the response rows; pairs are found before the others are dropped."""
    is_pair_N = torch.zeros_like(response_N)
    if span_ids is not None and labels.numel() > 1:
        is_pair_N[:-1] = span_pairs(span_ids, response_N)
    truth_N = response_N if sft_mask is None else sft_mask.bool()
    return TileRows(labels[kept_M], truth_N[kept_M], is_pair_N[kept_M])


def term_scales(
    weights: Sequence[float],
    counts: Sequence[float | Tensor] | None,
    labels: Tensor,
    span_ids: Tensor | None,
    sft_mask: Tensor | None,
) -> tuple[tuple[float, float, float], TermCounts]:
    """Weight over denominator of each term (0 where the denominator is), and the denominators."""
    if counts is None:
        found = term_counts(labels, span_ids, sft_mask)
    else:
        if len(counts) != 3:
            raise ValueError(f"counts must be three numbers (ground truth, response, pairs), got {len(counts)}")
        found = TermCounts(*(float(count) for count in counts))
    sft, dac, span = (float(w) / count if count > 0 else 0.0 for w, count in zip(weights, found, strict=True))
    return (sft, dac, span), found


def keeps_everything(bounds: RowBounds | None, clipping: ClipOptions) -> bool:
    if bounds is None or bounds.fixed is None or clipping.form != "normalised":
        return False
    return bounds.fixed[0] <= -clipping.margin and bounds.fixed[1] >= 1.0 + clipping.margin


def rows_per_tile(tile_size: int | None, count: int, width: int, device_type: str) -> int:
    if tile_size is not None:
        if tile_size < 1:
            raise ValueError(f"tile_size must be at least 1, got {tile_size}")
        return tile_size
    size = max(64, TILE_ELEMENTS.get(device_type, TILE_ELEMENTS["cpu"]) // width)
    tiles = max(1, math.ceil(count / size))
    return max(1, math.ceil(count / tiles))


def rows_per_part(tile_size: int | None, size: int, width: int, device_type: str) -> int:
    """Rows of a tile that are worked on at a time: all of them, but on a CPU."""
    if tile_size is not None or device_type != "cpu":
        return size
    parts = max(1, round(size * width / PART_ELEMENTS))
    return max(1, math.ceil(size / parts))
