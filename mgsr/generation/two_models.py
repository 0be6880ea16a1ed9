"""Text that two models write together, to compare with sequence correction.

Shapes: n rows of a batch, T new tokens, V vocabulary. p is the teacher's distribution, q the student's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mgsr.generation.decoding import Decoded, Reader, decode
from mgsr.generation.language_model import LanguageModel, evaluating
from mgsr.generation.sampling import draws
from mgsr.runtime.rng import Stream, classes_at
from mgsr.scrg import Prompt


class _PairWriter(ABC):
    """Steps the caches of student and teacher in lockstep; subclasses choose the token."""

    streams: tuple[Stream, ...] = (Stream.ROLLOUT,)

    def __init__(self, student: LanguageModel, teacher: LanguageModel) -> None:
        self.student, self.teacher = student, teacher
        self.batch_size, self.max_new_tokens = student.batch_size, student.max_new_tokens

    @abstractmethod
    def choose(self, logits: Sequence[Tensor], uniforms: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Tokens and kept values `[n]` from (student, teacher) logits `[n, V]` and the streams' uniforms."""

    def write(self, prompts: Sequence[Prompt], *, seed: int, round: int) -> list[list[int]]:
        """One response per prompt, as `LanguageModel.write`; nothing is kept for a continuation."""
        return [tokens for tokens, _ in self._write(prompts, seed=seed, round=round)]

    def release(self) -> None:  # noqa: B027 (a writer that keeps nothing)
        """Nothing is kept."""

    def _write(
        self, prompts: Sequence[Prompt], *, seed: int, round: int
    ) -> list[tuple[list[int], tuple[list[float], ...]]]:
        """Tokens of every prompt, and its kept values, each a list as long."""
        self.student.check_room(prompts)
        self.teacher.check_room(prompts)
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index][1]))
        written: dict[int, tuple[list[int], tuple[list[float], ...]]] = {}
        with evaluating(self.student.model), evaluating(self.teacher.model):
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                decoded = self._write_batch([prompts[index] for index in batch], seed=seed, round=round)
                rows = zip(decoded.tokens, zip(*decoded.values, strict=True), strict=True)
                written.update(zip(batch, rows, strict=True))
        return [written[index] for index in range(len(prompts))]

    def _write_batch(self, prompts: Sequence[Prompt], *, seed: int, round: int) -> Decoded:
        ids, texts = [example_id for example_id, _ in prompts], [prompt_ids for _, prompt_ids in prompts]
        width, zeros = self.max_new_tokens, [0] * len(ids)
        readers = [
            Reader(w.body, w.head, texts, room=width, pad_id=w.pad_id, vocab_size=w.vocab_size)
            for w in (self.student, self.teacher)
        ]
        decoded = decode(
            readers,
            [draws(ids, zeros, width, seed=seed, stream=stream, round=round, pass_=0) for stream in self.streams],
            self.choose,
            budgets=[width] * len(ids),
            eos_ids=self.student.eos_ids,
        )
        for text, tokens in zip(texts, decoded.tokens, strict=True):
            for model in (self.student, self.teacher):
                model.work.answer(len(text), len(tokens))
        return decoded


@dataclass(frozen=True)
class MixedText:
    """A response drawn from the mixture, with what importance weights need, per token and in nats.

    Attributes:
        response_ids: end of sequence included.
        behaviour_log_probs: log(alpha p + (1 - alpha) q) of every token.
        student_log_probs: log q of every token.
    """

    response_ids: tuple[int, ...]
    behaviour_log_probs: tuple[float, ...]
    student_log_probs: tuple[float, ...]


