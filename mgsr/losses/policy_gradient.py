"""MiniLLM's objective from hidden states, in tiles of tokens: no [N, V] tensor ever stands in memory.

Reverse KL(q || p) between the distributions of whole responses, by policy gradient (Gu et al. 2024, "MiniLLM:
Knowledge Distillation of Large Language Models", ICLR 2024, arXiv 2306.08543, section 2.2). p is the teacher, q
the student, p~ the distribution that the responses were drawn from; T is the length of a response.

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

Shapes: B sequences, T positions, N = B T rows, M response rows, R rows of a tile, V classes, H_S and H_T hidden sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mgsr.losses.attach import attach_gradients
from mgsr.losses.clipping import entropy
from mgsr.losses.divergences import compute_dtype
from mgsr.losses.heads import Head
from mgsr.losses.inputs import check_inputs, rows_per_tile
from mgsr.losses.reduction import IGNORED
from mgsr.losses.tiled import LossTerms, RowStats


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


def clipped_surrogate(ratio: Tensor, advantage: Tensor, importance_clip: float) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic surrogate max(-rho A, -clip(rho) A), and its derivative to log rho.

    Args:
        ratio: rho, any shape.
        advantage: A, same shape.
        importance_clip: eps; rho is clipped to [1 - eps, 1 + eps]. inf: never.

    Returns:
        Surrogate and derivative, same shape, without a graph. The derivative is 0 where clipping is in force.

    >>> clipped_surrogate(torch.tensor([1.5, 1.5]), torch.tensor([2.0, -2.0]), 0.25)
    (tensor([-2.5000,  3.0000]), tensor([-0., 3.]))
    """
    if not importance_clip >= 0:
        raise ValueError(f"importance_clip must be at least 0, got {importance_clip}")
    ratio, advantage = ratio.detach(), advantage.detach()
    plain = -ratio * advantage
    clipped = -ratio.clamp(1.0 - importance_clip, 1.0 + importance_clip) * advantage
    over = (advantage > 0) & (ratio > 1.0 + importance_clip)
    under = (advantage < 0) & (ratio < 1.0 - importance_clip)
    return torch.maximum(plain, clipped), plain.masked_fill(over | under, 0.0)


class _PolicyTile(NamedTuple):
    """Per-row values `[R]` of a tile, and the gradient `[R, V]` to the student's logits."""

    loss: Tensor
    reverse_kl: Tensor
    teacher_log_prob: Tensor
    teacher_entropy: Tensor | None
    grad_logits: Tensor | None


class _Written:
    """The model-written responses of a call: where they are, and the rewards seen so far."""

    def __init__(self, labels_BT: Tensor, mask_BT: Tensor, behaviour_BT: Tensor, dtype: torch.dtype) -> None:
        self.mask = mask_BT
        self.labels, self.behaviour = labels_BT.reshape(-1), behaviour_BT.detach().to(dtype).reshape(-1)
        self.rewards = torch.zeros(labels_BT.shape, dtype=dtype, device=labels_BT.device)

    def advantages(self, rows: Tensor, rewards: Tensor) -> Tensor:
        """A of a tile's rows, once its own rewards are noted and all later rows have had their turn."""
        self.rewards.view(-1)[rows] = rewards
        return reward_to_go(self.rewards, self.mask).view(-1)[rows]


