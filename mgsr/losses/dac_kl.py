"""DAC-KL: the distribution adaptive clipping Kullback-Leibler divergence, given its bounds.

Paper: Liu et al. 2024, "Multi-Granularity Semantic Revision for Large Language Model Distillation",
arXiv 2407.10068, eq. 7 and 8. Fused twin: `fused/dac_kl.py`. Shapes: `...` leading shape, V classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mgsr.losses.clip_bounds import check_clipping, clip_mask, ranked_quantile
from mgsr.losses.log_probs import log_probabilities
from mgsr.losses.ranking import sort_classes


class DacKL(NamedTuple):
    """Result of `dac_kl`: `loss [...]` in nats and `retained_mass [...]` in [0, 1], neither reduced nor masked."""

    loss: Tensor
    retained_mass: Tensor


def dac_kl(
    teacher_logits: Tensor,
    student_logits: Tensor,
    lower: Tensor | float,
    upper: Tensor | float,
    *,
    temperature: float = 1.0,
    sharpness: float = 0.005,
    ramp: str = "clipped",
    quantile: str = "mass",
    target: Tensor | None = None,
    form: str = "normalised",
    keep_target: bool = True,
) -> DacKL:
    """Clipped KL divergence of every token: classes outside two quantile bounds share one rest bin.

    c_k is the teacher's mass ranked strictly before class k (descending, ties: smaller id first), and

        m_k  = ramp((c_k - lower) / s) * ramp((upper - c_k) / s)
        bins = { m_k p_k for all k },  (1 - m_t) p_t,  rest = sum over k != t of (1 - m_k) p_k
        loss = sum over bins of P log(P / Q),    the same m for q                      (form "normalised")
        loss = sum over k of m_k p_k log(p_k / q_k) + p_t log(p_t / q_t)                (form "literal")

    The target class t always keeps a bin of its own (the paper's M + 1 classes). The normalised form merges
    classes, so that 0 <= loss <= KL(p || q); the literal form (eq. 7-8) can be negative. Gradients reach the
    student's logits, `lower` and `upper`, never the teacher's logits.

    Args:
        teacher_logits: `[..., V]`; no gradient flows to it.
        student_logits: `[..., V]`.
        lower: `[...]` or a number: below it the head is clipped; -inf keeps it whole, +inf clips everything.
        upper: `[...]` or a number: from there on the tail is clipped; +inf keeps it whole.
        temperature: divides both logits.
        sharpness: width s of the ramps; 0 is the hard mask lower <= c_k < upper (no gradient to the bounds).
        ramp: "clipped" (exactly 0 or 1 beyond 4 s of a bound) or "sigmoid" (the paper's, endless tails).
        quantile: "mass", or "rank": c_k = (classes ranked before k) / V.
        target: `[...]` class ids; None takes the teacher's most probable class.
        form: "normalised" or "literal".
        keep_target: False gives the target no bin of its own ("high-density only").

    Returns:
        `DacKL(loss [...], retained_mass [...])`, float32 or wider; retained_mass = 1 - rest in both forms.

    Raises:
        ValueError: widths differ, or an option is unknown or out of range.

    >>> p, q = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
    >>> dac_kl(p, q, lower=float("inf"), upper=1.0)   # two classes are left: 0.5 | 0.5 against 0.2 | 0.8
    DacKL(loss=tensor(0.2231), retained_mass=tensor(0.5000))
    """
    check_clipping(sharpness, ramp, quantile, form)
    log_p, log_q = log_probabilities(teacher_logits, student_logits, temperature)
    width = log_p.shape[-1]
    shape, log_q = log_p.shape, log_q.expand(torch.broadcast_shapes(log_p.shape, log_q.shape))
    log_p, ids = (ranked.reshape(shape) for ranked in sort_classes(log_p.reshape(-1, width)))
    log_q = log_q.gather(-1, ids)
    p = log_p.exp()
    c = ranked_quantile(log_p, quantile, width)
    bounds = [torch.as_tensor(b, dtype=log_p.dtype, device=log_p.device).unsqueeze(-1) for b in (lower, upper)]
    m = clip_mask(c, bounds[0], bounds[1], sharpness, ramp)
    own_bin = m
    is_target = None
    if keep_target:
        is_target = (ids == (ids[..., :1] if target is None else target.unsqueeze(-1))).expand_as(m)
        # m_t p_t and (1 - m_t) p_t have the same ratio to q, so that together they are one bin p_t
        own_bin = torch.where(is_target, torch.ones_like(m), m)
    if form == "normalised":
        loss = _kept(own_bin, p, log_p, log_q) + _rest(1.0 - own_bin, p, log_q)
    else:
        loss = _kept(m, p, log_p, log_q)
        if is_target is not None:
            loss = loss + _kept(is_target.to(p.dtype), p, log_p, log_q)
    return DacKL(loss, 1.0 - ((1.0 - own_bin) * p).sum(dim=-1))


def _kept(m: Tensor, p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum over k of m_k p_k log(p_k / q_k); 0 for a class without mass, whatever q is there."""
    present = p > 0
    difference = torch.where(present & (m > 0), log_p - log_q, torch.zeros_like(m))
    return (m * p * difference).sum(dim=-1)


def _rest(clipped: Tensor, p: Tensor, log_q: Tensor) -> Tensor:
    """P log(P / Q) of the rest bin, P = sum clipped_k p_k and Q = sum clipped_k q_k; 0 where P is 0.

    Q is summed relative to its largest class, so that it doesn't vanish where the student is certain.
    """
    part = clipped > 0
    lowered = log_q.masked_fill(~part, -math.inf)
    shift = lowered.detach().amax(dim=-1, keepdim=True)
    shift = torch.where(torch.isfinite(shift), shift, torch.zeros_like(shift))
    scaled = (clipped * (lowered - shift).exp()).sum(dim=-1)
    filled = scaled > 0
    log_rest_q = torch.where(filled, scaled, torch.ones_like(scaled)).log() + shift.squeeze(-1)
    log_rest_q = log_rest_q.masked_fill(~filled, -math.inf)
    rest_p = (clipped * p).sum(dim=-1)
    present = rest_p > 0
    safe_p = torch.where(present, rest_p, torch.ones_like(rest_p))
    safe_log_q = torch.where(present, log_rest_q, torch.zeros_like(rest_p))
    # with P = 0 both logarithms are those of 1, and the product and its gradient are 0
    return torch.where(present, safe_p * (safe_p.log() - safe_log_q), torch.zeros_like(rest_p))
