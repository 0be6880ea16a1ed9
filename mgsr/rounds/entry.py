"""One sequence of a round: what a line of a shard holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mgsr.data.collate import TrainingSequence
from mgsr.scrg import RevisedSequence


@dataclass(frozen=True)
class RoundEntry:
    """One sequence of a round: the revision record, its spans, and its text for people.

    Attributes:
        behaviour_log_probs: of teacher-mixed text, log-probability of each token under the mixture.
        replaced: of interleaved and switched text, positions at which the teacher's draw stands.
        by_teacher: the teacher wrote all of it, where the round has text of both.
    """

    revised: RevisedSequence
    span_ids: tuple[int, ...]
    rollout: str = ""
    response: str = ""
    behaviour_log_probs: tuple[float, ...] = ()
    replaced: tuple[int, ...] = ()
    by_teacher: bool = False

    def to_dict(self) -> dict[str, Any]:
        record = asdict(self.revised)
        record.update(span_ids=list(self.span_ids), rollout=self.rollout, response=self.response)
        if self.behaviour_log_probs:
            record["behaviour_log_probs"] = list(self.behaviour_log_probs)
        if self.replaced:
            record["replaced"] = list(self.replaced)
        if self.by_teacher:
            record["by_teacher"] = True
        return record

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> RoundEntry:
        """What `to_dict` describes.

        Raises:
            ValueError, KeyError, TypeError: it describes something else.
        """
        entry = RoundEntry(
            RevisedSequence.from_dict({field.name: record[field.name] for field in fields(RevisedSequence)}),
            tuple(record["span_ids"]),
            str(record.get("rollout", "")),
            str(record.get("response", "")),
            tuple(float(x) for x in record.get("behaviour_log_probs", ())),
            tuple(record.get("replaced", ())),
            record.get("by_teacher", False) is True,
        )
        revised = entry.revised
        _require_ids((revised.example_id, *revised.prompt_ids, *revised.rollout_ids, *revised.response_ids))
        _require_ids(entry.replaced)
        _require_ids(entry.span_ids, lowest=-1)
        if len(entry.span_ids) != len(revised.response_ids):
            raise ValueError("as many span ids as response ids are needed")
        return entry

    def training_sequence(self, *, cross_entropy: bool = False) -> TrainingSequence:
        """What the student trains on; `cross_entropy`: as on ground truth, for text a teacher has written.

        Beside the student's own text the teacher's always counts so.
        """
        revised = self.revised
        return TrainingSequence(
            example_id=revised.example_id,
            prompt_ids=tuple(revised.prompt_ids),
            response_ids=tuple(revised.response_ids),
            span_ids=self.span_ids,
            is_ground_truth=cross_entropy or self.by_teacher,
            behaviour_log_probs=self.behaviour_log_probs,
        )


def _require_ids(ids: Collection[Any], lowest: int = 0) -> None:
    # by sets and extremes: a test of each id takes as long as all else that a round's reading takes
    if ids and not (set(map(type, ids)) == {int} and lowest <= min(ids) and max(ids) < 1 << 31):
        raise ValueError(f"ids are whole numbers from {lowest}")
