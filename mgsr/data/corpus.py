"""Rounds of model-written text on disk: JSON-lines shards, and a manifest that is written last.

    scrg/round=<k>/shard-<rank>.jsonl   one sequence per line, every correction record with it
    scrg/round=<k>/manifest.json        key, shards with their checksums, statistics of the round
    scrg/round=<k>/after.jsonl          teacher log-likelihood per token after the correction

A round is whole when its manifest is there and its key is the one asked for; anything else is written again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mgsr.costs import added
from mgsr.data.collate import TrainingSequence
from mgsr.errors import DataError
from mgsr.metrics import diversity
from mgsr.scrg import RevisedSequence

MANIFEST = "manifest.json"
AFTER = "after.jsonl"


@dataclass(frozen=True)
class RoundEntry:
    """One sequence of a round: the revision record, its spans, and its text for people.

    Attributes:
        behaviour_log_probs: of teacher-mixed text, log-probability of each token under the mixture.
        replaced: of interleaved text, positions at which the teacher's draw stands.
    """

    revised: RevisedSequence
    span_ids: tuple[int, ...]
    rollout: str = ""
    response: str = ""
    behaviour_log_probs: tuple[float, ...] = ()
    replaced: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        record = dict(self.revised.to_dict())
        record.update(span_ids=list(self.span_ids), rollout=self.rollout, response=self.response)
        if self.behaviour_log_probs:
            record["behaviour_log_probs"] = list(self.behaviour_log_probs)
        if self.replaced:
            record["replaced"] = list(self.replaced)
        return record

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> RoundEntry:
        return RoundEntry(
            RevisedSequence.from_dict({field.name: record[field.name] for field in fields(RevisedSequence)}),
            tuple(int(i) for i in record["span_ids"]),
            str(record.get("rollout", "")),
            str(record.get("response", "")),
            tuple(float(x) for x in record.get("behaviour_log_probs", ())),
            tuple(int(i) for i in record.get("replaced", ())),
        )

    def training_sequence(self, *, cross_entropy: bool = False) -> TrainingSequence:
        """What the student trains on; `cross_entropy`: as on ground truth, for text a teacher has written."""
        revised = self.revised
        return TrainingSequence(
            example_id=revised.example_id,
            prompt_ids=tuple(revised.prompt_ids),
            response_ids=tuple(revised.response_ids),
            span_ids=self.span_ids,
            is_ground_truth=cross_entropy,
            behaviour_log_probs=self.behaviour_log_probs,
        )


def round_folder(run_folder: str | Path, round_: int) -> Path:
    return Path(run_folder) / "scrg" / f"round={round_}"


def write_shard(
    folder: Path, rank: int, entries: Sequence[RoundEntry], costs: Mapping[str, float] | None = None
) -> None:
    """Write one rank's part of a round: to a temporary name first, so a torn file is never taken for a shard.

    `costs`: what the writing took, see `mgsr.costs`.
    """
    write_atomically(folder / f"costs-{rank:05d}.json", json.dumps(dict(costs or {})) + "\n")
    lines = (json.dumps(entry.to_dict(), ensure_ascii=False) + "\n" for entry in entries)
    write_atomically(folder / f"shard-{rank:05d}.jsonl", "".join(lines))


def finish_round(folder: Path, key: str, world_size: int) -> None:
    """Write the manifest, which makes the round whole. Called by one rank, when every shard is written."""
    shards: list[dict[str, Any]] = []
    entries: list[RoundEntry] = []
    for rank in range(world_size):
        path = folder / f"shard-{rank:05d}.jsonl"
        content = path.read_bytes()
        shards.append(
            {
                "file": path.name,
                "sequences": content.count(b"\n"),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        )
        entries += _parse(content)
    (folder / AFTER).unlink(missing_ok=True)
    # statistics come from the shards: what is logged is what is trained on
    costs = added(*(json.loads((folder / f"costs-{r:05d}.json").read_text()) for r in range(world_size)))
    manifest = {"key": key, "shards": shards, "statistics": round_statistics(entries), "costs": costs}
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def read_round(folder: Path, key: str) -> list[RoundEntry] | None:
    """The round's sequences, or None where it must be written (again).

    Raises:
        DataError: the manifest names a shard that is missing, truncated or changed since.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("key") != key:
        return None
    entries = []
    for shard in manifest["shards"]:
        path = folder / str(shard["file"])
        advice = f"delete {folder} to have the round written again"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); {advice}") from None
        if hashlib.sha256(content).hexdigest() != shard["sha256"]:
            raise DataError(f"{path}: not the shard its manifest describes (checksum differs); {advice}")
        entries += _parse(content)
    return entries


def _parse(content: bytes) -> list[RoundEntry]:
    # split at line feeds alone: text may hold other line separators, which JSON leaves as they are
    return [RoundEntry.from_dict(json.loads(line)) for line in content.decode().split("\n") if line]


def read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return manifest if isinstance(manifest, dict) else None


def write_after(folder: Path, likelihoods: Mapping[int, float]) -> None:
    """Teacher log-likelihood per token of each sequence as it was trained on, by example id."""
    rows = (
        json.dumps({"example_id": i, "teacher_log_likelihood_after": value}) + "\n"
        for i, value in sorted(likelihoods.items())
    )
    write_atomically(folder / AFTER, "".join(rows))


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def round_statistics(entries: Sequence[RoundEntry]) -> dict[str, float]:
    """What a round did, as numbers.

    disagreement_rate: share of the searched positions of pass 1 where student and teacher chose differently;
    corrected_fraction: share of sequences with at least one correction; lengths in tokens; distinct_n and
    self_bleu of the response tokens, see `mgsr.metrics`.
    """
    revised = [entry.revised for entry in entries]
    if not revised:
        return {}
    positions = sum(r.positions for r in revised)
    texts = [r.response_ids for r in revised]
    corrections = [c for r in revised for c in r.corrections]
    statistics = {
        "sequences": float(len(revised)),
        "disagreement_rate": sum(r.disagreements for r in revised) / max(1, positions),
        "corrected_fraction": sum(bool(e.revised.corrections or e.replaced) for e in entries) / len(entries),
        "mean_length_before": sum(len(r.rollout_ids) for r in revised) / len(revised),
        "mean_length_after": sum(len(r.response_ids) for r in revised) / len(revised),
        **diversity(texts),
    }
    if corrections:
        statistics["mean_error_position"] = sum(c.position for c in corrections) / len(corrections)
        statistics["mean_kl_at_error"] = sum(c.kl for c in corrections) / len(corrections)
    return statistics
