"""The divergences of the literature up to DistiLLM: p is the teacher's softmax, q the student's.

Shapes: `...` any leading shape (usually B sequences, T positions), V classes. Fused twin: `fused/divergences.py`,
with a closed form of each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mgsr.losses.log_probs import kl_from_log_probs, log_mixture, log_probabilities


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

    `weight` is the share of the forward direction. Other arguments, result and errors as in `forward_kl`.

    Raises:
        ValueError: `weight` lies outside [0, 1].
    """
    check_share("weight", weight)
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

    `beta` is the teacher's share of the mixture. Other arguments, result and errors as in `forward_kl`.

    Raises:
        ValueError: `beta` lies outside (0, 1).
    """
    check_share("beta", beta, open_interval=True)
    log_p, log_q = log_probabilities(teacher_logits, student_logits, temperature)
    log_m = log_mixture(log_p, log_q, beta)
    return beta * kl_from_log_probs(log_p, log_m) + (1.0 - beta) * kl_from_log_probs(log_q, log_m)


def skewed_forward_kl(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0, alpha: float = 0.1
) -> Tensor:
    """KL(p || alpha * p + (1 - alpha) * q) of every token, in nats (DistiLLM, Ko et al. 2024, eq. 3).

    At `alpha` 0 it is the forward KL. Other arguments, result and errors as in `forward_kl`.

    Raises:
        ValueError: `alpha` lies outside [0, 1].
    """
    check_share("alpha", alpha)
    log_p, log_q = log_probabilities(teacher_logits, student_logits, temperature)
    return kl_from_log_probs(log_p, log_mixture(log_p, log_q, alpha))


def skewed_reverse_kl(
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    temperature: float = 1.0,
    alpha: float = 0.1,
    detach: bool = False,
) -> Tensor:
    """KL(q || (1 - alpha) * p + alpha * q) of every token, in nats (DistiLLM, Ko et al. 2024).

    At `alpha` 0 it is the reverse KL. Other arguments, result and errors as in `forward_kl`.

    Args:
        detach: no gradient goes through the q of the mixture, as in the code of DistiLLM-2 (Ko et al. 2025,
            arXiv 2503.07067).

    Raises:
        ValueError: `alpha` lies outside [0, 1].
    """
    check_share("alpha", alpha)
    log_p, log_q = log_probabilities(teacher_logits, student_logits, temperature)
    return kl_from_log_probs(log_q, log_mixture(log_q.detach() if detach else log_q, log_p, alpha))


def total_variation(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Total variation distance 1/2 * sum over k of |p_k - q_k|, in [0, 1] (Wen et al. 2023).

    Arguments, result and errors as in `forward_kl`.

    >>> total_variation(torch.tensor([[0.0, -torch.inf]]), torch.zeros(1, 2))
    tensor([0.5000])
    """
    log_p, log_q = log_probabilities(teacher_logits, student_logits, temperature)
    return 0.5 * (torch.exp(log_p) - torch.exp(log_q)).abs().sum(dim=-1)


def check_share(name: str, value: float, *, open_interval: bool = False) -> None:
    """Refuse a weight that is no share of a whole.

    Raises:
        ValueError: it lies outside [0, 1], or (0, 1).
    """
    if not (0.0 < value < 1.0 if open_interval else 0.0 <= value <= 1.0):
        interval = "strictly between 0 and 1" if open_interval else "between 0 and 1"
        raise ValueError(f"{name} must lie {interval}, got {value}")
