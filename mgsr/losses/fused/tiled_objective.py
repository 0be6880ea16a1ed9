"""The whole objective from hidden states, in tiles of tokens: no [N, V] tensor ever stands in memory.

    total = w_sft * L_SFT + w_dac * L_DAC-KL + w_span * L_span        (Liu et al. 2024, arXiv 2407.10068)

Both models' logits are made, used and dropped tile by tile; the gradients to the hidden states and the output
layer are accumulated on the way, so that backward only scales them.

Definitions: `cross_entropy`, `dac_kl` or another divergence, and `span_correlation` of `mgsr.losses`.

Shapes: N rows, M rows that are response tokens, V classes, H_S and H_T the hidden sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mgsr.losses.clip_bounds import Clip, ClipOptions
from mgsr.losses.divergences import DIVERGENCES, Divergence
from mgsr.losses.fused.model_rows import ModelRows, StudentRows
from mgsr.losses.fused.open_rows import OpenRows
from mgsr.losses.fused.response_rows import check_labels, check_rows, of_answers, response_rows
from mgsr.losses.fused.rows import rows_by
from mgsr.losses.fused.selection import RowBounds
from mgsr.losses.fused.tile import TermOptions, TileTerms, run_tiles
from mgsr.losses.log_probs import compute_dtype
from mgsr.losses.projection import OutputLayer
from mgsr.losses.reduction import AnswerRows, LossTerms, RowStats, TermCounts, weighted_sum
from mgsr.losses.span_correlation import check_relation
from mgsr.losses.teacher_topk import CachedRows


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
    divergence: str | Divergence = "dac_kl",
    divergence_kwargs: dict[str, Any] | None = None,
    written_divergence: str | Divergence | None = None,
    written_kwargs: dict[str, Any] | None = None,
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
    answers: AnswerRows | None = None,
    watch: Callable[[Tensor], None] | None = None,
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
        clip: (lower, upper), numbers or tensors that expand to `[N]`, or a module (`ClipModule`).
        weights: of cross-entropy, DAC-KL and span correlation.
        sft_mask: `[N]`, True on ground-truth rows; None: all are.
        counts: denominators (ground-truth tokens, response tokens, span pairs) over the whole optimiser step;
            None: those of this call. A count of 0 gives a zero term.
        tile_size: rows per tile; None: what keeps a tile's logits at a few million.
        product_dtype: torch.bfloat16: the factors of the matrix products are rounded to it; sums, softmaxes and
            losses stay in float32. None: so on a GPU under bfloat16 autocast or with bfloat16 output layers.
        divergence: "dac_kl", or what takes its place (`clip` is then not read): a name in `DIVERGENCES`, or a
            function like those.
        divergence_kwargs: further arguments of that divergence.
        written_divergence: another one for the rows outside `sft_mask`, with `written_kwargs`; None: the same. Not
            beside "dac_kl".
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
        answers: the rows that count, as `labels`, `span_ids` and `sft_mask` have them, where they are known; these
            are then not looked at, which a GPU would be waited for.
        watch: sees the gradient to the student's logits, tile by tile, `[R, V]`.

    Returns:
        `LossTerms`: means of the three terms (whatever their weights), their weighted sum, and w_dac * price *
        mean clipped mass; in float32 or wider.

    Raises:
        ValueError: shapes or vocabularies don't fit together, a label is out of range, or an option is unknown.
    """
    student = OutputLayer(student_weight, student_bias, student_scale, student_softcap)
    teacher = None
    if teacher_weight is not None:
        teacher = OutputLayer(teacher_weight, teacher_bias, teacher_scale, teacher_softcap)
    check_relation(span_norm, span_relation)
    if isinstance(divergence, str) and divergence not in ("dac_kl", *DIVERGENCES):
        raise ValueError(f"divergence must be one of {', '.join(['dac_kl', *DIVERGENCES])}, got {divergence!r}")
    if written_divergence is not None and (divergence == "dac_kl" or written_divergence == "dac_kl"):
        raise ValueError("written_divergence stands beside another divergence than dac_kl")
    if isinstance(written_divergence, str) and written_divergence not in DIVERGENCES:
        raise ValueError(f"written_divergence must be one of {', '.join(DIVERGENCES)}, got {written_divergence!r}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    width, dtype = check_inputs(student_hidden, student, teacher_hidden, teacher, labels, weights, vocab_size)
    if answers is None:
        rows, label_range, own_counts = response_rows(labels, span_ids, sft_mask)
    else:
        rows, label_range, own_counts = of_answers(answers)
    check_labels(label_range, width)
    step = own_counts if counts is None else _denominators(counts)
    sft, dac, pairs = (float(w) / count if count > 0 else 0.0 for w, count in zip(weights, step, strict=True))
    clipping = ClipOptions.of(clip, sharpness, ramp, quantile, target, form, keep_target)
    has_teacher = teacher is not None and teacher_hidden is not None
    bounds = None
    if has_teacher and divergence == "dac_kl":
        bounds = RowBounds(clip, clipping, rows.place, labels.numel(), dtype, collect=collect_rows)
    depth = 0 if bounds is None else bounds.depth
    options = TermOptions(
        (sft, dac, pairs),
        divergence,
        dict(divergence_kwargs or {}),
        None if written_divergence is None else (written_divergence, dict(written_kwargs or {})),
        temperature,
        span_norm,
        span_relation,
        collect_rows and has_teacher,
        rows_by(labels.device, dtype, width, depth, span_norm, span_relation),
    )
    own = StudentRows(student_hidden, student, width, dtype, product_dtype, watch)
    taught = None
    if teacher is not None and teacher_hidden is not None:
        taught = ModelRows(teacher_hidden, teacher, width, dtype, product_dtype, cached)
    with torch.no_grad(), torch.autocast(student_hidden.device.type, enabled=False):
        tiles, left = run_tiles(own, taught, rows, bounds, options, tile_size)
    return _finish(tiles, left, own, bounds, options, weights, step, rows.place)


def check_inputs(
    student_hidden: Tensor,
    student: OutputLayer,
    teacher_hidden: Tensor | None,
    teacher: OutputLayer | None,
    labels: Tensor,
    weights: Sequence[float],
    vocab_size: int | None,
) -> tuple[int, torch.dtype]:
    """Refuse what doesn't fit together; returns the number of classes used, and the dtype of sums and losses."""
    if len(weights) != 3:
        raise ValueError(f"weights must be three numbers (sft, dac_kl, span), got {len(weights)}")
    if (teacher_hidden is None) != (teacher is None):
        raise ValueError("teacher_hidden and teacher_weight must be given both or not at all")
    if teacher is None and (weights[1] != 0 or weights[2] != 0):
        raise ValueError(f"without a teacher the weights of dac_kl and span must be 0, got {tuple(weights)}")
    if labels.dim() != 1:
        raise ValueError(f"labels must be one-dimensional, got shape {tuple(labels.shape)}")
    for name, hidden in (("student_hidden", student_hidden), ("teacher_hidden", teacher_hidden)):
        check_rows(name, hidden, labels)
    layers = [layer.weight for layer in (student, teacher) if layer is not None]
    widths = [weight.shape[0] for weight in layers]
    width = vocab_size if vocab_size is not None else widths[0]
    if vocab_size is None and len(set(widths)) > 1:
        raise ValueError(
            f"the output layers have {widths[0]} and {widths[1]} classes; give the shared `vocab_size`"
        )
    if not 0 < width <= min(widths):
        raise ValueError(f"vocab_size must lie between 1 and {min(widths)}, got {width}")
    states = [student_hidden] if teacher_hidden is None else [student_hidden, teacher_hidden]
    return width, compute_dtype(*states, *layers)


def _denominators(counts: Sequence[float | Tensor]) -> TermCounts:
    if len(counts) != 3:
        raise ValueError(f"counts must be three numbers (ground truth, response, pairs), got {len(counts)}")
    return TermCounts(*(float(count) for count in counts))


def _finish(
    tiles: list[TileTerms],
    left: OpenRows | None,
    student: StudentRows,
    bounds: RowBounds | None,
    options: TermOptions,
    weights: Sequence[float],
    counts: TermCounts,
    kept_M: Tensor,
) -> LossTerms:
    """Means, their weighted sum with its gradients, and the collected rows."""

    def mean(name: str, count: float) -> Tensor:
        total = torch.stack([getattr(tile, name) for tile in tiles]).sum()
        if left is not None and name in ("dac_kl", "clipped"):
            total = total + (left.loss if name == "dac_kl" else left.clipped).sum()
        return total / count if count > 0 else torch.zeros_like(total)

    means = [mean(name, count) for name, count in zip(("sft", "dac_kl", "span"), counts, strict=True)]
    total = weighted_sum(means, weights)
    penalty = torch.zeros_like(total)
    lower = upper = None
    known: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
    if bounds is not None:
        if bounds.price is not None and weights[1] != 0:
            clipped = mean("clipped", counts.response_tokens)
            penalty = float(weights[1]) * bounds.price.to(student.dtype) * clipped
        given = (tile.bounds for tile in tiles if tile.bounds is not None)
        lower, upper = (torch.cat(parts) for parts in zip(*given, strict=True))
        if torch.is_grad_enabled() and (lower.requires_grad or upper.requires_grad):
            found = [tile.bounds_grad for tile in tiles if tile.bounds_grad is not None]
            # left out and not multiplied where the term has no weight: 0 * inf would be NaN
            scale, grads = options.scales[1], torch.cat(found, dim=1)
            if left is not None and left.bounds_grad is not None:
                grads = grads.index_copy(1, left.place, left.bounds_grad)
            grads = grads * scale if scale else torch.zeros_like(grads)
            priced = None if bounds.price is None else grads[2:] * bounds.price.to(student.dtype)
            known = [(b, grads[i], None if priced is None else priced[i]) for i, b in enumerate((lower, upper))]
    total, penalty = student.attach(total, penalty, known)
    if not options.collect:
        return LossTerms(total, means[0], means[1], means[2], penalty)
    columns = {name: torch.cat([tile.stats[name] for tile in tiles]) for name in tiles[0].stats}
    if left is not None:
        columns = {name: left.put(name, column) for name, column in columns.items()}
    clipped_M = columns.pop("clipped")
    if lower is not None and upper is not None:
        columns |= {"lower": lower.detach(), "upper": upper.detach()}
        columns |= {"retained_mass": 1.0 - clipped_M, "clipped": clipped_M}
    return LossTerms(total, means[0], means[1], means[2], penalty, RowStats(index=kept_M, **columns))
