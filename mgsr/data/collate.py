"""From token sequences to one padded micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgsr.losses import IGNORED, CachedRows, Targets, TermCounts, span_pairs
from mgsr.losses.reduction import AnswerRows

TextKey = tuple[int, tuple[int, ...]]


class TeacherTop(NamedTuple):
    """The K most probable classes of every response token, `[T, K]`, and the log of the others' mass, `[T]`."""

    log_probs: Tensor
    ids: Tensor
    log_tail: Tensor


@dataclass(frozen=True)
class TrainingSequence:
    """A prompt with a response to train on.

    Attributes:
        span_ids: one id per response token, -1 where it belongs to no phrase.
        is_ground_truth: False for text written by a model, which carries no cross-entropy.
        behaviour_log_probs: log-probability of every response token under the distribution it was drawn
            from; only text that an importance weight needs has them.
    """

    example_id: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    span_ids: tuple[int, ...]
    is_ground_truth: bool
    behaviour_log_probs: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def key(self) -> TextKey:
        """Tells this text from others, also of the same prompt."""
        return self.example_id, self.response_ids

    @property
    def span_pairs(self) -> int:
        """Neighbouring response tokens of one span."""
        return int(span_pairs(torch.tensor(self.span_ids, dtype=torch.long)).sum())


class StepCounts(TermCounts):
    """The three denominators of an optimiser step: all its micro-batches, all ranks."""

    @staticmethod
    def of(rows: Sequence[TrainingSequence]) -> StepCounts:
        return StepCounts(
            sum(len(row.response_ids) for row in rows if row.is_ground_truth),
            sum(len(row.response_ids) for row in rows),
            sum(row.span_pairs for row in rows),
        )


class UncachedRows(NamedTuple):
    """The sequences whose teacher distributions are not cached, `[b]`, the length of the longest, and which these
    are, as plain numbers."""

    rows: Tensor
    width: int
    numbers: tuple[int, ...]


class Batch:
    """A right-padded micro-batch, `[B, L]`, with the denominators of its whole optimiser step.

    No dataclass: Lightning would go into one and cast its numbers to the precision of the weights,
    log-probabilities included. There is no mask: no token looks ahead, so what stands behind a text changes
    nothing of it, and without one attention takes its quickest kernel.

    `labels` is the token itself on response positions (EOS included) and -100 on prompt and padding: masked by
    position, since the padding id may be EOS. `answers` has the same for those rows alone. `span_ids` are unique
    within the batch, -1 for none. `teacher_top` has the teacher's distributions of sequences that need no forward,
    `uncached` the others; a row of it is a state's place among the B (L - 1) states that predict a token.
    `teacher_states` `[B, L, H]` are the teacher's last hidden states, where it has read the text in a phase of its
    own. `stands_in`: for no rows at all, see `collate`. Plain numbers: `lengths`, `answered` (response tokens) and
    `example_ids` of the sequences, and whether a model has `written` them.
    """

    def __init__(
        self,
        input_ids: Tensor,
        labels: Tensor,
        span_ids: Tensor,
        is_ground_truth: Tensor,
        answers: AnswerRows,
        behaviour_log_probs: Tensor | None,
        counts: StepCounts,
        lengths: tuple[int, ...],
        answered: tuple[int, ...],
        example_ids: tuple[int, ...],
        written: tuple[bool, ...],
        teacher_top: CachedRows | None = None,
        uncached: UncachedRows | None = None,
        teacher_states: Tensor | None = None,
        stands_in: bool = False,
    ) -> None:
        self.input_ids, self.labels, self.span_ids = input_ids, labels, span_ids
        self.is_ground_truth, self.answers = is_ground_truth, answers
        self.behaviour_log_probs, self.counts = behaviour_log_probs, counts
        self.lengths, self.answered, self.example_ids, self.written = lengths, answered, example_ids, written
        self.teacher_top, self.uncached, self.teacher_states = teacher_top, uncached, teacher_states
        self.stands_in = stands_in

    @property
    def tokens(self) -> int:
        """Read, padding aside."""
        return 0 if self.stands_in else sum(self.lengths)

    @property
    def slots(self) -> int:
        """Read, padding included."""
        return 0 if self.stands_in else self.input_ids.numel()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """In memory that a GPU reads by itself, while the processor goes on."""
        return self._map(Tensor.pin_memory)

    @property
    def targets(self) -> Targets:
        """What the objective reads of it."""
        return Targets(
            self.labels,
            self.span_ids,
            self.is_ground_truth,
            self.counts,
            self.teacher_top,
            self.behaviour_log_probs,
            self.answers,
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        def mapped(value: Any) -> Any:
            if isinstance(value, (CachedRows, AnswerRows, UncachedRows)):
                return type(value)(*map(mapped, value))
            return function(value) if isinstance(value, Tensor) else value

        return Batch(**{name: mapped(value) for name, value in vars(self).items()})


def collate(
    rows: Sequence[TrainingSequence],
    counts: StepCounts,
    pad_token_id: int,
    tops: Mapping[TextKey, TeacherTop] | None = None,
    states: Mapping[TextKey, Tensor] | None = None,
) -> Batch:
    """Pad sequences on the right to the longest of them.

    No rows give a batch that stands in for them, two padding tokens without a label: a rank that has no rows in a
    forward makes it like the others, and adds nothing to any term.

    Args:
        tops: text -> the teacher's distributions of it, where they are cached.
        states: text -> the teacher's last hidden states `[T, H]` of its response, where they are kept.

    Raises:
        ValueError: a row has not one span id, or log-probability, for each token of its response.
    """
    if not rows:
        rows = [TrainingSequence(-1, (pad_token_id, pad_token_id), (), (), True)]
        return Batch(**{**vars(collate(rows, counts, pad_token_id)), "stands_in": True})
    # laid end to end, one row's surplus would fill another's gap
    for row in rows:
        _require_lengths(row)
    # numpy, and all rows at once: a dozen small tensor operations per row take a millisecond per step
    starts_B1 = np.array([[len(row.prompt_ids)] for row in rows])
    ends_B1 = np.array([[len(row)] for row in rows])
    length = int(ends_B1.max())
    read = np.arange(length) < ends_B1
    answered = read & (np.arange(length) >= starts_B1)
    input_ids = _filled(read, pad_token_id, (ids for row in rows for ids in (row.prompt_ids, row.response_ids)))
    labels = np.where(answered, input_ids, IGNORED)
    span_ids = _filled(answered, -1, (row.span_ids for row in rows))
    # ids are unique within a sequence; the offset makes them so within the batch
    span_ids += np.where(span_ids >= 0, np.arange(len(rows))[:, None] * length, 0)
    behaviour = torch.zeros(read.shape) if any(row.behaviour_log_probs for row in rows) else None
    for b, row in enumerate(rows):
        if behaviour is not None and row.behaviour_log_probs:
            behaviour[b, len(row.prompt_ids) : len(row)] = torch.tensor(row.behaviour_log_probs)
    is_ground_truth = np.array([row.is_ground_truth for row in rows])
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(labels),
        torch.from_numpy(span_ids),
        torch.from_numpy(is_ground_truth),
        _answers(labels, span_ids, is_ground_truth),
        behaviour,
        counts,
        tuple(map(len, rows)),
        tuple(len(row.response_ids) for row in rows),
        tuple(row.example_id for row in rows),
        tuple(not row.is_ground_truth for row in rows),
        _teacher_top(rows, length, tops or {}),
        _uncached(rows, tops or {}),
        _teacher_states(rows, length, states or {}),
    )


