"""The rows of a call that predict a response token: the only ones that are worked on.

Shapes: N rows of a call, M response rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mgsr.losses.reduction import IGNORED, AnswerRows, TermCounts, span_pairs


class ResponseRows(NamedTuple):
    """What is known of the response rows besides their states, `[M]` each, or of some of them.

    `place`: among the call's N rows. `truth`: on ground truth. `is_pair[i]`: i, i + 1 are a span pair; `pairs` are
    the same in Python.
    """

    place: Tensor
    labels: Tensor
    truth: Tensor
    is_pair: Tensor
    pairs: Sequence[bool]

    def some(self, first: int, stop: int) -> ResponseRows:
        """Rows `first` to `stop`."""
        parts: list[Any] = [part[first:stop] for part in self]
        return ResponseRows(*parts)


class Found(NamedTuple):
    """The rows, the smallest and the largest label ((0, 0) without rows), and the denominators of this call."""

    rows: ResponseRows
    label_range: tuple[int, int]
    counts: TermCounts


def of_answers(answers: AnswerRows) -> Found:
    """Where all is known already."""
    rows = ResponseRows(answers.place, answers.labels, answers.truth, answers.is_pair, answers.pairs)
    counts = TermCounts(answers.truth_place.numel(), answers.place.numel(), sum(answers.pairs))
    return Found(rows, answers.label_range, counts)


def response_rows(labels: Tensor, span_ids: Tensor | None, sft_mask: Tensor | None) -> Found:
    """From what `tiled_objective` is given; looks at it twice.

    Raises:
        ValueError: span ids or mask don't fit the labels.
    """
    check_rows("span_ids", span_ids, labels)
    check_rows("sft_mask", sft_mask, labels)
    response_N = labels != IGNORED
    is_pair_N = torch.zeros_like(response_N)
    if span_ids is not None and labels.numel() > 1:
        is_pair_N[:-1] = span_pairs(span_ids, response_N)
    truth_N = response_N if sft_mask is None else sft_mask.bool()
    kept_M = response_N.nonzero().squeeze(1)
    labels_M, truth_M, is_pair_M = (values[kept_M] for values in (labels, truth_N, is_pair_N))
    if kept_M.numel() == 0:
        rows = ResponseRows(kept_M, labels_M, truth_M, is_pair_M, [])
        return Found(rows, (0, 0), TermCounts(0, 0, 0))
    # one look for all
    numbers = torch.stack([labels_M.min(), labels_M.max(), truth_M.sum()])
    smallest, largest, truths, *pairs = torch.cat([numbers, is_pair_M.to(numbers.dtype)]).tolist()
    rows = ResponseRows(kept_M, labels_M, truth_M, is_pair_M, [bool(pair) for pair in pairs])
    return Found(rows, (smallest, largest), TermCounts(truths, len(pairs), sum(pairs)))


def check_rows(name: str, tensor: Tensor | None, labels: Tensor) -> None:
    if tensor is not None and tensor.shape[0] != labels.numel():
        raise ValueError(f"{name} has {tensor.shape[0]} rows, labels {labels.numel()}")


def check_labels(label_range: tuple[int, int], width: int) -> None:
    for label in label_range:
        if not 0 <= label < width:
            raise ValueError(f"label {label} lies outside the {width} classes (and isn't {IGNORED})")
