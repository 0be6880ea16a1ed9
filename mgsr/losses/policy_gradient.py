"""MiniLLM: reverse KL(q || p) between the distributions of whole responses, by policy gradient.

Paper: Gu et al. 2024, "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024, arXiv 2306.08543,
section 2.2. Fused twin: `fused/policy_gradient.py`. p is the teacher, q the student, p~ the distribution that the
responses were drawn from; T is the length of a response.

    r_t     = log p(y_t | y_<t, x) - log q(y_t | y_<t, x)                        reward of a token
    A_t     = mean of r_{t+1}, ..., r_T;  0 for the last token                   length-normalised reward to go
    rho_t   = q(y_t | y_<t, x) / p~(y_t | y_<t, x)                               importance ratio of one step
    w_t     = rho_t, without gradient
    long_t  = max(-rho_t A_t, -clip(rho_t, 1 - eps, 1 + eps) A_t)
    L       = 1/N * sum over the N tokens of model-written responses of  w_t KL(q_t || p_t) + long_t

r, A and w are constants of the gradient, which therefore is the paper's estimator,

    1/N * sum over t of  w_t * grad KL(q_t || p_t)  -  [not clipped] w_t * A_t * grad log q(y_t | y_<t, x)

whose first part is the single-step part, exact over the vocabulary, and whose second part is the long one. What
the paper leaves open is fixed so:

- Length normalisation is the mean over the tokens that follow, T - t of them for t = 1, ..., T. (The paper prints
  1 / (T - t - 1) before T - t summands, which would divide by zero at t = T - 1.)
- Importance weights are those of one step, the paper's approximation of their running product. Against text that
  this student wrote with a share alpha of the teacher, rho <= 1 / (1 - alpha).
- Clipping is PPO's, of rho itself, in the long part alone: no gradient where A > 0 and rho > 1 + eps already, nor
  where A < 0 and rho < 1 - eps. The single-step weight is not clipped.

Shapes: B sequences, T positions, V classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mgsr.losses.log_probs import kl_from_log_probs, log_probabilities
from mgsr.losses.reduction import IGNORED


def policy_gradient(
    teacher_logits_BTV: Tensor,
    student_logits_BTV: Tensor,
    labels_BT: Tensor,
    behaviour_log_probs_BT: Tensor,
    *,
    importance_clip: float = 0.2,
) -> Tensor:
    """w KL(q || p) + long of every token of model-written responses (top of the file).

    Args:
        teacher_logits_BTV: aligned with the labels; no gradient flows to it.
        student_logits_BTV: likewise.
        labels_BT: -100 where there is no response token; one response to a row.
        behaviour_log_probs_BT: log p~ of the labels, in nats.
        importance_clip: eps of the long part; inf: no clipping.

    Returns:
        `[B, T]`, float32 or wider, not reduced; 0 where the label is -100.

    Raises:
        ValueError: the vocabularies differ in width, or `importance_clip` is below 0.

    >>> flat = torch.zeros(1, 1, 2)
    >>> policy_gradient(flat + torch.tensor([0.0, 1.0]), flat, torch.tensor([[0]]), torch.tensor([[-0.6931]]))
    tensor([[0.1201]])
    """
    if not importance_clip >= 0:
        raise ValueError(f"importance_clip must be at least 0, got {importance_clip}")
    log_p, log_q = log_probabilities(teacher_logits_BTV, student_logits_BTV)
    is_response_BT = labels_BT != IGNORED
    ids = labels_BT.clamp_min(0).unsqueeze(-1)
    own, given = (log_probs.gather(-1, ids).squeeze(-1) for log_probs in (log_q, log_p))
    advantage = reward_to_go((given - own).detach(), is_response_BT)
    ratio = (own - behaviour_log_probs_BT.to(own.dtype)).exp()
    clipped = ratio.clamp(1.0 - importance_clip, 1.0 + importance_clip)
    long = torch.maximum(-ratio * advantage, -clipped * advantage)
    value = ratio.detach() * kl_from_log_probs(log_q, log_p) + long
    return torch.where(is_response_BT, value, torch.zeros_like(value))


def reward_to_go(rewards_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean of the rewards that follow a token in its response (section 2.2, "length normalization").

    Args:
        rewards_BT: `[B, T]`; whatever stands outside `mask` is not read.
        mask_BT: `[B, T]`, True on the tokens of the one response of each row.

    Returns:
        `[B, T]`, 0 where nothing follows and outside `mask`.

    >>> reward_to_go(torch.tensor([[9.0, 1.0, 2.0, 4.0, 9.0]]), torch.tensor([[False, True, True, True, False]]))
    tensor([[0., 3., 4., 0., 0.]])
    """
    zeros = torch.zeros_like(rewards_BT)
    kept = torch.where(mask_BT, rewards_BT, zeros)
    total, count = (_following(values) for values in (kept, mask_BT.to(rewards_BT.dtype)))
    return torch.where(mask_BT & (count > 0), total / count.clamp(min=1), zeros)


def _following(values_BT: Tensor) -> Tensor:
    """Sum of the entries strictly to the right; shifted, not subtracted, so that it is exact and keeps inf."""
    inclusive = values_BT.flip(-1).cumsum(-1).flip(-1)
    return torch.nn.functional.pad(inclusive[..., 1:], (0, 1))
