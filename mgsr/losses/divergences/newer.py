"""Divergences of 2024 to 2026: p is the teacher's softmax, q the student's, sg(.) stops the gradient.

Each follows its paper's code where that and the paper differ; `entropy_aware` and `veto`, of which no code is
known, follow the paper. None has a closed form in `fused/`: they are trained
by these functions, under autograd, a tile of tokens at a time.

Arguments, result and errors of all are those of `classic.forward_kl`. Gradients reach the student's logits alone,
through q wherever no sg stands.

Shapes: `...` any leading shape, V classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mgsr.losses.divergences.classic import check_share
from mgsr.losses.log_probs import (
    compute_dtype,
    entropy,
    kl_from_log_probs,
    log_mixture,
    log_probabilities,
)


def todi(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Both KLs, weighted class by class (ToDi, Jung et al. 2025, arXiv 2505.16297).

        sum_k a_k p_k log(p_k / q_k) + (1 - a_k) q_k log(q_k / p_k),    a_k = sg(p_k / (p_k + q_k))

    Its value is KL(p || q) + KL(q || p); its gradient is another.
    """
    log_p, log_q = log_probabilities(teacher_logits, student_logits, temperature)
    present = ~(torch.isneginf(log_p) & torch.isneginf(log_q))
    difference = torch.where(present, log_p - log_q, 0.0)
    share = torch.sigmoid(difference).detach()
    forward, backward = share * log_p.exp(), (1.0 - share) * log_q.exp()
    return (_times(forward, difference) - _times(backward, difference)).sum(dim=-1)


def alpha_beta(
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    temperature: float = 1.0,
    alpha: float = 0.2,
    beta: float = 0.7,
) -> Tensor:
    """Alpha-beta divergence (ABKD, Wang et al. 2025, arXiv 2505.04560).

        -1 / (alpha beta) sum_k [p_k^alpha q_k^beta - alpha / (alpha + beta) p_k^(alpha + beta)
                                 - beta / (alpha + beta) q_k^(alpha + beta)]

    Raises:
        ValueError: `alpha`, `beta` or their sum is 0, where it is no longer defined: (1, 0) would be the forward
            KL, (0, 1) the reverse.
    """
    _check_powers(alpha, beta)
    return _alpha_beta(*log_probabilities(teacher_logits, student_logits, temperature), alpha, beta)


def adaptive_kl(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0, mu: float = 0.5
) -> Tensor:
    """Forward and reverse KL, weighted by where the models differ (AKL, Wu et al. 2024, arXiv 2404.02657).

        g_head / (g_head + g_tail) KL(p || q) + g_tail / (g_head + g_tail) KL(q || p)

    The head is the classes whose cumulative mass, their own included, is at most `mu` when p is sorted in
    descending order, and always the first; g = sg(sum abs(p_k - q_k)) over head and tail. Where p = q both weights
    are one half.

    Raises:
        ValueError: `mu` lies outside [0, 1].
    """
    check_share("mu", mu)
    log_p, log_q = log_probabilities(teacher_logits, student_logits, temperature)
    p, q = log_p.exp(), log_q.detach().exp()
    ranked, order = p.sort(dim=-1, descending=True, stable=True)
    gap = (p - q).abs().gather(-1, order)
    in_head = ranked.cumsum(dim=-1) <= mu
    in_head = torch.cat([torch.ones_like(in_head[..., :1]), in_head[..., 1:]], dim=-1)
    head = (gap * in_head).sum(dim=-1)
    total = gap.sum(dim=-1)
    share = torch.where(total > 0, head / total.clamp_min(torch.finfo(total.dtype).tiny), 0.5)
    forward, backward = kl_from_log_probs(log_p, log_q), kl_from_log_probs(log_q, log_p)
    return _times(share, forward) + _times(1.0 - share, backward)


def alpha_mixture(
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    temperature: float = 1.0,
    alpha: float = 0.5,
    lam: float = 0.5,
    of: str = "alpha_beta",
) -> Tensor:
    """A divergence of p from a power mean of both (AMiD, Shin et al. 2025, arXiv 2510.15982).

        D(p || r),   r in proportion to [lam p^e + (1 - lam) q^e]^(1/e),   e = (1 - alpha) / 2

    At `alpha` 1 the mean is the geometric one. D is the alpha-beta divergence at (0.2, 0.7), or with
    `of="forward_kl"` the forward KL; that at `alpha` -1 is the skewed forward KL.

    Raises:
        ValueError: `alpha` is above 1, `lam` lies outside [0, 1], or `of` is neither of the two.
    """
    if not alpha <= 1.0:
        raise ValueError(f"alpha must be at most 1, got {alpha}")
    check_share("lam", lam)
    if of not in ("alpha_beta", "forward_kl"):
        raise ValueError(f"of must be alpha_beta or forward_kl, got {of!r}")
    log_p, log_q = log_probabilities(teacher_logits, student_logits, temperature)
    power = (1.0 - alpha) / 2.0
    if lam in (0.0, 1.0):
        mean = log_p if lam else log_q
    elif power == 0.0:
        mean = lam * log_p + (1.0 - lam) * log_q
    else:
        mean = log_mixture(power * log_p, power * log_q, lam) / power
    log_r = torch.log_softmax(mean, dim=-1)
    return kl_from_log_probs(log_p, log_r) if of == "forward_kl" else _alpha_beta(log_p, log_r, 0.2, 0.7)


