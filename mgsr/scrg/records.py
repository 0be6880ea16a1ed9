"""What sequence correction reads and writes: the models it asks, the sequences it returns.

A revised sequence is plain Python numbers and tuples, so that it goes to JSON and back unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, get_args

from torch import Tensor

Prompt = tuple[int, Sequence[int]]
"""(example id, token ids)."""

Status = Literal["corrected", "no_disagreement", "below_threshold", "not_searched"]


@dataclass(frozen=True)
class Prefix:
    """A prompt with the part of its response that stands; the writer goes on behind it."""

    example_id: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


class TokenLogits(Protocol):
    """Logits of the response positions of several sequences, one sequence after the other, made on demand.

    Position n is the distribution *of* response token n, i.e. what the model says before it has seen the
    token.
    """

    def __len__(self) -> int:
        """Response positions of all sequences together."""
        ...

    def __getitem__(self, rows: slice) -> Tensor:
        """Logits `[n, V]` of a contiguous slice of the positions."""
        ...


class Writer(Protocol):
    """Something that writes responses: a student, or a fake of one.

    A response ends with an end-of-sequence token, which belongs to it, or at the writer's limit of new
    tokens. The text of a sequence may depend on nothing but its own prompt or prefix and the key of its
    draws.
    """

    def write(self, prompts: Sequence[Prompt], *, seed: int, round: int) -> list[list[int]]:
        """One response per prompt, drawn with pass 0 in the key."""
        ...

    def continue_from(self, prefixes: Sequence[Prefix], *, seed: int, round: int, pass_: int) -> list[list[int]]:
        """Whole responses that begin with the given ones, which do not end the sequence.

        The prefix of a sequence without its last token is a prefix of what was last written for it, so a
        writer that kept its state need not read it again.
        """
        ...

    def release(self) -> None:
        """Let go of whatever `write` and `continue_from` kept for the next `continue_from`."""
        ...


class Scorer(Protocol):
    """Something that gives the distribution of every token of finished responses."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> TokenLogits:
        """Logits of all response positions, in the order of the prompts."""
        ...


class Student(Writer, Scorer, Protocol):
    """A model that both writes and scores."""


@dataclass(frozen=True)
class Correction:
    """One token that the teacher replaced, as things stood in that pass.

    Attributes:
        pass_: from 1.
        position: of the token in the response, from 0.
        student_token, teacher_token: what stood there and what stands there now.
        kl: KL(p || q) at the position, in nats.
        teacher_prob_student_token, teacher_prob_teacher_token: p of the two tokens, in [0, 1].
        student_prob_student_token, student_prob_teacher_token: q of the two tokens.
        length_before, length_after: tokens of the response before the correction and after the continuation.
        teacher_log_likelihood_before: mean over the response tokens before, in nats per token.
        disagreements: searched positions at which the teacher's token was another.
        positions: searched positions.
    """

    pass_: int
    position: int
    student_token: int
    teacher_token: int
    kl: float
    teacher_prob_student_token: float
    teacher_prob_teacher_token: float
    student_prob_student_token: float
    student_prob_teacher_token: float
    length_before: int
    length_after: int
    teacher_log_likelihood_before: float
    disagreements: int
    positions: int


@dataclass(frozen=True)
class RevisedSequence:
    """A student's response after correction, with its history.

    Attributes:
        example_id, prompt_ids: as given.
        rollout_ids: what the student wrote at first (pass 0).
        response_ids: what stands in the end.
        corrections: one per pass that changed something, in order.
        status: `corrected`; `no_disagreement` and `below_threshold` (disagreements, none of them large
            enough): unchanged by pass 1; `not_searched`: no pass was asked for.
        disagreements, positions: of pass 1, 0 when nothing was searched.
    """

    example_id: int
    prompt_ids: tuple[int, ...]
    rollout_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    corrections: tuple[Correction, ...]
    status: Status
    disagreements: int
    positions: int

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RevisedSequence:
        """The sequence that `dataclasses.asdict`, or JSON made of it, describes.

        Raises:
            ValueError: a field is missing, unknown, or of another type.
        """
        known = {field.name for field in fields(cls)}
        if set(data) != known:
            raise ValueError(f"not a revised sequence: wrong or missing fields {sorted(known ^ set(data))}")
        ids = {name: tuple(data[name]) for name in ("prompt_ids", "rollout_ids", "response_ids")}
        corrections = tuple(_numbers(Correction(**correction)) for correction in data["corrections"])
        if data["status"] not in get_args(Status):
            raise ValueError(f"not a status: {data['status']!r}")
        return _numbers(cls(**{**data, **ids, "corrections": corrections}))


def _numbers(record: Any) -> Any:
    """The record, if what it calls int and float are numbers of that kind."""
    kinds = {"int": (int,), "float": (int, float)}
    for field in fields(record):
        value = getattr(record, field.name)
        if field.type in kinds and (isinstance(value, bool) or not isinstance(value, kinds[str(field.type)])):
            raise ValueError(f"{field.name} is {value!r}, not a number of type {field.type}")
    return record