class MixedWriter(_PairWriter):
    """Teacher-mixed sampling: tokens drawn from alpha p + (1 - alpha) q (Gu et al. 2024, MiniLLM).

    Args:
        student: gives the batch size, the end-of-sequence ids and the limit of new tokens.
        teacher: over the same ids (`vocab_size` cuts both).
        alpha: the teacher's share, in [0, 1].
    """

    def __init__(self, student: LanguageModel, teacher: LanguageModel, *, alpha: float = 0.2) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}")
        super().__init__(student, teacher)
        self.alpha = alpha

    def choose(self, logits: Sequence[Tensor], uniforms: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        student_nV, teacher_nV = _log_probs(logits)
        shares = [math.log(share) if share > 0 else -math.inf for share in (self.alpha, 1 - self.alpha)]
        mixed_nV = torch.logaddexp(teacher_nV + shares[0], student_nV + shares[1])
        tokens_n = classes_at(mixed_nV, uniforms[0])
        column = tokens_n[:, None].clamp(min=0)
        return tokens_n, (mixed_nV.gather(1, column)[:, 0], student_nV.gather(1, column)[:, 0])

    def write_mixed(self, prompts: Sequence[Prompt], *, seed: int, round: int) -> list[MixedText]:
        """`write`, with the log-probabilities of every token."""
        return [
            MixedText(tuple(tokens), tuple(behaviour), tuple(own))
            for tokens, (behaviour, own) in self._write(prompts, seed=seed, round=round)
        ]


@dataclass(frozen=True)
class InterleavedText:
    """A response with the positions at which the teacher's draw stands in place of the student's."""

    response_ids: tuple[int, ...]
    replaced: tuple[bool, ...]


class InterleavedWriter(_PairWriter):
    """Interleaved sampling: the teacher replaces unlikely tokens as they are written (Xu et al. 2025).

    The student draws from q (stream `rollout`); where its token is not among the K most probable of p (ties:
    smaller ids first), one draw from the whole of p (stream `teacher`) stands in its place, and both go on
    from there.

    Args:
        student: gives the batch size, the end-of-sequence ids and the limit of new tokens.
        teacher: over the same ids (`vocab_size` cuts both).
        top_k: K, at least 1.
    """

    streams = (Stream.ROLLOUT, Stream.TEACHER)

    def __init__(self, student: LanguageModel, teacher: LanguageModel, *, top_k: int = 25) -> None:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        super().__init__(student, teacher)
        self.top_k = top_k

    def choose(self, logits: Sequence[Tensor], uniforms: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        student_nV, teacher_nV = _same_width(logits)
        proposed_n, drawn_n = classes_at(student_nV, uniforms[0]), classes_at(teacher_nV, uniforms[1])
        own_n1 = teacher_nV.gather(1, proposed_n[:, None].clamp(min=0))
        smaller_nV = torch.arange(teacher_nV.shape[1], device=teacher_nV.device) < proposed_n[:, None]
        rank_n = ((teacher_nV > own_n1) | ((teacher_nV == own_n1) & smaller_nV)).sum(dim=1)
        replaced_n = rank_n >= self.top_k
        # also where only the teacher has no distribution the token is none
        taken_n = (replaced_n | (drawn_n < 0)) & (proposed_n >= 0)
        return torch.where(taken_n, drawn_n, proposed_n), (replaced_n,)

    def write_interleaved(self, prompts: Sequence[Prompt], *, seed: int, round: int) -> list[InterleavedText]:
        """`write`, with the positions that the teacher replaced."""
        return [
            InterleavedText(tuple(tokens), tuple(map(bool, replaced)))
            for tokens, (replaced,) in self._write(prompts, seed=seed, round=round)
        ]


def _same_width(logits: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    student_nV, teacher_nV = logits
    if student_nV.shape != teacher_nV.shape:
        widths = student_nV.shape[1], teacher_nV.shape[1]
        raise ValueError(f"student and teacher have {widths[0]} and {widths[1]} classes: give both vocab_size")
    return student_nV, teacher_nV.to(student_nV.device)


def _log_probs(logits: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    student_nV, teacher_nV = _same_width(logits)
    return student_nV.double().log_softmax(dim=1), teacher_nV.double().log_softmax(dim=1)