def concrete_score(
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    temperature: float = 1.0,
    tau: float = 1.5,
    first: str = "student",
    second: str = "student",
) -> Tensor:
    """Squared differences of logits, of all pairs of classes (CSD, Kim et al. 2025, arXiv 2509.25837).

        1/4 sum_ij w_i u_j (d_i - d_j)^2,    d = z_student - z_teacher

    d is taken at temperature 1, whatever `temperature` is.

    Args:
        tau: temperature of student weights: with 1 and student weights it has the reverse KL's gradient.
        first, second: w and u: "student", sg(softmax(z_student / tau)), or "teacher", p.

    Raises:
        ValueError: `tau` isn't positive, or another word for the weights.
    """
    if not 0.0 < tau < math.inf:
        raise ValueError(f"tau must be positive and finite, got {tau}")
    log_p, _ = log_probabilities(teacher_logits, student_logits, temperature)
    dtype = compute_dtype(teacher_logits, student_logits)
    teacher, student = teacher_logits.detach().to(dtype), student_logits.to(dtype)
    weights = []
    for name, word in (("first", first), ("second", second)):
        if word not in ("student", "teacher"):
            raise ValueError(f"{name} must be student or teacher, got {word!r}")
        weights.append(log_p.exp() if word == "teacher" else torch.softmax(student.detach() / tau, dim=-1))
    w, u = weights
    # classes without weight have no part, nor have those that both lack
    counted = ((w > 0) | (u > 0)) & ~(torch.isneginf(teacher) & torch.isneginf(student))
    d = torch.where(counted, student - teacher, 0.0)
    infinite = torch.isinf(d)
    d = d.masked_fill(infinite, 0.0)
    # the differences stay as they are, and the squares lose fewer digits
    d = torch.where(counted, d - (u * d.detach()).sum(dim=-1, keepdim=True), 0.0)
    value = (((u + w) * d * d).sum(dim=-1) - 2.0 * (w * d).sum(dim=-1) * (u * d).sum(dim=-1)) / 4.0
    return value.masked_fill(infinite.any(dim=-1), math.inf)


def entropy_aware(
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    temperature: float = 1.0,
    threshold: float = 0.8,
    alpha: float = 1.0,
) -> Tensor:
    """Reverse KL, and the forward KL where the teacher is unsure (EOPD, 2026, arXiv 2603.07079).

    KL(q || p) + alpha KL(p || q) where the entropy of p, in nats, is above `threshold`
    """
    log_p, log_q = log_probabilities(teacher_logits, student_logits, temperature)
    backward = kl_from_log_probs(log_q, log_p)
    if not alpha:
        # left out, not multiplied: 0 * inf would be NaN
        return backward
    unsure = entropy(log_p, log_p.exp()) > threshold
    return backward + alpha * torch.where(unsure, kl_from_log_probs(log_p, log_q), 0.0)


def veto(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0, beta: float = 0.8) -> Tensor:
    """Forward KL from a teacher that the student has a say in (Veto, 2026, arXiv 2601.07155).

        KL(r || q),    r = sg(softmax(z_teacher + beta z_student)), both logits divided by `temperature`

    The paper has `beta` fall linearly to 0 over training: in a configuration, `beta: [0.8, 0.0]`.

    Raises:
        ValueError: `beta` lies outside [0, 1).
    """
    check_share("beta", beta)
    if beta == 1.0:
        raise ValueError(f"beta must be below 1, got {beta}")
    log_p, log_q = log_probabilities(teacher_logits, student_logits, temperature)
    mixed = log_p + beta * log_q.detach() if beta else log_p
    return kl_from_log_probs(torch.log_softmax(mixed, dim=-1), log_q)


def _times(weights: Tensor, values: Tensor) -> Tensor:
    """Their product, 0 where the weight is 0 whatever the value."""
    return weights * torch.where(weights == 0, 0.0, values)


def _check_powers(alpha: float, beta: float) -> None:
    if not (alpha and beta and alpha + beta and math.isfinite(alpha) and math.isfinite(beta)):
        raise ValueError(f"alpha, beta and their sum must be finite and not 0, got {alpha} and {beta}")


def _alpha_beta(log_p: Tensor, log_q: Tensor, alpha: float, beta: float) -> Tensor:
    absent = torch.isneginf(log_p) & torch.isneginf(log_q)
    p, q = (log.masked_fill(absent, 0.0) for log in (log_p, log_q))
    both = alpha + beta
    terms = (alpha * p + beta * q).exp() - (alpha * (both * p).exp() + beta * (both * q).exp()) / both
    return terms.masked_fill(absent, 0.0).sum(dim=-1) / (-alpha * beta)
