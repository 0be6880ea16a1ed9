"""Log-probabilities of teacher and student, and the sums over classes that the losses are made of.

Shapes: `...` any leading shape (usually B sequences, T positions), V classes. p is the teacher's softmax, q the
student's, both at `temperature`; there is no temperature**2 factor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mgsr.runtime import devices


def check_logits(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> None:
    """Refuse logits over different vocabularies and a temperature that isn't positive.

    Raises:
        ValueError: with the offending widths or temperature.
    """
    if teacher_logits.shape[-1] != student_logits.shape[-1]:
        raise ValueError(
            f"teacher and student logits differ in width: {teacher_logits.shape[-1]} and "
            f"{student_logits.shape[-1]}; cut both to the shared vocabulary first"
        )
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The widest dtype among `tensors`, and at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def log_probabilities(
    teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Both log-softmaxes at `temperature`, in float32 or wider; the teacher's is detached."""
    check_logits(teacher_logits, student_logits, temperature)
    dtype = compute_dtype(teacher_logits, student_logits)
    teacher = teacher_logits.detach().to(dtype)
    student = student_logits.to(dtype)
    if temperature != 1.0:
        teacher, student = teacher / temperature, student / temperature
    return torch.log_softmax(teacher, dim=-1), torch.log_softmax(student, dim=-1)


def kl_from_log_probs(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) over the last dimension, in nats.

    A class with a_k = 0 gives 0, also in the gradient; one with b_k = 0 < a_k makes it +inf. NaN stays NaN.
    """
    a = log_a.exp()
    difference = log_a - log_b
    if not _seen_finite(log_a, log_b):
        # inf - inf, or 0 * inf. Not always: `where` takes many times as long as the arithmetic on a CPU
        difference = torch.where(a > 0, difference, torch.zeros_like(log_a))
    return (a * difference).sum(dim=-1)


def log_mixture(log_a: Tensor, log_b: Tensor, weight_a: float) -> Tensor:
    """log(weight_a * a + (1 - weight_a) * b), with finite gradients where both are 0."""
    if weight_a == 0.0:
        return log_b
    if weight_a == 1.0:
        return log_a
    left, right = log_a + math.log(weight_a), log_b + math.log1p(-weight_a)
    if _seen_finite(left, right):
        return torch.logaddexp(left, right)
    absent = torch.isneginf(left) & torch.isneginf(right)
    mixed = torch.logaddexp(left.masked_fill(absent, 0.0), right.masked_fill(absent, 0.0))
    return mixed.masked_fill(absent, -math.inf)


def entropy(log_probs: Tensor, probs: Tensor) -> Tensor:
    """Entropy over the last dimension in nats; classes of probability 0 contribute 0."""
    value = (probs * log_probs).sum(dim=-1)
    if not devices.reading_is_free(value.device) or bool(torch.isnan(value).any()):
        # 0 * -inf
        value = (probs * log_probs.clamp_min(torch.finfo(log_probs.dtype).min)).sum(dim=-1)
    return -value


def _seen_finite(*log_probs: Tensor) -> bool:
    """False if a probability is exactly 0 (log -inf) or NaN, there is none at all, or none may be looked at."""
    free = all(devices.reading_is_free(t.device) for t in log_probs)
    return free and all(t.numel() > 0 and bool(t.detach().amin() > -math.inf) for t in log_probs)