def policy_gradient_objective(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | None,
    teacher_weight: Tensor | None,
    labels: Tensor,
    behaviour_log_probs: Tensor | None,
    is_ground_truth: Tensor,
    *,
    weights: Sequence[float] = (1.0, 1.0),
    counts: Sequence[float] | None = None,
    importance_clip: float = 0.2,
    tile_size: int | None = None,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    student_scale: float = 1.0,
    teacher_scale: float = 1.0,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    vocab_size: int | None = None,
    collect_rows: bool = False,
) -> LossTerms:
    """Cross-entropy on ground truth and the policy objective (top of the file) on model-written responses.

    Both models' logits are made once, used and dropped tile by tile, from the last row to the first, so that the
    rewards after a token are known when its tile comes. Gradients to the student's hidden states, weight and
    bias are accumulated on the way; none reaches the teacher.

    Args:
        student_hidden: `[B, T, H_S]`; state t predicts `labels[:, t]`.
        student_weight: `[V, H_S]`, the student's output layer.
        teacher_hidden: `[B, T, H_T]`, or None if the policy's weight is 0.
        teacher_weight: `[V, H_T]`, or None.
        labels: `[B, T]`, -100 where no response token is predicted.
        behaviour_log_probs: `[B, T]`, log p~ of the labels in nats, read on model-written responses alone.
        is_ground_truth: `[B]`.
        weights: of cross-entropy and of the policy part; one of weight 0 is not computed, and reported as 0.
        counts: denominators (ground-truth tokens, model-written tokens) over the whole optimiser step; None:
            those of this call. A count of 0 gives a zero term.
        importance_clip: eps of the long part; inf: no clipping.
        tile_size: rows per tile; None: what keeps a tile's logits at a few million.
        student_bias, teacher_bias, student_scale, teacher_scale, student_softcap, teacher_softcap, vocab_size: as
            in `tiled_objective`. The temperature is 1.
        collect_rows: fill `rows`.

    Returns:
        `LossTerms`. `sft` is the mean cross-entropy, `dac_kl` the policy objective L, both detached; `total` is
        their weighted sum and differentiable. `span` and `clip_penalty` are 0. `rows` are those of model-written
        tokens alone; its `index` points into the N rows, its `dac_kl` is KL(q_t || p_t).

    Raises:
        ValueError: shapes or vocabularies don't fit together, a label is out of range, or model-written
            responses come without `behaviour_log_probs`.
    """
    if len(weights) != 2 or (counts is not None and len(counts) != 2):
        raise ValueError(f"weights and counts are two numbers each (sft, policy), got {weights} and {counts}")
    if not importance_clip >= 0:
        raise ValueError(f"importance_clip must be at least 0, got {importance_clip}")
    flat_labels = labels.reshape(-1)
    hidden, taught = (None if h is None else h.flatten(0, 1) for h in (student_hidden, teacher_hidden))
    assert hidden is not None
    width = check_inputs(
        hidden,
        student_weight,
        taught,
        teacher_weight,
        flat_labels,
        None,
        None,
        (*weights, 0.0),
        vocab_size,
    )
    response_BT = labels != IGNORED
    truth_BT = response_BT & is_ground_truth.bool().unsqueeze(-1)
    written_BT = response_BT & ~truth_BT
    found = (float(truth_BT.sum()), float(written_BT.sum())) if counts is None else tuple(map(float, counts))
    scales = [float(w) / count if count > 0 else 0.0 for w, count in zip(weights, found, strict=True)]
    dtype = compute_dtype(*(t for t in (hidden, student_weight, taught, teacher_weight) if t is not None))
    wants = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in (hidden, student_weight, student_bias)]
    device_type = hidden.device.type
    with torch.no_grad(), torch.autocast(device_type, enabled=False):
        student = Head(
            student_weight,
            student_bias,
            scale=student_scale,
            softcap=student_softcap,
            width=width,
            dtype=dtype,
            accumulate=(wants[1], wants[2]),
        )
        run = _Run(hidden, student, dtype, wants, tile_size, flat_labels)
        sft = run.cross_entropy(truth_BT, scales[0]) if weights[0] != 0 else run.zero
        policy, rows = run.zero, None
        if taught is not None and teacher_weight is not None and weights[1] != 0:
            teacher = Head(
                teacher_weight,
                teacher_bias,
                scale=teacher_scale,
                softcap=teacher_softcap,
                width=width,
                dtype=dtype,
            )
            written = _Written(labels, written_BT, _behaviour(behaviour_log_probs, written_BT), dtype)
            policy, rows = run.policy(written, teacher, taught, scales[1], importance_clip, collect_rows)
    means = [value / count if count > 0 else run.zero for value, count in zip((sft, policy), found, strict=True)]
    total = run.zero
    for weight, mean in zip(weights, means, strict=True):
        # a term without weight is left out: 0 * inf would be NaN
        if weight != 0:
            total = total + float(weight) * mean
    total, _ = attach_gradients(total, run.zero, run.gradients((hidden, student_weight, student_bias)))
    return LossTerms(total, means[0], means[1], run.zero, run.zero, rows)
