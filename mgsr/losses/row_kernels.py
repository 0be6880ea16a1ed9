"""Triton kernels over whole rows of logits, for a GPU in float32: what would be many passes of tensors is one.

`fused/kernel_rows.py` and `ranking.py` call them; `kernel_check` says whether they work on a machine. On a GPU the
arithmetic of the objective is little, and every pass over `[R, V]` is paid. So no probability of a whole row is
kept: a kernel makes it anew from the logits, p_k = exp((z_k - peak) + log_prob).

The identities are those of `row_loops`, the GPU's other half.

Shapes: R rows, V classes, K chosen classes of each. Peak and log_prob `[R]` are a row's largest logit and the
logarithm of its probability. Tensors are contiguous.
"""

# what Triton compiles has types of its own
# mypy: ignore-errors

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Classes that a program works on at a time, where it goes along a row."""
COLUMNS = 1024
"""Classes that a program works on where it goes down a run of rows."""
CHOSEN = 512


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """A kernel of tensors on one device, which need not be the current one; nothing to do is nothing to start."""
    device = arguments[0].device
    if all(grid):
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            kernel[grid](*arguments, **options)


@triton.jit
def _softmax_kernel(logits, peak, log_prob, entropy, width, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    best = -float("inf")
    total = 0.0
    moment = 0.0
    for start in range(0, width, block):
        k = start + tl.arange(0, block)
        z = tl.load(logits + row * width + k, mask=k < width, other=-float("inf"))
        higher = tl.maximum(best, tl.max(z, axis=0))
        # so long as all are -inf there is nothing to measure from
        base = tl.where(higher == -float("inf"), 0.0, higher)
        weight = tl.exp(z - base)
        # 0 * -inf would be no number
        product = tl.sum(tl.where(weight > 0, weight * (z - base), weight), axis=0)
        shrink = tl.where(best == -float("inf"), 0.0, tl.exp(best - base))
        gap = tl.where(best == -float("inf"), 0.0, best - base)
        moment = shrink * (moment + total * gap) + product
        total = shrink * total + tl.sum(weight, axis=0)
        best = higher
    log_total = tl.log(total)
    tl.store(peak + row, best)
    tl.store(log_prob + row, -log_total)
    tl.store(entropy + row, log_total - moment / total)


def softmax_sums(logits_RV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Peak, log_prob and the entropy, `[R]` each."""
    rows, width = logits_RV.shape
    peak, log_prob, entropy = (logits_RV.new_empty(rows) for _ in range(3))
    _launch(_softmax_kernel, (rows,), logits_RV, peak, log_prob, entropy, width, block=BLOCK, num_warps=8)
    return peak, log_prob, entropy


@triton.jit
def _prob(z, peak, log_prob, row):
    return tl.exp((z - tl.load(peak + row)) + tl.load(log_prob + row))


@triton.jit
def _is_inside(z, k, edge, last, apart):
    """See `row_loops.masses_outside`; where `last` is -1 all are."""
    return (z > edge) | ((z == edge) & (k <= last)) | (k == apart) | (last < 0)


