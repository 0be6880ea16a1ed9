"""Compiled loops over whole rows of logits, for a CPU in float32: what would be many passes of tensors is one.

`fused/rows.py` calls them. The arithmetic of the objective is little, reading and writing `[R, V]` is what takes
time. So no probability of a whole row is kept: a loop makes it anew from the logits. numba compiles the loops when
they are first called and keeps them on disk.

Every loop takes a range of rows or of classes, so that threads share a call. Sums run in float32 over `BLOCK`
classes and in float64 over blocks.

Identity: with d_i = p_i p_{i+1} - q_i q_{i+1} the span's gradient to log q_i is q_i * g_i, where g_i is f_i d_i
q_{i+1} + f_{i-1} d_{i-1} q_{i-1} (`fused/span_correlation.py`). The factor f_i is not 0 where rows i, i + 1 are a
span pair.

Shapes: R rows, V classes, r chosen rows. Peak and prob `[R]` are a row's largest logit and its probability.
"""

# what numba compiles has types of its own
# mypy: ignore-errors

from __future__ import annotations

from typing import Any

import numpy as np
from numba import config, njit, types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from mgsr.runtime.processor import described, has_bf16_units

if config.CPU_FEATURES is None and has_bf16_units() and "avx512f" in described().get("flags", "").split():
    # LLVM takes half of an AVX-512 register on Intel's processors, as older ones then kept their clock
    config.CPU_FEATURES = f"{get_host_cpu_features()},-prefer-256-bit"

BLOCK = 1024
"""Classes that are worked on at a time: what a core's first cache holds of three rows of two models."""
LANES = 64
# arithmetic may be reordered, so that it is done many numbers at a time; NaN and infinity keep their meaning
FAST = {"reassoc", "contract", "arcp", "nsz", "afn"}
ORDERED = {"reassoc", "nsz", "nnan"}
F = np.float32


@intrinsic
def _float_of_bits(typing: Any, bits: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), build


@njit(fastmath=FAST, inline="always")
def _exp(x):
    """exp of a number up to 0: a polynomial of x less a multiple of log 2; 0 below the smallest normal number."""
    n = np.floor(F(1.44269504088896341) * x + F(0.5))
    r = x - n * F(0.693359375) + n * F(2.12194440e-4)
    y = F(1.9875691500e-4) * r + F(1.3981999507e-3)
    y = y * r + F(8.3334519073e-3)
    y = y * r + F(4.1665795894e-2)
    y = y * r + F(1.6666665459e-1)
    y = y * r + F(5.0000001201e-1)
    y = y * r * r + r + F(1.0)
    power = _float_of_bits(types.int32((types.int32(n) + types.int32(127)) << types.int32(23)))
    return F(0.0) if x < F(-87.0) else y * power


@njit(fastmath=ORDERED)
def largest(row):
    lanes = np.full(LANES, row[0], np.float32)
    whole = row.shape[0] // LANES * LANES
    for k in range(0, whole, LANES):
        for j in range(LANES):
            value = row[k + j]
            lanes[j] = value if value > lanes[j] else lanes[j]
    best = lanes[0]
    for j in range(LANES):
        best = max(best, lanes[j])
    for k in range(whole, row.shape[0]):
        best = max(best, row[k])
    return best


@njit(fastmath=FAST)
def _sums(teacher, t_peak, student, s_peak, edge):
    """Of each model: sums of e_k = exp(z_k - peak), e_k (z_k - peak), and e_k below the teacher's edge."""
    p, p_moment, p_below, q, q_moment, q_below = F(0.0), F(0.0), F(0.0), F(0.0), F(0.0), F(0.0)
    for k in range(teacher.shape[0]):
        x, y = teacher[k] - t_peak, student[k] - s_peak
        outside = F(teacher[k] < edge)
        e, f = _exp(x), _exp(y)
        p += e
        q += f
        p_below += e * outside
        q_below += f * outside
        # 0 * -inf would be no number
        p_moment += e * max(x, F(-1e30))
        q_moment += f * max(y, F(-1e30))
    return p, p_moment, p_below, q, q_moment, q_below


@njit(fastmath=FAST)
def _sums_below(teacher, t_peak, student, s_peak, edge):
    """Sums of both exp(z - peak) over the classes whose teacher logit is below `edge`."""
    p, q = F(0.0), F(0.0)
    for k in range(teacher.shape[0]):
        outside = F(teacher[k] < edge)
        p += _exp(teacher[k] - t_peak) * outside
        q += _exp(student[k] - s_peak) * outside
    return p, q


