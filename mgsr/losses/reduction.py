"""From losses of single tokens to the terms of a step: shifting, masks, denominators, the one global mean.

Shapes: B sequences, T positions, N = B * (T - 1) flattened rows, M response rows among them. A causal model's
state at position t - 1 predicts token t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100
"""Label of a row that is no response token."""


class TermCounts(NamedTuple):
    """Denominators of the three terms: of cross-entropy, of the token-level divergence, of span correlation."""

    ground_truth_tokens: float
    response_tokens: float
    span_pairs: float


class AnswerRows(NamedTuple):
    """The M rows that predict a response token, among the N rows of a call.

    Whoever makes a batch knows them before they lie on a GPU: to ask that is to wait for all its work.

    Attributes:
        place, labels: `[M]`, where they are and what they predict.
        truth: `[M]`, on ground truth. `truth_place`, `written_place`: the places of those, and of the others.
        is_pair: `[M]`, row i and i + 1 are neighbours in one span. `pairs`: the same in Python.
        label_range: the smallest and the largest label; (0, 0) without rows.
    """

    place: Tensor
    labels: Tensor
    truth: Tensor
    truth_place: Tensor
    written_place: Tensor
    is_pair: Tensor
    pairs: tuple[bool, ...]
    label_range: tuple[int, int]


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


def align_predictions(states_BTX: Tensor) -> Tensor:
    """Move every state one position on, so that entry t scores token t. Entry 0, which nothing predicts, is 0.

    >>> align_predictions(torch.tensor([[[1.0], [2.0], [3.0]]])).flatten()
    tensor([0., 1., 2.])
    """
    return torch.cat([torch.zeros_like(states_BTX[:, :1]), states_BTX[:, :-1]], dim=1)


def span_pairs(span_ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """`[..., T-1]`, True where neighbours t, t+1 share a span (an id of 0 or more) and both are in `mask`.

    >>> span_pairs(torch.tensor([4, 4, -1, -1, 5, 4]))
    tensor([ True, False, False, False, False])
    """
    is_pair = (span_ids[..., :-1] == span_ids[..., 1:]) & (span_ids[..., 1:] >= 0)
    if mask is not None:
        is_pair = is_pair & mask[..., :-1].bool() & mask[..., 1:].bool()
    return is_pair


def term_counts(labels_N: Tensor, span_ids_N: Tensor | None, sft_mask_N: Tensor | None = None) -> TermCounts:
    """The three denominators of one call of `tiled_objective`; add them up over an optimiser step."""
    response = labels_N != IGNORED
    truth = response if sft_mask_N is None else response & sft_mask_N.bool()
    pairs = 0 if span_ids_N is None else int(span_pairs(span_ids_N, response).sum())
    return TermCounts(int(truth.sum()), int(response.sum()), pairs)


def global_mean(values: Tensor, mask: Tensor | None, denominator: Tensor | float | None = None) -> Tensor:
    """Sum of `values` where `mask` is True, over `denominator`; a differentiable 0 where that is 0.

    Masked values are left out before the sum, so that an inf or NaN there reaches neither the mean nor, with
    finite local derivatives, the gradient.

    Args:
        values: any shape, unreduced losses.
        mask: same shape, or None for all.
        denominator: the count over the whole optimiser step (all micro-batches, all ranks); None = this mask's.

    >>> global_mean(torch.tensor([1.0, 3.0, torch.nan]), torch.tensor([True, True, False]), 4)
    tensor(1.)
    """
    if mask is not None:
        mask = mask.bool()
        values = torch.where(mask, values, torch.zeros_like(values))
    if denominator is None:
        denominator = float(values.numel()) if mask is None else mask.sum()
    total = values.sum()
    count = torch.as_tensor(denominator, dtype=total.dtype, device=total.device)
    safe = torch.where(count > 0, count, torch.ones_like(count))
    return torch.where(count > 0, total / safe, torch.zeros_like(total))


def weighted_sum(means: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The terms' weighted sum. A term without weight is left out: 0 * inf would be NaN."""
    total = torch.zeros_like(means[0])
    for weight, mean in zip(weights, means, strict=True):
        if weight != 0:
            total = total + float(weight) * mean
    return total
