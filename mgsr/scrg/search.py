"""One search of a pass: score the sequences, compare the models everywhere, choose the errors.

Shapes: B sequences, T positions of the longest response, N response positions of all sequences end to end,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from mgsr.losses.log_probs import compute_dtype, kl_from_log_probs
from mgsr.runtime.rng import Stream, inverse_cdf, uniform
from mgsr.scrg.locate import ErrorPosition, check_choice, choose_position
from mgsr.scrg.records import Correction, Prompt, Scorer, Status, Student, TokenLogits

TeacherToken = Literal["sample", "argmax"]


@dataclass(frozen=True)
class Options:
    """How sequences are revised, see `mgsr.scrg.revise`; checked once.

    Raises:
        ValueError: one of them cannot be used.
    """

    max_new_tokens: int
    eos_ids: frozenset[int]
    seed: int
    passes: int = 1
    teacher_token: TeacherToken = "sample"
    error_position: ErrorPosition = "max_kl"
    kl_threshold: float = 1.0
    tile_size: int = 256
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        check_choice("teacher_token", self.teacher_token, get_args(TeacherToken))
        check_choice("error_position", self.error_position, get_args(ErrorPosition))
        for name, least in (("passes", 0), ("max_new_tokens", 1), ("tile_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.vocab_size is not None and self.vocab_size < 1:
            raise ValueError(f"vocab_size must be at least 1, got {self.vocab_size}")


@dataclass
class Draft:
    """A sequence on its way."""

    example_id: int
    prompt_ids: tuple[int, ...]
    rollout_ids: list[int]
    response_ids: list[int]
    after: int = -1
    corrections: list[Correction] = field(default_factory=list)
    status: Status = "not_searched"
    disagreements: int = 0
    positions: int = 0
    finished: bool = False


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
    teacher_NV = teacher_logits_NV.to(compute_dtype(teacher_logits_NV)).log_softmax(dim=-1)
    student_NV = student_logits_NV.to(compute_dtype(student_logits_NV)).log_softmax(dim=-1)
    both_N2 = torch.stack([tokens_N.to(teacher_tokens_N.device), teacher_tokens_N], dim=-1)
    teacher_N2, student_N2 = teacher_NV.gather(1, both_N2), student_NV.gather(1, both_N2)
    kl_N = kl_from_log_probs(teacher_NV, student_NV)
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


def _end_to_end(drafts: Sequence[Draft]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and token of every response position, sequence after sequence: three arrays `[N]`."""
    lengths = [len(draft.response_ids) for draft in drafts]
    rows = np.repeat(np.arange(len(drafts)), lengths)
    columns = np.concatenate([np.arange(length) for length in lengths])
    tokens = np.concatenate([np.asarray(draft.response_ids, dtype=np.int64) for draft in drafts])
    return rows, columns, tokens


@dataclass(frozen=True)
class Search:
    """Outcome of one search: everything per response position, and what was chosen per sequence."""

    comparison: Comparison
    starts: np.ndarray  # [B] index of a sequence's first position among the N
    chosen: list[int]  # [B], -1 = none
    disagreements: list[int]  # [B]
    positions: list[int]  # [B]
    log_likelihoods: list[float]  # [B] teacher, mean per token


def search_errors(
    student: Student, teacher: Scorer, drafts: Sequence[Draft], pass_: int, round: int, options: Options
) -> Search:
    """Score the drafts with both models and choose the error positions of this pass."""
    prompts: list[Prompt] = [(draft.example_id, draft.prompt_ids) for draft in drafts]
    responses = [draft.response_ids for draft in drafts]
    rows, columns, tokens = _end_to_end(drafts)
    ids = np.array([draft.example_id for draft in drafts], dtype=np.int64)
    uniforms = None
    if options.teacher_token == "sample":
        draws = uniform(options.seed, Stream.TEACHER, round, ids[rows], pass_, columns)
        uniforms = torch.from_numpy(draws)
    comparison = compare(
        teacher.score(prompts, responses),
        student.score(prompts, responses),
        torch.from_numpy(tokens),
        uniforms,
        tile_size=options.tile_size,
        vocab_size=options.vocab_size,
    )

    def padded(values: Tensor, fill: float) -> Tensor:
        grid = values.new_full((len(drafts), int(columns.max()) + 1), fill)
        grid[rows, columns] = values
        return grid

    after_N = np.array([draft.after for draft in drafts])[rows]
    searched_BT = padded(torch.from_numpy(columns > after_N), False)
    candidates_BT = searched_BT & padded(comparison.teacher_token != torch.from_numpy(tokens), False)
    uniforms_B = torch.from_numpy(uniform(options.seed, Stream.POSITION, round, ids, pass_, 0))
    chosen_B = choose_position(
        padded(comparison.kl, 0.0), candidates_BT, options.error_position, options.kl_threshold, uniforms_B
    )
    # One term after the other, so that the last digit does not depend on the company either.
    sums_B = np.bincount(rows, comparison.teacher_log_prob_student_token.double().numpy())
    likelihoods_B = sums_B / np.array([len(response) for response in responses])
    return Search(
        comparison,
        np.searchsorted(rows, np.arange(len(drafts))),
        chosen_B.tolist(),
        candidates_BT.sum(dim=1).tolist(),
        searched_BT.sum(dim=1).tolist(),
        likelihoods_B.tolist(),
    )