@njit(fastmath=FAST)
def _sums_at(teacher, t_peak, student, s_peak, edge):
    """Likewise, over those that equal `edge`."""
    p, q = F(0.0), F(0.0)
    for k in range(teacher.shape[0]):
        outside = F(teacher[k] == edge)
        p += _exp(teacher[k] - t_peak) * outside
        q += _exp(student[k] - s_peak) * outside
    return p, q


@njit(fastmath=FAST)
def _equal(values, wanted):
    count = np.int32(0)
    for k in range(values.shape[0]):
        count += np.int32(values[k] == wanted)
    return count


@njit(nogil=True, fastmath=FAST, cache=True)
def softmax_sums(first, stop, teacher, student, last, t_sums, s_sums):
    """What both models' softmaxes take, and their mass outside the teacher's most probable classes, in one pass.

    Args:
        last: `[R]`, the last class inside, as in `masses_outside`.
        t_sums, s_sums: `[4, R]`, rows `first` to `stop` are written: the largest logit (the teacher's is there
            already); the sum of e_k = exp(z_k - largest); that of e_k (z_k - largest); that of e_k outside.
    """
    width = teacher.shape[1]
    for i in range(first, stop):
        edge, t_peak, s_peak, ties = teacher[i, last[i]], t_sums[0, i], largest(student[i]), 0
        sums = np.zeros(6)
        for start in range(0, width, BLOCK):
            end = min(start + BLOCK, width)
            z, own = teacher[i, start:end], student[i, start:end]
            for j, value in enumerate(_sums(z, t_peak, own, s_peak, edge)):
                sums[j] += value
            ties += _equal(z, edge)
        # the last class itself is one of them
        for start in range(last[i] + 1 if ties > 1 else width, width, BLOCK):
            end = min(start + BLOCK, width)
            p, q = _sums_at(teacher[i, start:end], t_peak, student[i, start:end], s_peak, edge)
            sums[2] += p
            sums[5] += q
        s_sums[0, i] = s_peak
        t_sums[1:, i], s_sums[1:, i] = sums[:3], sums[3:]


@njit(fastmath=FAST)
def _probs(logits, peak, peak_prob, out):
    for k in range(logits.shape[0]):
        out[k] = _exp(logits[k] - peak) * peak_prob


@njit(nogil=True, fastmath=FAST, cache=True)
def masses_outside(first, stop, teacher, t_peak, t_prob, student, s_peak, s_prob, rows, last, apart, out):
    """Both models' mass of all classes outside a row's most probable ones, of rows `first` to `stop` of `rows`.

    Args:
        last: `[r]`, the last class inside; of those with its teacher logit the ones of smaller id are inside too.
        apart: `[r]`, one more class inside; -1: there is none.
        out: `[2, r]`.
    """
    width = teacher.shape[1]
    for i in range(first, stop):
        row, other, edge = rows[i], apart[i], teacher[rows[i], last[i]]
        sum_p, sum_q = 0.0, 0.0
        for start in range(0, width, 2 * BLOCK):
            end = min(start + 2 * BLOCK, width)
            cut = other if start <= other < end else end
            z, own = teacher[row, start:cut], student[row, start:cut]
            p, q = _sums_below(z, t_peak[row], own, s_peak[row], edge)
            sum_p += p
            sum_q += q
            if cut < end:
                z, own = teacher[row, cut + 1 : end], student[row, cut + 1 : end]
                p, q = _sums_below(z, t_peak[row], own, s_peak[row], edge)
                sum_p += p
                sum_q += q
            if _equal(teacher[row, start:end], edge):
                for k in range(max(start, last[i] + 1), end):
                    if teacher[row, k] == edge and k != other:
                        sum_p += _exp(teacher[row, k] - t_peak[row])
                        sum_q += _exp(student[row, k] - s_peak[row])
        out[0, i], out[1, i] = sum_p * t_prob[row], sum_q * s_prob[row]


@njit(fastmath=FAST)
def _pair(p, q, p_next, q_next, size):
    square, product = F(0.0), F(0.0)
    for k in range(size):
        both = q[k] * q_next[k]
        d = p[k] * p_next[k] - both
        square += d * d
        product += d * both
    return square, product


