"""The whole objective from hidden states, in tiles of tokens: no [N, V] tensor ever stands in memory.

    total = w_sft * L_SFT + w_dac * L_DAC-KL + w_span * L_span        (Liu et al. 2024, arXiv 2407.10068)

Both models' logits are made, used and dropped tile by tile; the gradients to the hidden states and the output
layer are accumulated on the way, so that backward only scales them.

Shapes: N rows, M rows that are response tokens, V classes, H_S and H_T the hidden sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mgsr.losses.clip_bounds import Clip, RowBounds, resolve_sharpness
from mgsr.losses.divergences import compute_dtype
from mgsr.losses.fused.dac_kl import ClipOptions
from mgsr.losses.fused.inputs import (
    check_inputs,
    keeps_everything,
    response_rows,
    rows_per_part,
    rows_per_tile,
    term_scales,
)
from mgsr.losses.fused.loss_terms import LossTerms, finish
from mgsr.losses.fused.projection import Head, factor_dtype
from mgsr.losses.fused.tile import TermOptions, TileRows, TileTerms, tile_terms
from mgsr.losses.fused.workspace import Workspace
from mgsr.losses.reduction import IGNORED
from mgsr.losses.teacher_topk import CachedRows, TeacherRows


def tiled_objective(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | None,
    teacher_weight: Tensor | None,
    labels: Tensor,
    span_ids: Tensor | None,
    *,
    clip: Clip = None,
    weights: Sequence[float] = (1.0, 1.0, 1.0),
    sft_mask: Tensor | None = None,
    counts: Sequence[float | Tensor] | None = None,
    tile_size: int | None = None,
    product_dtype: torch.dtype | None = None,
    divergence: str = "dac_kl",
    divergence_kwargs: dict[str, Any] | None = None,
    temperature: float = 1.0,
    sharpness: float | None = None,
    ramp: str = "clipped",
    quantile: str = "mass",
    target: str = "argmax",
    keep_target: bool = True,
    form: str = "normalised",
    span_norm: str = "l2_squared",
    span_relation: str = "hadamard",
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    student_scale: float = 1.0,
    teacher_scale: float = 1.0,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    vocab_size: int | None = None,
    cached: CachedRows | None = None,
    collect_rows: bool = False,
) -> LossTerms:
    """Cross-entropy, DAC-KL and span correlation of N rows; hidden state n predicts `labels[n]`.

    Train on `total + clip_penalty`. Gradients reach the student's hidden states, weight and bias and the clip
    module (or tensor bounds); never the teacher. `clip_penalty` reaches the clip module alone.

    Args:
        student_hidden: `[N, H_S]`.
        student_weight: `[V, H_S]`, the student's output layer; may be tied to its embeddings.
        teacher_hidden: `[N, H_T]`, or None if the weights of both teacher terms are 0.
        teacher_weight: `[V, H_T]`, or None.
        labels: `[N]`, -100 where the row predicts no response token.
        span_ids: `[N]`, of the label, unique within the call, -1 = in no span; None: no spans. A pair is rows
            n, n + 1 of one span that are both response tokens.
        clip: (lower, upper), numbers or tensors that expand to `[N]`, or a module (`bounds.ClipModule`).
        weights: of cross-entropy, DAC-KL and span correlation.
        sft_mask: `[N]`, True on ground-truth rows; None: all are.
        counts: denominators (ground-truth tokens, response tokens, span pairs) over the whole optimiser step;
            None: those of this call. A count of 0 gives a zero term.
        tile_size: rows per tile; None: what keeps a tile's logits at a few million.
        product_dtype: torch.bfloat16: the factors of the matrix products are rounded to it; sums, softmaxes and
            losses stay in float32. None: so on a GPU under bfloat16 autocast or with bfloat16 output layers.
        divergence: "dac_kl", or a name in `DIVERGENCES` that takes its place (`clip` is then not read).
        divergence_kwargs: further arguments of that divergence.
        temperature: of the two teacher terms; cross-entropy is always at 1.
        sharpness: None takes the clip module's, or 0.005.
        ramp, quantile, keep_target, form: see `dac_kl`.
        target: "argmax" (the teacher's top class) or "label".
        span_norm, span_relation: see `span_correlation`.
        student_bias, teacher_bias: `[V]`.
        student_scale, teacher_scale: logits = scale * (h W^T + b).
        student_softcap, teacher_softcap: then cap * tanh(logits / cap).
        vocab_size: both output layers are cut to this many classes (padded vocabularies of different widths).
        cached: rows whose teacher distribution comes from a cache; their `teacher_hidden` is not read.
        collect_rows: fill `rows` with per-row statistics.

    Returns:
        `LossTerms`: means of the three terms (whatever their weights), their weighted sum, and w_dac * price *
        mean clipped mass; in float32 or wider.

    Raises:
        ValueError: shapes or vocabularies don't fit together, a label is out of range, or an option is unknown.
    """
    has_teacher = teacher_hidden is not None and teacher_weight is not None
    width = check_inputs(
        student_hidden,
        student_weight,
        teacher_hidden,
        teacher_weight,
        labels,
        span_ids,
        sft_mask,
        weights,
        vocab_size,
    )
    given = [t for t in (student_hidden, student_weight, teacher_hidden, teacher_weight) if t is not None]
    dtype = compute_dtype(*given)
    response_N = labels != IGNORED
    kept_M = response_N.nonzero().squeeze(1)
    rows = response_rows(labels, span_ids, sft_mask, response_N, kept_M)
    scales, step_counts = term_scales(weights, counts, labels, span_ids, sft_mask)
    bounds = RowBounds(clip, kept_M, labels.numel(), dtype) if has_teacher and divergence == "dac_kl" else None
    clipping = ClipOptions(resolve_sharpness(sharpness, clip), ramp, quantile, target, form, keep_target)
    price = None if bounds is None else bounds.price
    options = TermOptions(
        scales,
        divergence,
        dict(divergence_kwargs or {}),
        temperature,
        clipping,
        span_norm,
        span_relation,
        features=0 if bounds is None else bounds.features,
        keep_all=keeps_everything(bounds, clipping),
        limits=() if bounds is None or not collect_rows else bounds.limits(clipping.sharpness),
        collect=collect_rows and has_teacher,
    )
    grad_on = torch.is_grad_enabled()
    wants = [grad_on and t is not None and t.requires_grad for t in (student_hidden, student_weight, student_bias)]
    device = student_hidden.device
    factors = [None if w is None else factor_dtype(w, product_dtype) for w in (student_weight, teacher_weight)]
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        student = Head(
            student_weight,
            student_bias,
            scale=student_scale,
            softcap=student_softcap,
            width=width,
            dtype=dtype,
            factors=factors[0],
            accumulate=(wants[1], wants[2]),
        )
        teacher = None
        if teacher_hidden is not None and teacher_weight is not None:
            teacher = Head(
                teacher_weight,
                teacher_bias,
                scale=teacher_scale,
                softcap=teacher_softcap,
                width=width,
                dtype=dtype,
                factors=factors[1],
            )
        size = rows_per_tile(tile_size, kept_M.numel(), width, device.type)
        sizes = size, rows_per_part(tile_size, size, width, device.type)
        taught = None
        if teacher is not None and teacher_hidden is not None:
            taught = TeacherRows(teacher, teacher_hidden.detach(), kept_M, cached)
        tiles, grad_hidden = _run(student_hidden, student, taught, kept_M, rows, bounds, options, sizes, wants)
    return finish(
        tiles,
        [
            (student_hidden, grad_hidden),
            (student_weight, student.grad_weight),
            (student_bias, student.grad_bias),
        ],
        bounds,
        price,
        options,
        weights,
        step_counts,
        kept_M,
        dtype,
    )


def _run(
    student_hidden: Tensor,
    student: Head,
    teacher: TeacherRows | None,
    kept_M: Tensor,
    rows: TileRows,
    bounds: RowBounds | None,
    options: TermOptions,
    sizes: tuple[int, int],
    wants: list[bool],
) -> tuple[list[TileTerms], Tensor | None]:
    """All tiles in order, and the gradient to the student's hidden states `[N, H_S]`."""
    dtype, device, count = student.dtype, student_hidden.device, kept_M.numel()
    # rows are picked tile by tile, here and in `TeacherRows`: copies of all of them would grow with N
    hidden_NH = student_hidden.detach()
    grad_NH = torch.zeros(hidden_NH.shape, dtype=dtype, device=device) if wants[0] else None
    tiles: list[TileTerms] = []
    room = Workspace(device, dtype)
    pairs = rows.is_pair.tolist()
    # without any row one empty tile still calls the clip module: its parameters then get a zero gradient
    for start in range(0, max(count, 1), sizes[0]):
        stop = min(start + sizes[0], count)
        end = stop + int(stop < count and pairs[stop - 1])
        chosen = kept_M[start:end]
        part = hidden_NH[chosen].to(dtype)
        logits = student.project(part, room.take("student logits", end - start, student.width))
        taught = None
        if teacher is not None:
            taught = teacher.logits(start, end, room.take("teacher logits", end - start, student.width))
        grad = None
        if any(wants):
            # the gradient takes the logits' place, unless a soft cap reads them once more
            grad = logits if student.softcap is None else room.take("gradient", *logits.shape)
        tiles += _parts(logits, taught, grad, rows, pairs, (start, stop), bounds, options, sizes[1], room)
        if grad is not None:
            pulled = student.pull(grad, logits, part, to_hidden=wants[0])
            if grad_NH is not None and pulled is not None:
                grad_NH[chosen] += pulled
    return tiles, grad_NH


def _parts(
    logits: Tensor,
    taught: Tensor | None,
    grad: Tensor | None,
    rows: TileRows,
    pairs: list[bool],
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
    start, stop = span
    found = []
    carried: Tensor | None = None
    for first in range(start, max(stop, start + 1), size):
        last = min(first + size, stop)
        reach = last + int(last < len(pairs) and pairs[last - 1])
        here = slice(first - start, reach - start)

        def bounds_of(*arguments: Any, first: int = first, last: int = last) -> tuple[Tensor, Tensor]:
            assert bounds is not None
            return bounds.tile(first, last, *arguments)

        own = TileRows(*(tensor[first:last] for tensor in rows))
        out = None if grad is None else grad[first - start : last - start]
        theirs = None if taught is None else taught[here]
        terms = tile_terms(theirs, logits[here], own, bounds_of, options, room, grad=out)
        if out is not None and carried is not None:
            out[:1] += carried
        # the halo row's gradient waits for its own part, which still needs the logits there
        carried = terms.halo_grad
        found.append(terms._replace(halo_grad=None))
    if grad is not None and reach > stop:
        # the tile's own halo
        grad[stop - start :] = 0.0 if carried is None else carried
    return found
