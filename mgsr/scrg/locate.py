"""Where a sequence goes wrong: the position at which the teacher's token replaces the student's.

Shapes: B sequences, T response positions, V vocabulary, N positions that are compared.
p is the teacher's distribution, q the student's, both at temperature 1.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from mgsr.losses.log_probs import compute_dtype, kl_from_log_probs

ErrorPosition = Literal["max_kl", "random", "first_disagreement", "threshold"]


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def choose_position(
    kl_BT: Tensor, candidates_BT: Tensor, rule: ErrorPosition, kl_threshold: float, uniforms_B: Tensor | None
) -> Tensor:
    """The error position of every row among its candidates, -1 where there is none."""
    length = kl_BT.shape[1]
    columns = torch.arange(length, device=kl_BT.device).expand_as(candidates_BT)
    if rule == "max_kl":
        kl_BT = kl_BT.masked_fill(~candidates_BT, -torch.inf)
        chosen_BT = candidates_BT & (kl_BT == kl_BT.amax(dim=1, keepdim=True))
    elif rule == "threshold":
        chosen_BT = candidates_BT & (kl_BT > kl_threshold)
    elif rule == "first_disagreement":
        chosen_BT = candidates_BT
    else:
        if uniforms_B is None:
            raise ValueError("error_position='random' needs one uniform per sequence (uniforms=)")
        count_B = candidates_BT.sum(dim=1)
        rank_B = (uniforms_B.to(kl_BT.device) * count_B).long().clamp(max=count_B - 1)
        chosen_BT = candidates_BT & (candidates_BT.cumsum(dim=1) == rank_B[:, None] + 1)
    first_B = columns.masked_fill(~chosen_BT, length).amin(dim=1)
    return torch.where(first_B < length, first_B, -torch.ones_like(first_B))


def locate_error(
    teacher_logits: Tensor,
    student_logits: Tensor,
    tokens: Tensor,
    teacher_tokens: Tensor,
    mask: Tensor,
    *,
    after: Tensor | None = None,
    error_position: ErrorPosition = "max_kl",
    kl_threshold: float = 1.0,
    uniforms: Tensor | None = None,
) -> Tensor:
    """The position of the token to be corrected in every sequence.

    j = argmax over { i in response : y_i != y^T_i } of KL(p_i || q_i)   (Liu et al. 2024, eq. 3); ties go
    to the smallest i.

    Args:
        teacher_logits: `[B, T, V]`, aligned: `logits[b, t]` is the distribution of `tokens[b, t]`.
        student_logits: `[B, T, V]`, likewise.
        tokens: `[B, T]`, the student's.
        teacher_tokens: `[B, T]`, what the teacher says instead, given the student's prefix.
        mask: `[B, T]`, True on response tokens, end of sequence included.
        after: `[B]`, only positions > `after[b]` are searched; None searches all.
        error_position: `max_kl`, or in its place `random` (uniform among the disagreements),
            `first_disagreement`, or `threshold` (the first disagreement with KL > `kl_threshold`).
        kl_threshold: in nats.
        uniforms: `[B]` in [0, 1), for `random` only.

    Returns:
        `[B]` int64, -1 where no position qualifies.

    Raises:
        ValueError: shapes or vocabularies differ, a KL is NaN, or an option is unknown.

    >>> teacher = torch.tensor([[[0.0, 0.0], [0.0, 9.0], [0.0, 2.0]]])
    >>> mask, zeros = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.long)
    >>> locate_error(teacher, torch.zeros(1, 3, 2), zeros, torch.tensor([[1, 0, 1]]), mask)
    tensor([2])
    """
    check_choice("error_position", error_position, get_args(ErrorPosition))
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(f"logits differ in shape: {tuple(teacher_logits.shape)}, {tuple(student_logits.shape)}")
    for name, given in (("tokens", tokens), ("teacher_tokens", teacher_tokens), ("mask", mask)):
        if given.shape != teacher_logits.shape[:2]:
            raise ValueError(f"{name} must be {tuple(teacher_logits.shape[:2])}, got {tuple(given.shape)}")
    candidates_BT = mask.bool() & (tokens != teacher_tokens)
    batch, length = tokens.shape
    if after is not None:
        if after.shape != (batch,):
            raise ValueError(f"after must be [{batch}], got {tuple(after.shape)}")
        candidates_BT &= torch.arange(length, device=tokens.device) > after.to(tokens.device)[:, None]
    if length == 0:
        return torch.full((batch,), -1, dtype=torch.int64, device=tokens.device)
    both = (logits[candidates_BT].to(compute_dtype(logits)) for logits in (teacher_logits, student_logits))
    kl_N = kl_from_log_probs(*(logits_NV.log_softmax(-1) for logits_NV in both))
    if torch.isnan(kl_N).any():
        raise ValueError("KL(p || q) is NaN at a response position: the logits there are not finite")
    kl_BT = torch.zeros(batch, length, dtype=kl_N.dtype, device=kl_N.device)
    kl_BT[candidates_BT] = kl_N
    return choose_position(kl_BT, candidates_BT, error_position, kl_threshold, uniforms)