@njit(nogil=True, fastmath=FAST, cache=True)
def pair_sums(first, stop, teacher, t_peak, t_prob, student, s_peak, s_prob, factor, squares, products):
    """Sums over classes `first` to `stop`: d_i^2, and d_i q_i q_{i+1}, of the rows whose factor is not 0."""
    room = np.empty((4, BLOCK), np.float32)
    p, q, p_next, q_next = room[0], room[1], room[2], room[3]
    for start in range(first, stop, BLOCK):
        end = min(start + BLOCK, stop)
        held = -1
        for i in range(teacher.shape[0] - 1):
            if factor[i] == 0:
                continue
            if held != i:
                _probs(teacher[i, start:end], t_peak[i], t_prob[i], p)
                _probs(student[i, start:end], s_peak[i], s_prob[i], q)
            _probs(teacher[i + 1, start:end], t_peak[i + 1], t_prob[i + 1], p_next)
            _probs(student[i + 1, start:end], s_peak[i + 1], s_prob[i + 1], q_next)
            square, product = _pair(p, q, p_next, q_next, end - start)
            squares[i] += square
            products[i] += product
            p, p_next = p_next, p
            q, q_next = q_next, q
            held = i + 1


@njit(fastmath=FAST)
def _add_pair(f, p, q, p_next, q_next, g, g_next, size):
    for k in range(size):
        d = f * (p[k] * p_next[k] - q[k] * q_next[k])
        g[k] += d * q_next[k]
        g_next[k] = d * q[k]


@njit(fastmath=FAST)
def _scaled(q, g, teacher, edge, inside, outside, out):
    for k in range(out.shape[0]):
        out[k] = q[k] * (g[k] + (outside if teacher[k] < edge else inside))


@njit(nogil=True, fastmath=FAST, cache=True)
def row_gradient(
    first, stop, teacher, t_peak, t_prob, student, s_peak, s_prob, factor, inside, outside, last, apart, out, halo
):
    """Classes `first` to `stop` of q_i (g_i + scale_i), to `out [R, V]`, and of a row behind these to `halo [V]`.

    The scale is `inside [R]` or `outside [R]`, see `masses_outside`; of rows whose `last` is -1 all are inside.
    `out` may be the student's logits: a block of classes is read before it is written.
    """
    count, rows = out.shape[0], student.shape[0]
    room = np.empty((6, BLOCK), np.float32)
    p, q, g, p_next, q_next, g_next = room[0], room[1], room[2], room[3], room[4], room[5]
    for start in range(first, stop, BLOCK):
        end = min(start + BLOCK, stop)
        g[:] = F(0.0)
        _probs(student[0, start:end], s_peak[0], s_prob[0], q)
        held = -1
        for i in range(rows):
            if i + 1 < rows:
                _probs(student[i + 1, start:end], s_peak[i + 1], s_prob[i + 1], q_next)
            g_next[:] = F(0.0)
            if i + 1 < rows and factor[i] != 0:
                if held != i:
                    _probs(teacher[i, start:end], t_peak[i], t_prob[i], p)
                _probs(teacher[i + 1, start:end], t_peak[i + 1], t_prob[i + 1], p_next)
                _add_pair(factor[i], p, q, p_next, q_next, g, g_next, end - start)
                held = i + 1
            z, target = teacher[i, start:end], out[i, start:end] if i < count else halo[start:end]
            edge = teacher[i, last[i]] if last[i] >= 0 else F(-np.inf)
            _scaled(q, g, z, edge, inside[i], outside[i], target)
            if last[i] >= 0:
                if _equal(z, edge):
                    for k in range(max(last[i] + 1 - start, 0), end - start):
                        if z[k] == edge:
                            target[k] = q[k] * (g[k] + outside[i])
                if start <= apart[i] < end:
                    k = apart[i] - start
                    target[k] = q[k] * (g[k] + inside[i])
            p, p_next = p_next, p
            q, q_next = q_next, q
            g, g_next = g_next, g


@njit(nogil=True, cache=True)
def add_to_classes(first, stop, rows, ids, values, out):
    """Rows `first` to `stop` of `rows [r]`: adds `values [r, K]` to the classes `ids [r, K]` of `out [R, V]`."""
    for i in range(first, stop):
        row = out[rows[i]]
        for k in range(ids.shape[1]):
            row[ids[i, k]] += values[i, k]
