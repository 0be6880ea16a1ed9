"""Teacher and student side by side at every response position, a tile of logits at a time.

Shapes: N response positions of several sequences end to end, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mgsr.runtime.rng import inverse_cdf
from mgsr.scrg.locate import forward_kl, wide
from mgsr.scrg.records import TokenLogits


class Comparison(NamedTuple):
    """Teacher and student at N response positions, each `[N]`."""

    teacher_token: Tensor
    kl: Tensor
    teacher_log_prob_student_token: Tensor
    teacher_log_prob_teacher_token: Tensor
    student_log_prob_student_token: Tensor
    student_log_prob_teacher_token: Tensor


def _compare_tile(
    teacher_logits_NV: Tensor, student_logits_NV: Tensor, tokens_N: Tensor, uniforms_N: Tensor | None
) -> Comparison:
    """Draw (or, without uniforms, take the best of) the teacher's tokens and compare the two models there."""
    if teacher_logits_NV.shape != student_logits_NV.shape:
        widths = teacher_logits_NV.shape[-1], student_logits_NV.shape[-1]
        raise ValueError(
            f"teacher and student have {widths[0]} and {widths[1]} classes: pass vocab_size, the shared ids"
        )
    if uniforms_N is None:
        teacher_tokens_N = teacher_logits_NV.argmax(dim=-1)
    else:
        teacher_tokens_N = inverse_cdf(teacher_logits_NV, uniforms_N)
    teacher_NV = wide(teacher_logits_NV).log_softmax(dim=-1)
    student_NV = wide(student_logits_NV).log_softmax(dim=-1)
    both_N2 = torch.stack([tokens_N.to(teacher_tokens_N.device), teacher_tokens_N], dim=-1)
    teacher_N2, student_N2 = teacher_NV.gather(1, both_N2), student_NV.gather(1, both_N2)
    kl_N = forward_kl(teacher_NV, student_NV)
    return Comparison(teacher_tokens_N, kl_N, *teacher_N2.unbind(-1), *student_N2.unbind(-1))


def compare(
    teacher: TokenLogits,
    student: TokenLogits,
    tokens_N: Tensor,
    uniforms_N: Tensor | None,
    tile_size: int,
    vocab_size: int | None,
) -> Comparison:
    """`_compare_tile` over all positions, a tile of logits at a time; results on the CPU."""
    if len(teacher) != len(tokens_N) or len(student) != len(tokens_N):
        raise ValueError(
            f"{len(tokens_N)} tokens, but scores of {len(teacher)} (teacher) and {len(student)} (student)"
        )
    tiles = []
    for start in range(0, len(tokens_N), tile_size):
        rows = slice(start, min(start + tile_size, len(tokens_N)))
        teacher_logits = teacher[rows][:, :vocab_size]
        student_logits = student[rows][:, :vocab_size].to(teacher_logits.device)
        largest, width = int(tokens_N[rows].max()), teacher_logits.shape[1]
        if largest >= width:
            raise ValueError(f"the student wrote token {largest}, beyond the {width} shared ids")
        uniforms = None if uniforms_N is None else uniforms_N[rows]
        tiles.append(_compare_tile(teacher_logits, student_logits, tokens_N[rows], uniforms))
    result = Comparison(*(torch.cat(columns).cpu() for columns in zip(*tiles, strict=True)))
    if torch.isnan(result.kl).any():
        raise ValueError(
            "KL(p || q) is NaN at a response position: the logits of teacher or student are not finite"
        )
    return result