@triton.jit
def _sums_kernel(
    teacher, t_peak, t_prob, student, s_peak, s_prob, factor, last, apart,
    outside_p, outside_q, squares, products, width, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    paired = tl.load(factor + row) != 0
    end = tl.load(last + row)
    other = tl.load(apart + row)
    edge = tl.load(teacher + row * width + end, mask=end >= 0, other=0.0)
    sum_p = tl.zeros([block], tl.float32)
    sum_q = tl.zeros([block], tl.float32)
    sum_d = tl.zeros([block], tl.float32)
    sum_b = tl.zeros([block], tl.float32)
    for start in range(0, width, block):
        k = start + tl.arange(0, block)
        there = k < width
        z = tl.load(teacher + row * width + k, mask=there, other=-float("inf"))
        p = _prob(z, t_peak, t_prob, row)
        own = tl.load(student + row * width + k, mask=there, other=-float("inf"))
        q = _prob(own, s_peak, s_prob, row)
        inside = _is_inside(z, k, edge, end, other)
        sum_p += tl.where(inside, 0.0, p)
        sum_q += tl.where(inside, 0.0, q)
        if paired:
            z = tl.load(teacher + (row + 1) * width + k, mask=there, other=-float("inf"))
            own = tl.load(student + (row + 1) * width + k, mask=there, other=-float("inf"))
            both = q * _prob(own, s_peak, s_prob, row + 1)
            d = p * _prob(z, t_peak, t_prob, row + 1) - both
            sum_d += d * d
            sum_b += d * both
    tl.store(outside_p + row, tl.sum(sum_p, axis=0))
    tl.store(outside_q + row, tl.sum(sum_q, axis=0))
    tl.store(squares + row, tl.sum(sum_d, axis=0))
    tl.store(products + row, tl.sum(sum_b, axis=0))


def row_sums(
    models: tuple[Tensor, ...], factor_R: Tensor, last_R: Tensor, apart_R: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both models' masses outside, and of pairs the sums of d_i^2 and d_i q_i q_{i+1}, `[R]` each.

    Args:
        models: logits, peak and log_prob of the teacher, then of the student.
        factor_R: not 0 where rows i, i + 1 are a pair; 0 in the last row.
        last_R: the last class inside, see `row_loops.masses_outside`; -1: all are inside.
        apart_R: one more class inside; -1: none.
    """
    rows, width = models[0].shape
    sums = [factor_R.new_empty(rows) for _ in range(4)]
    arguments = *models, factor_R, last_R, apart_R, *sums, width
    _launch(_sums_kernel, (rows,), *arguments, block=BLOCK // 2, num_warps=8)
    return sums[0], sums[1], sums[2], sums[3]


@triton.jit
def _gradient_kernel(
    teacher, t_peak, t_prob, student, s_peak, s_prob, factor, inside_scale, outside_scale, last, apart,
    label, label_factor, out, halo, rows, count, width, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * block + tl.arange(0, block)
    # a run of rows whose neighbours are pairs is one program's: `out` may be the logits, which are read before
    going = tl.load(factor + row - 1, mask=row > 0, other=0.0) == 0
    f = tl.load(factor + row)
    there = k < tl.where(going, width, 0)
    z = tl.load(teacher + row * width + k, mask=there, other=-float("inf"))
    own = tl.load(student + row * width + k, mask=there, other=-float("inf"))
    p = _prob(z, t_peak, t_prob, row)
    q = _prob(own, s_peak, s_prob, row)
    g = tl.zeros([block], tl.float32)
    while going:
        paired = f != 0
        ahead = k < tl.where(paired, width, 0)
        z_next = tl.load(teacher + (row + 1) * width + k, mask=ahead, other=-float("inf"))
        own = tl.load(student + (row + 1) * width + k, mask=ahead, other=-float("inf"))
        after = tl.where(paired, row + 1, row)
        p_next = _prob(z_next, t_peak, t_prob, after)
        q_next = _prob(own, s_peak, s_prob, after)
        d = tl.where(paired, f * (p * p_next - q * q_next), 0.0)
        end = tl.load(last + row)
        edge = tl.load(teacher + row * width + end, mask=end >= 0, other=0.0)
        inside = _is_inside(z, k, edge, end, tl.load(apart + row))
        scale = tl.where(inside, tl.load(inside_scale + row), tl.load(outside_scale + row))
        value = q * (tl.where(paired, g + d * q_next, g) + scale)
        f_label = tl.load(label_factor + row, mask=row < count, other=0.0)
        value -= tl.where(k == tl.load(label + row, mask=row < count, other=-1), f_label, 0.0)
        tl.store(out + row * width + k, value, mask=k < tl.where(row < count, width, 0))
        tl.store(halo + k, value, mask=k < tl.where(row < count, 0, width))
        g = d * q
        z = z_next
        p = p_next
        q = q_next
        row = row + 1
        going = paired
        f = tl.load(factor + row, mask=row < rows, other=0.0)


@triton.jit
def _chosen_kernel(ids, added, out, width, chosen, block: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * block + tl.arange(0, block)
    there = place < chosen
    at = out + row * width + tl.load(ids + row * chosen + place, mask=there, other=0)
    value = tl.load(at, mask=there, other=0.0) + tl.load(added + row * chosen + place, mask=there, other=0.0)
    tl.store(at, value, mask=there)


def row_gradient(
    models: tuple[Tensor, ...],
    factor_R: Tensor,
    scales_2R: Tensor,
    bounds_2R: Tensor,
    label_R: Tensor,
    label_factor_R: Tensor,
    out_RV: Tensor,
    chosen: tuple[Tensor, Tensor] | None,
) -> Tensor | None:
    """q_i (g_i + scale_i), less `label_factor` at the label, to `out`; of a row behind its rows it comes back.

    Args:
        models, factor_R: see `row_sums`.
        scales_2R: of the classes inside and outside; `bounds_2R` are `last` and `apart`.
        label_R: `[rows of out]`, likewise `label_factor_R`.
        out_RV: may be the student's logits.
        chosen: ids `[rows of out, K]`, which differ within a row, and what is added there.
    """
    rows, width = models[0].shape
    count = len(out_RV)
    halo = out_RV.new_empty(rows - count, width)
    behind = halo if rows > count else out_RV
    grid = triton.cdiv(width, COLUMNS), rows
    pointers = *models, factor_R, *scales_2R, *bounds_2R, label_R, label_factor_R, out_RV, behind
    _launch(_gradient_kernel, grid, *pointers, rows, count, width, block=COLUMNS, num_warps=4)
    if chosen is not None:
        ids, added = chosen
        grid = triton.cdiv(ids.shape[1], CHOSEN), count
        _launch(_chosen_kernel, grid, ids, added, out_RV, width, ids.shape[1], block=CHOSEN, num_warps=4)
    return halo if rows > count else None


@triton.jit
def _first_kernel(logits, edges, above, ids, width, depth, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    edge = tl.load(edges + row)
    found = tl.load(above + row)
    start = 0
    while (start < width) & (found < depth):
        k = start + tl.arange(0, block)
        z = tl.load(logits + row * width + k, mask=k < width, other=float("nan"))
        equal = (z == edge).to(tl.int64)
        place = found + tl.cumsum(equal, axis=0) - 1
        tl.store(ids + row * depth + place, k.to(tl.int64), mask=(equal > 0) & (place < depth))
        found += tl.sum(equal, axis=0)
        start += block


def first_equal(logits_RV: Tensor, edge_R: Tensor, above_R: Tensor, ids_RK: Tensor) -> None:
    """From place `above` on, `ids` are the first classes whose logit is `edge`; K - above of them or more are.

    Args:
        above_R: int64.
        ids_RK: int64, written; in a row where nothing equals `edge`, as NaN does not, it stays as it is.
    """
    depth, width = ids_RK.shape[1], logits_RV.shape[1]
    arguments = logits_RV, edge_R.contiguous(), above_R, ids_RK, width, depth
    _launch(_first_kernel, (len(ids_RK),), *arguments, block=COLUMNS, num_warps=4)
