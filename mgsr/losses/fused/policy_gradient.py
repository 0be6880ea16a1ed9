"""MiniLLM's objective from hidden states, in tiles of tokens. The definition is `mgsr.losses.policy_gradient`.

Identity: a = dL/dlog q is w q (log q - log p) for the single-step part, whose sum is w KL(q || p); for the long
part it is d long / d log rho at the label. Tiles go from the last row to the first, so that the rewards that
follow a token are known when its tile comes.

Shapes: B sequences, T positions, N = B T rows, R rows of a tile, V classes, H_S and H_T the hidden sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mgsr.losses.fused.cross_entropy import cross_entropy_tile
from mgsr.losses.fused.model_rows import ModelRows, StudentRows
from mgsr.losses.fused.response_rows import check_labels, response_rows
from mgsr.losses.fused.tile import rows_per_tile
from mgsr.losses.fused.tiled_objective import check_inputs
from mgsr.losses.log_probs import entropy
from mgsr.losses.policy_gradient import reward_to_go
from mgsr.losses.projection import OutputLayer
from mgsr.losses.reduction import IGNORED, AnswerRows, LossTerms, RowStats, weighted_sum


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
    answers: AnswerRows | None = None,
) -> LossTerms:
    """Cross-entropy on ground truth, and `mgsr.losses.policy_gradient` on model-written responses.

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
        answers: as in `tiled_objective`.

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
    layer = OutputLayer(student_weight, student_bias, student_scale, student_softcap)
    teacher = None
    if teacher_weight is not None:
        teacher = OutputLayer(teacher_weight, teacher_bias, teacher_scale, teacher_softcap)
    width, dtype = check_inputs(states, layer, taught, teacher, labels_N, (*weights, 0.0), vocab_size)
    check_labels(
        response_rows(labels_N, None, None).label_range if answers is None else answers.label_range, width
    )
    truth_BT = is_ground_truth.bool().unsqueeze(-1) & (labels != IGNORED)
    written_BT = (labels != IGNORED) & ~truth_BT
    found = counts if counts is not None else (int(truth_BT.sum()), int(written_BT.sum()))
    scales = [float(w) / float(count) if count > 0 else 0.0 for w, count in zip(weights, found, strict=True)]
    student, theirs, rows = StudentRows(states, layer, width, dtype, product_dtype), None, None
    if taught is not None and teacher is not None:
        theirs = ModelRows(taught, teacher, width, dtype, product_dtype)
    with torch.no_grad(), torch.autocast(states.device.type, enabled=False):
        zero = torch.zeros((), dtype=dtype, device=states.device)
        sums = [zero, zero]
        if weights[0] != 0:
            place = _places(truth_BT) if answers is None else answers.truth_place
            sums[0] = _cross_entropy(student, labels_N, _tiles(place, width, tile_size), scales[0])
        if weights[1] != 0:
            assert theirs is not None
            place = _places(written_BT) if answers is None else answers.written_place
            behaviour_N = _behaviour(behaviour_log_probs, written_BT, dtype, place)
            work = PolicyWork(
                labels_N, behaviour_N, scales[1], importance_clip, student.wants_gradient, collect_rows
            )
            tiles = _tiles(place, width, tile_size)
            sums[1], rows = _policy(student, theirs, written_BT, tiles, work)
        means = [total / count if count > 0 else zero for total, count in zip(sums, found, strict=True)]
        total = weighted_sum(means, weights)
    total, penalty = student.attach(total, zero)
    return LossTerms(total, means[0], means[1], zero, penalty.detach(), rows)


def _places(mask_BT: Tensor) -> Tensor:
    """Rows where `mask` is True, among the N rows."""
    return mask_BT.flatten().nonzero().squeeze(1)


def _tiles(rows: Tensor, width: int, tile_size: int | None) -> list[Tensor]:
    if rows.numel() == 0:
        return []
    return list(rows.split(rows_per_tile(tile_size, rows.numel(), width, rows.device.type)))


def _cross_entropy(student: StudentRows, labels_N: Tensor, tiles: Sequence[Tensor], scale: float) -> Tensor:
    """Sum over the tiles of ground truth; pulls `scale` times its gradient."""
    total = torch.zeros((), dtype=student.dtype, device=labels_N.device)
    for rows in tiles:
        logits, states = student.logits(rows)
        log_q, labels = torch.log_softmax(logits, dim=-1), labels_N[rows]
        own = log_q.gather(1, labels.unsqueeze(1)).squeeze(1)
        truth, factor = torch.ones_like(labels, dtype=torch.bool), torch.full_like(own, scale)
        grad = log_q.exp_().mul_(factor.unsqueeze(1)) if student.wants_gradient else None
        total = total + cross_entropy_tile(own, truth, labels, factor, grad)
        if grad is not None:
            student.pull(rows, grad, logits, states)
    return total


