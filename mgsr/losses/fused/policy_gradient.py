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

Shapes: B sequences, T positions, N = B T rows, R rows of a tile, V classes, H_S and H_T the hidden sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mgsr.losses.divergences import compute_dtype
from mgsr.losses.fused.inputs import check_inputs, rows_per_tile
from mgsr.losses.fused.loss_terms import LossTerms, RowStats
from mgsr.losses.fused.policy_tile import PolicyWork, policy_tile, reward_to_go
from mgsr.losses.fused.precomputed_gradients import attach_gradients
from mgsr.losses.fused.projection import Head, factor_dtype
from mgsr.losses.reduction import IGNORED


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
    product_dtype: torch.dtype | None = None,
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
        product_dtype, student_bias, teacher_bias, student_scale, teacher_scale, student_softcap,
        teacher_softcap, vocab_size: as in `tiled_objective`. The temperature is 1.
        collect_rows: fill `rows`.

    Returns:
        `LossTerms`. `sft` is the mean cross-entropy, `dac_kl` the policy objective L, both detached; `total` is
        their weighted sum and differentiable. L is no divergence: tokens that the teacher likes better than the
        student make its long part, and it, negative. `span` and `clip_penalty` are 0. `rows` are those of
        model-written tokens alone; its `index` points into the N rows, its `dac_kl` is KL(q_t || p_t) >= 0.

    Raises:
        ValueError: shapes or vocabularies don't fit together, a label is out of range, or model-written
            responses come without `behaviour_log_probs`.
    """
    if len(weights) != 2 or (counts is not None and len(counts) != 2):
        raise ValueError(f"weights and counts are two numbers each (sft, policy), got {weights} and {counts}")
    if not importance_clip >= 0:
        raise ValueError(f"importance_clip must be at least 0, got {importance_clip}")
    states, labels_N = student_hidden.flatten(0, 1), labels.flatten()
    taught = None if teacher_hidden is None else teacher_hidden.flatten(0, 1)
    three = (*weights, 0.0)
    width = check_inputs(states, student_weight, taught, teacher_weight, labels_N, None, None, three, vocab_size)
    truth_BT = is_ground_truth.bool().unsqueeze(-1) & (labels != IGNORED)
    written_BT = (labels != IGNORED) & ~truth_BT
    found = counts if counts is not None else (int(truth_BT.sum()), int(written_BT.sum()))
    scales = [float(w) / float(count) if count > 0 else 0.0 for w, count in zip(weights, found, strict=True)]
    dtype = compute_dtype(*(t for t in (states, student_weight, taught, teacher_weight) if t is not None))
    inputs = (states, student_weight, student_bias)
    wants = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in inputs]
    rows = None
    factors = [None if w is None else factor_dtype(w, product_dtype) for w in (student_weight, teacher_weight)]
    with torch.no_grad(), torch.autocast(states.device.type, enabled=False):
        head = Head(
            student_weight,
            student_bias,
            scale=student_scale,
            softcap=student_softcap,
            width=width,
            dtype=dtype,
            factors=factors[0],
            accumulate=(wants[1], wants[2]),
        )
        student = _Student(states.detach(), head, wants, tile_size)
        zero = torch.zeros((), dtype=dtype, device=states.device)
        sums = [zero, zero]
        if weights[0] != 0:
            sums[0] = _cross_entropy(student, labels_N, truth_BT, scales[0])
        if weights[1] != 0:
            assert taught is not None and teacher_weight is not None
            teacher = Head(
                teacher_weight,
                teacher_bias,
                scale=teacher_scale,
                softcap=teacher_softcap,
                width=width,
                dtype=dtype,
                factors=factors[1],
            )
            behaviour_N = _behaviour(behaviour_log_probs, written_BT, dtype)
            work = PolicyWork(labels_N, behaviour_N, scales[1], importance_clip, any(wants), collect_rows)
            sums[1], rows = _policy(student, teacher, taught.detach(), written_BT, work)
        means = [total / count if count > 0 else zero for total, count in zip(sums, found, strict=True)]
        total = zero
        for weight, mean in zip(weights, means, strict=True):
            # a term without weight is left out: 0 * inf would be NaN
            if weight != 0:
                total = total + float(weight) * mean
    grads = (student.grad, head.grad_weight, head.grad_bias)
    known = [(t, grad, None) for t, grad in zip(inputs, grads, strict=True) if t is not None and grad is not None]
    total, penalty = attach_gradients(total, zero, known)
    return LossTerms(total, means[0], means[1], zero, penalty.detach(), rows)


class _Student:
    """The student's rows of a call, a tile at a time, and the gradient that reaches them."""

    def __init__(self, states_NH: Tensor, head: Head, wants: Sequence[bool], tile_size: int | None) -> None:
        self.states, self.head, self.tile_size = states_NH, head, tile_size
        self.wants = wants
        dtype = head.dtype
        self.grad = torch.zeros_like(states_NH, dtype=dtype) if wants[0] else None

    def tiles(self, mask_BT: Tensor) -> list[Tensor]:
        """Rows where `mask` is True, cut into tiles; of each the indices among the N rows."""
        rows = mask_BT.flatten().nonzero().squeeze(1)
        if rows.numel() == 0:
            return []
        size = rows_per_tile(self.tile_size, rows.numel(), self.head.width, rows.device.type)
        return list(rows.split(size))

    def project(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[R, V]` of some rows, and their states `[R, H]`."""
        states = self.states[rows].to(self.head.dtype)
        return self.head.project(states), states

    def pull(self, rows: Tensor, grad_logits: Tensor, logits: Tensor, states: Tensor) -> None:
        """Hand the gradient of a tile's logits on; overwrites `grad_logits`."""
        pulled = self.head.pull(grad_logits, logits, states, to_hidden=self.wants[0])
        if self.grad is not None and pulled is not None:
            self.grad[rows] += pulled


def _cross_entropy(student: _Student, labels_N: Tensor, truth_BT: Tensor, scale: float) -> Tensor:
    """Sum over the ground-truth tokens; pulls `scale` times its gradient."""
    total = torch.zeros((), dtype=student.head.dtype, device=labels_N.device)
    for rows in student.tiles(truth_BT):
        logits, states = student.project(rows)
        log_q, column = torch.log_softmax(logits, dim=-1), labels_N[rows].unsqueeze(1)
        total = total - log_q.gather(1, column).sum()
        if any(student.wants):
            grad = log_q.exp_().mul_(scale)
            grad.scatter_add_(1, column, torch.full_like(grad[:, :1], -scale))
            student.pull(rows, grad, logits, states)
    return total


def _policy(
    student: _Student, teacher: Head, taught_NH: Tensor, written_BT: Tensor, work: PolicyWork
) -> tuple[Tensor, RowStats | None]:
    """Sum of the policy objective over the model-written tokens; pulls its scaled gradient."""
    dtype = student.head.dtype
    rewards_BT = torch.zeros(written_BT.shape, dtype=dtype, device=written_BT.device)
    tiles, done = student.tiles(written_BT), []
    # from the end: what a token's advantage needs has been seen when its tile comes
    for rows in reversed(tiles):
        logits, states = student.project(rows)

        def advantage_of(rewards: Tensor, rows: Tensor = rows) -> Tensor:
            rewards_BT.view(-1)[rows] = rewards
            return reward_to_go(rewards_BT, written_BT).view(-1)[rows]

        taught = teacher.project(taught_NH[rows].to(dtype))
        tile = policy_tile(logits, taught, rows, advantage_of, work)
        if tile.grad_logits is not None:
            student.pull(rows, tile.grad_logits, logits, states)
        done.append(tile._replace(grad_logits=None))
    done.reverse()
    total = torch.stack([tile.loss.sum() for tile in done]).sum() if done else rewards_BT.sum()
    if not work.collect:
        return total, None
    empty = rewards_BT.new_zeros(0)
    columns = [
        torch.cat([empty, *(values for tile in done if (values := getattr(tile, name)) is not None)])
        for name in ("teacher_log_prob", "teacher_entropy", "reverse_kl")
    ]
    index = torch.cat(tiles) if tiles else work.labels.new_zeros(0)
    return total, RowStats(index, *columns)


def _behaviour(log_probs_BT: Tensor | None, written_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """log p~ of every row, `[N]`."""
    if log_probs_BT is None:
        if bool(written_BT.any()):
            raise ValueError("model-written responses need behaviour_log_probs, got None")
        return torch.zeros(written_BT.numel(), dtype=dtype, device=written_BT.device)
    if log_probs_BT.shape != written_BT.shape:
        raise ValueError(
            f"behaviour_log_probs has shape {tuple(log_probs_BT.shape)}, labels {tuple(written_BT.shape)}"
        )
    return log_probs_BT.detach().to(dtype).flatten()