def _answers(
    labels: NDArray[np.int64], span_ids: NDArray[np.int64], is_ground_truth: NDArray[np.bool_]
) -> AnswerRows:
    place_M = np.flatnonzero(labels[:, 1:] != IGNORED)
    labels_M, spans_M = labels[:, 1:].ravel()[place_M], span_ids[:, 1:].ravel()[place_M]
    truth_M = is_ground_truth.repeat(labels.shape[1] - 1)[place_M]
    is_pair_M = np.zeros(len(place_M), dtype=bool)
    is_pair_M[:-1] = (spans_M[:-1] == spans_M[1:]) & (spans_M[1:] >= 0) & (np.diff(place_M) == 1)
    ends = (int(labels_M.min()), int(labels_M.max())) if len(labels_M) else (0, 0)
    arrays = place_M, labels_M, truth_M, place_M[truth_M], place_M[~truth_M], is_pair_M
    place, own, truth, of_truth, written, is_pair = map(torch.from_numpy, arrays)
    return AnswerRows(place, own, truth, of_truth, written, is_pair, tuple(is_pair_M.tolist()), ends)


def _uncached(rows: Sequence[TrainingSequence], tops: Mapping[TextKey, TeacherTop]) -> UncachedRows | None:
    unread = [b for b, row in enumerate(rows) if row.key not in tops]
    if len(unread) == len(rows):
        return None
    width = max((len(rows[b]) for b in unread), default=0)
    return UncachedRows(torch.tensor(unread, dtype=torch.long), width, tuple(unread))


def _require_lengths(row: TrainingSequence) -> None:
    tokens, spans, behaviour = len(row.response_ids), len(row.span_ids), len(row.behaviour_log_probs)
    if spans != tokens or (behaviour and behaviour != tokens):
        raise ValueError(
            f"the row of example {row.example_id} has {tokens} response tokens, {spans} span ids and "
            f"{behaviour} behaviour log-probabilities"
        )


def _filled(where: NDArray[np.bool_], other: int, parts: Iterable[Sequence[int]]) -> NDArray[np.int64]:
    """The numbers of `parts`, one after the other, at the places of `where`; `other` elsewhere."""
    array = np.full(where.shape, other, dtype=np.int64)
    array[where] = np.fromiter(chain.from_iterable(parts), dtype=np.int64)
    return array


def _teacher_states(
    rows: Sequence[TrainingSequence], length: int, states: Mapping[TextKey, Tensor]
) -> Tensor | None:
    """`[B, L, H]`, 0 wherever nothing is predicted."""
    known = [(b, row, states[row.key]) for b, row in enumerate(rows) if row.key in states]
    if not known:
        return None
    padded = known[0][2].new_zeros(len(rows), length, known[0][2].shape[1])
    for b, row, found in known:
        # the state before a token predicts it
        padded[b, len(row.prompt_ids) - 1 : len(row) - 1] = found
    return padded


def _teacher_top(
    rows: Sequence[TrainingSequence], length: int, tops: Mapping[TextKey, TeacherTop]
) -> CachedRows | None:
    known = [(b, row) for b, row in enumerate(rows) if row.key in tops]
    if not known:
        return None
    # the state before a token predicts it
    places = [
        b * (length - 1) + torch.arange(len(row.prompt_ids) - 1, len(row) - 1, dtype=torch.long)
        for b, row in known
    ]
    parts = zip(*(tops[row.key] for _, row in known), strict=True)
    return CachedRows(torch.cat(places), *(torch.cat(part) for part in parts))