def _policy(
    student: StudentRows,
    teacher: ModelRows,
    written_BT: Tensor,
    tiles: list[Tensor],
    work: PolicyWork,
) -> tuple[Tensor, RowStats | None]:
    """Sum of the policy objective over the model-written tokens; pulls its scaled gradient."""
    dtype, done = student.dtype, []
    rewards_BT = torch.zeros(written_BT.shape, dtype=dtype, device=written_BT.device)
    # from the end: what a token's advantage needs has been seen when its tile comes
    for rows in reversed(tiles):
        logits, states = student.logits(rows)

        def advantage_of(rewards: Tensor, rows: Tensor = rows) -> Tensor:
            rewards_BT.view(-1)[rows] = rewards
            return reward_to_go(rewards_BT, written_BT).view(-1)[rows]

        tile = policy_tile(logits, teacher.logits(rows)[0], rows, advantage_of, work)
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


def _behaviour(log_probs_BT: Tensor | None, written_BT: Tensor, dtype: torch.dtype, place: Tensor) -> Tensor:
    """log p~ of every row, `[N]`."""
    if log_probs_BT is None:
        if place.numel():
            raise ValueError("model-written responses need behaviour_log_probs, got None")
        return torch.zeros(written_BT.numel(), dtype=dtype, device=written_BT.device)
    if log_probs_BT.shape != written_BT.shape:
        raise ValueError(
            f"behaviour_log_probs has shape {tuple(log_probs_BT.shape)}, labels {tuple(written_BT.shape)}"
        )
    return log_probs_BT.detach().to(dtype).flatten()


def clipped_surrogate(ratio: Tensor, advantage: Tensor, importance_clip: float) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic surrogate max(-rho A, -clip(rho) A), and its derivative to log rho.

    Args:
        ratio: rho, any shape.
        advantage: A, same shape.
        importance_clip: eps; rho is clipped to [1 - eps, 1 + eps]. inf: never.

    Returns:
        Surrogate and derivative, same shape, without a graph. The derivative is 0 where clipping is in force.

    >>> clipped_surrogate(torch.tensor([1.5, 1.5]), torch.tensor([2.0, -2.0]), 0.25)
    (tensor([-2.5000,  3.0000]), tensor([0., 3.]))
    """
    if not importance_clip >= 0:
        raise ValueError(f"importance_clip must be at least 0, got {importance_clip}")
    ratio, advantage = ratio.detach(), advantage.detach()
    plain = -ratio * advantage
    clipped = -ratio.clamp(1.0 - importance_clip, 1.0 + importance_clip) * advantage
    over = (advantage > 0) & (ratio > 1.0 + importance_clip)
    under = (advantage < 0) & (ratio < 1.0 - importance_clip)
    return torch.maximum(plain, clipped), plain.masked_fill(over | under, 0.0)


class PolicyWork(NamedTuple):
    """What is computed, alike for every tile. `labels` and `behaviour` (log p~ of them) are `[N]`."""

    labels: Tensor
    behaviour: Tensor
    scale: float
    importance_clip: float
    need_grad: bool
    collect: bool


class PolicyTile(NamedTuple):
    """Per-row values `[R]`, and the scaled gradient `[R, V]` to the student's logits."""

    loss: Tensor
    reverse_kl: Tensor
    teacher_log_prob: Tensor
    teacher_entropy: Tensor | None
    grad_logits: Tensor | None


def policy_tile(
    student_logits: Tensor,
    teacher_logits: Tensor,
    rows: Tensor,
    advantage_of: Callable[[Tensor], Tensor],
    work: PolicyWork,
) -> PolicyTile:
    """w KL(q || p) + long of a tile's tokens. Their gradient to the logits, before scaling, is

    w q (log q - log p - KL(q || p)) + d long / d log rho * (onehot(y) - q)
    """
    log_q, log_p = torch.log_softmax(student_logits, dim=-1), torch.log_softmax(teacher_logits, dim=-1)
    column = work.labels[rows].unsqueeze(1)
    own, given = (log_probs.gather(1, column).squeeze(1) for log_probs in (log_q, log_p))
    ratio = (own - work.behaviour[rows]).exp()
    long, slope = clipped_surrogate(ratio, advantage_of(given - own), work.importance_clip)
    teacher_entropy = entropy(log_p, log_p.exp()) if work.collect else None
    q = log_q.exp()
    # classes without mass contribute nothing, also where log q - log p is inf - inf
    difference = torch.where(q > 0, log_q.sub_(log_p), 0.0)
    reverse_kl = (q * difference).sum(dim=-1)
    grad = None
    if work.need_grad:
        grad = difference.sub_(reverse_kl.unsqueeze(1)).mul_(ratio.unsqueeze(1)).sub_(slope.unsqueeze(1)).mul_(q)
        grad.scatter_add_(1, column, slope.unsqueeze(1)).mul_(work.scale)
    return PolicyTile(ratio * reverse_kl + long, reverse_kl, given, teacher_entropy, grad)
