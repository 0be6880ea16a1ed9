"""Span-level correlation consistency: neighbouring tokens of a phrase should go together as the teacher's do.

Paper: Liu et al. 2024, arXiv 2407.10068, eq. 10. Fused twin: `fused/span_correlation.py`.
Shapes: B sequences, T positions, V classes, P pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mgsr.losses.log_probs import check_logits, log_probabilities
from mgsr.losses.reduction import span_pairs

NORMS = ("l2_squared", "l2")
RELATIONS = ("hadamard", "cosine", "trace")


class SpanCorrelation(NamedTuple):
    """Result of `span_correlation`: `loss [B, T-1]`, 0 where `is_pair [B, T-1]` is False."""

    loss: Tensor
    is_pair: Tensor


def check_relation(norm: str, relation: str) -> None:
    """Refuse an unknown norm or relation by its name.

    Raises:
        ValueError: with the offending value.
    """
    for name, value, known in (("norm", norm, NORMS), ("relation", relation, RELATIONS)):
        if value not in known:
            raise ValueError(f"span {name} must be one of {', '.join(known)}, got {value!r}")


def span_correlation(
    teacher_logits: Tensor,
    student_logits: Tensor,
    span_ids: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    norm: str = "l2_squared",
    relation: str = "hadamard",
) -> SpanCorrelation:
    """Difference between teacher and student in how two neighbours i, i+1 of one span correlate.

        hadamard: || p_i * p_{i+1} - q_i * q_{i+1} ||_2^2     (eq. 10; norm "l2": its root, gradient 0 at 0)
        cosine:   (cos(p_i, p_{i+1}) - cos(q_i, q_{i+1}))^2
        trace:    (<p_i, p_{i+1}> - <q_i, q_{i+1}>)^2

    Args:
        teacher_logits: `[B, T, V]`, aligned: position t scores token t; no gradient flows to it.
        student_logits: `[B, T, V]`.
        span_ids: `[B, T]`, -1 = in no span; a pair is two neighbours with the same id.
        mask: `[B, T]`, True on response tokens; both tokens of a pair must be. None: all are.
        temperature: divides both logits.
        norm: "l2_squared" or "l2"; for cosine and trace "l2" is the absolute difference.
        relation: "hadamard", "cosine" or "trace".

    Returns:
        `SpanCorrelation(loss [B, T-1], is_pair [B, T-1])`; entry t belongs to the pair t, t+1.

    Raises:
        ValueError: widths differ, or an option is unknown or out of range.

    >>> certain = torch.tensor([[[9.0, -9.0], [9.0, -9.0]]])
    >>> span_correlation(certain, torch.zeros(1, 2, 2), torch.zeros(1, 2, dtype=torch.long)).loss
    tensor([[0.6250]])
    """
    check_relation(norm, relation)
    is_pair = span_pairs(span_ids, mask)
    check_logits(teacher_logits, student_logits, temperature)
    left = torch.zeros_like(span_ids, dtype=torch.bool)
    left[..., :-1] = is_pair
    right = torch.roll(left, 1, dims=-1)
    # only the pairs' rows are read: a position outside them can't put a NaN into the gradient
    log_p_left, log_q_left = log_probabilities(teacher_logits[left], student_logits[left], temperature)
    log_p_right, log_q_right = log_probabilities(teacher_logits[right], student_logits[right], temperature)
    p_and_q = [log_prob.exp() for log_prob in (log_p_left, log_p_right, log_q_left, log_q_right)]
    value = correlation_difference(*p_and_q, norm=norm, relation=relation)
    loss = torch.zeros(is_pair.shape, dtype=value.dtype, device=value.device)
    return SpanCorrelation(loss.masked_scatter(is_pair, value), is_pair)


def correlation_difference(
    p_left_PV: Tensor, p_right_PV: Tensor, q_left_PV: Tensor, q_right_PV: Tensor, *, norm: str, relation: str
) -> Tensor:
    """The loss `[P]` of P pairs from the probabilities of their two tokens (see `span_correlation`)."""
    p_PV, q_PV = p_left_PV * p_right_PV, q_left_PV * q_right_PV
    if relation == "hadamard":
        squared = (p_PV - q_PV).square().sum(dim=-1)
        return squared if norm == "l2_squared" else _root(squared)
    teacher, student = p_PV.sum(dim=-1), q_PV.sum(dim=-1)
    if relation == "cosine":
        teacher = teacher / (p_left_PV.norm(dim=-1) * p_right_PV.norm(dim=-1))
        student = student / (q_left_PV.norm(dim=-1) * q_right_PV.norm(dim=-1))
    squared = (teacher - student).square()
    return squared if norm == "l2_squared" else _root(squared)


def _root(squared: Tensor) -> Tensor:
    """Square root whose gradient is 0, not inf, at 0."""
    positive = squared > 0
    return torch.where(positive, squared, torch.ones_like(squared)).sqrt() * positive
