"""Divergences between a teacher's and a student's next-token distribution.

Every function reads logits, works in log space and returns one value per token, not reduced:
mask and average with `mgsr.losses.reduction.global_mean`.

Shapes: `...` any leading shape (usually B sequences, T positions), V classes. p is the teacher's softmax,
q the student's, both at `temperature`; there is no temperature**2 factor. A class with p_k = 0 contributes 0
to KL(p || q), a class with q_k = 0 < p_k makes it +inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


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
    if not (temperature > 0 and math.isfinite(temperature)):
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
    """KL(a || b) over the last dimension. Classes with a_k = 0 give 0, also in the gradient."""
    a = log_a.exp()
    difference = log_a - log_b
    if not _all_finite(log_a, log_b):
        # inf - inf, or 0 * inf. Only then: `where` takes many times as long as the arithmetic on a CPU
        difference = torch.where(a > 0, difference, torch.zeros_like(log_a))
    return (a * difference).sum(dim=-1)


def _all_finite(*log_probs: Tensor) -> bool:
    """False if a probability is exactly 0 (log -inf) or NaN, or there is none at all."""
    return all(t.numel() > 0 and bool(t.detach().amin() > -math.inf) for t in log_probs)


def _log_mixture(log_a: Tensor, log_b: Tensor, weight_a: float) -> Tensor:
    """log(weight_a * a + (1 - weight_a) * b), with finite gradients where both are 0."""
    if weight_a == 0.0:
        return log_b
    if weight_a == 1.0:
        return log_a
    left, right = log_a + math.log(weight_a), log_b + math.log1p(-weight_a)
    if _all_finite(left, right):
        return torch.logaddexp(left, right)
    absent = torch.isneginf(left) & torch.isneginf(right)
    mixed = torch.logaddexp(left.masked_fill(absent, 0.0), right.masked_fill(absent, 0.0))
    return mixed.masked_fill(absent, -math.inf)


def _check_share(name: str, value: float, *, open_interval: bool = False) -> None:
    inside = 0.0 < value < 1.0 if open_interval else 0.0 <= value <= 1.0
    if not inside:
        interval = "strictly between 0 and 1" if open_interval else "between 0 and 1"
        raise ValueError(f"{name} must lie {interval}, got {value}")


def forward_kl(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Forward Kullback-Leibler divergence KL(p || q) of every token, in nats (Hinton et al. 2015).

    Args:
        teacher_logits: `[..., V]`; no gradient flows to it.
        student_logits: `[..., V]`, same vocabulary.
        temperature: divides both logits.

    Returns:
        `[...]`, float32 or wider, neither reduced nor masked.

    Raises:
        ValueError: the vocabularies differ in width, or the temperature isn't positive.

    >>> forward_kl(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
    tensor([0.1201])
    """
    return kl_from_log_probs(*log_probabilities(teacher_logits, student_logits, temperature))


def reverse_kl(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Reverse divergence KL(q || p) of every token, in nats (MiniLLM, Gu et al. 2024).

    Arguments, result and errors as in `forward_kl`.

    >>> reverse_kl(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
    tensor([0.1109])
    """
    log_p, log_q = log_probabilities(teacher_logits, student_logits, temperature)
    return kl_from_log_probs(log_q, log_p)


def symmetric_kl(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0, weight: float = 0.5
) -> Tensor:
    """weight * KL(p || q) + (1 - weight) * KL(q || p), in nats.

    Args:
        teacher_logits: `[..., V]`; no gradient flows to it.
        student_logits: `[..., V]`.
        temperature: divides both logits.
        weight: share of the forward direction, in [0, 1].

    Returns:
        `[...]`, float32 or wider, neither reduced nor masked.

    Raises:
        ValueError: widths differ, `temperature` isn't positive, or `weight` lies outside [0, 1].
    """
    _check_share("weight", weight)
    log_p, log_q = log_probabilities(teacher_logits, student_logits, temperature)
    # a direction of weight 0 is left out, not multiplied: 0 * inf would be NaN
    if weight == 1.0:
        return kl_from_log_probs(log_p, log_q)
    if weight == 0.0:
        return kl_from_log_probs(log_q, log_p)
    return weight * kl_from_log_probs(log_p, log_q) + (1.0 - weight) * kl_from_log_probs(log_q, log_p)


def jensen_shannon(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0, beta: float = 0.5
) -> Tensor:
    """Generalised Jensen-Shannon divergence of every token, in nats (GKD, Agarwal et al. 2024, eq. 1).

        beta * KL(p || m) + (1 - beta) * KL(q || m),    m = beta * p + (1 - beta) * q

    Args:
        teacher_logits: `[..., V]`; no gradient flows to it.
        student_logits: `[..., V]`.
        temperature: divides both logits.
        beta: the teacher's share of the mixture, strictly between 0 and 1.

    Returns:
        `[...]`, at most log 2 for beta = 0.5.

    Raises:
        ValueError: widths differ, `temperature` isn't positive, or `beta` lies outside (0, 1).
    """
    _check_share("beta", beta, open_interval=True)
    log_p, log_q = log_probabilities(teacher_logits, student_logits, temperature)
    log_m = _log_mixture(log_p, log_q, beta)
    return beta * kl_from_log_probs(log_p, log_m) + (1.0 - beta) * kl_from_log_probs(log_q, log_m)


def skewed_forward_kl(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0, alpha: float = 0.1
) -> Tensor:
    """KL(p || alpha * p + (1 - alpha) * q) of every token, in nats (DistiLLM, Ko et al. 2024, eq. 3).

    `alpha` lies in [0, 1]; 0 is the forward KL. Other arguments, result and errors as in `forward_kl`.

    Raises:
        ValueError: widths differ, `temperature` isn't positive, or `alpha` lies outside [0, 1].
    """
    _check_share("alpha", alpha)
    log_p, log_q = log_probabilities(teacher_logits, student_logits, temperature)
    return kl_from_log_probs(log_p, _log_mixture(log_p, log_q, alpha))


def skewed_reverse_kl(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0, alpha: float = 0.1
) -> Tensor:
    """KL(q || (1 - alpha) * p + alpha * q) of every token, in nats (DistiLLM, Ko et al. 2024).

    `alpha` lies in [0, 1]; 0 is the reverse KL. Other arguments, result and errors as in `forward_kl`.

    Raises:
        ValueError: widths differ, `temperature` isn't positive, or `alpha` lies outside [0, 1].
    """
    _check_share("alpha", alpha)
    log_p, log_q = log_probabilities(teacher_logits, student_logits, temperature)
    return kl_from_log_probs(log_q, _log_mixture(log_q, log_p, alpha))


def total_variation(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Total variation distance 1/2 * sum over k of |p_k - q_k|, in [0, 1] (Wen et al. 2023).

    Arguments, result and errors as in `forward_kl`.

    >>> total_variation(torch.tensor([[0.0, -torch.inf]]), torch.zeros(1, 2))
    tensor([0.5000])
    """
    log_p, log_q = log_probabilities(teacher_logits, student_logits, temperature)
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(dim=-1)


DIVERGENCES: dict[str, Callable[..., Any]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "symmetric_kl": symmetric_kl,
    "jensen_shannon": jensen_shannon,
    "skewed_forward_kl": skewed_forward_kl,
    "skewed_reverse_kl": skewed_reverse_kl,
    "total_variation": total_variation,
}
"""Divergences by the name that a configuration uses."""
