"""One search of a pass: score the sequences, compare the models everywhere, choose the errors.

Shapes: B sequences, T positions of the longest response, N response positions of all sequences end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from mgsr.runtime.meter import Meter
from mgsr.runtime.rng import Stream, uniform
from mgsr.scrg.compare import Comparison, compare
from mgsr.scrg.locate import ErrorPosition, check_choice, choose_position
from mgsr.scrg.records import Correction, Prompt, RevisedSequence, Scorer, Status, Student

TeacherToken = Literal["sample", "argmax"]


@dataclass(frozen=True)
class Settings:
    """The options of `revise`, checked once."""

    passes: int
    max_new_tokens: int
    eos_ids: frozenset[int]
    seed: int
    round: int
    teacher_token: TeacherToken
    error_position: ErrorPosition
    kl_threshold: float
    tile_size: int
    vocab_size: int | None
    meter: Meter = field(default_factory=Meter)

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

    def finish(self) -> RevisedSequence:
        return RevisedSequence(
            self.example_id,
            self.prompt_ids,
            tuple(self.rollout_ids),
            tuple(self.response_ids),
            tuple(self.corrections),
            self.status,
            self.disagreements,
            self.positions,
        )


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
    student: Student, teacher: Scorer, drafts: Sequence[Draft], pass_: int, settings: Settings
) -> Search:
    """Score the drafts with both models and choose the error positions of this pass."""
    prompts: list[Prompt] = [(draft.example_id, draft.prompt_ids) for draft in drafts]
    responses = [draft.response_ids for draft in drafts]
    rows, columns, tokens = _end_to_end(drafts)
    ids = np.array([draft.example_id for draft in drafts], dtype=np.int64)
    uniforms = None
    if settings.teacher_token == "sample":
        draws = uniform(settings.seed, Stream.TEACHER, settings.round, ids[rows], pass_, columns)
        uniforms = torch.from_numpy(draws)
    comparison = compare(
        teacher.score(prompts, responses),
        student.score(prompts, responses),
        torch.from_numpy(tokens),
        uniforms,
        tile_size=settings.tile_size,
        vocab_size=settings.vocab_size,
    )

    def padded(values: Tensor, fill: float) -> Tensor:
        grid = values.new_full((len(drafts), int(columns.max()) + 1), fill)
        grid[rows, columns] = values
        return grid

    after_N = np.array([draft.after for draft in drafts])[rows]
    searched_BT = padded(torch.from_numpy(columns > after_N), False)
    candidates_BT = searched_BT & padded(comparison.teacher_token != torch.from_numpy(tokens), False)
    uniforms_B = torch.from_numpy(uniform(settings.seed, Stream.POSITION, settings.round, ids, pass_, 0))
    chosen_B = choose_position(
        padded(comparison.kl, 0.0), candidates_BT, settings.error_position, settings.kl_threshold, uniforms_B
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


def record(search: Search, index: int, draft: Draft, pass_: int, length_after: int) -> Correction:
    """The record of sequence `index`, whose response still is as it was before."""
    position, seen = search.chosen[index], search.comparison
    row = int(search.starts[index]) + position
    return Correction(
        pass_=pass_,
        position=position,
        student_token=draft.response_ids[position],
        teacher_token=int(seen.teacher_token[row]),
        kl=float(seen.kl[row]),
        teacher_prob_student_token=float(seen.teacher_log_prob_student_token[row].exp()),
        teacher_prob_teacher_token=float(seen.teacher_log_prob_teacher_token[row].exp()),
        student_prob_student_token=float(seen.student_log_prob_student_token[row].exp()),
        student_prob_teacher_token=float(seen.student_log_prob_teacher_token[row].exp()),
        length_before=len(draft.response_ids),
        length_after=length_after,
        teacher_log_likelihood_before=search.log_likelihoods[index],
        disagreements=search.disagreements[index],
        positions=search.positions[index],
    )
