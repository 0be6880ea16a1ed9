"""Rounds of model-written text on disk: JSON-lines shards, and a manifest that is written last.

    scrg/round=<k>/shard-<rank>-<n>.jsonl   one sequence per line, every correction record with it
    scrg/round=<k>/shard-<rank>-<n>.json    key, checksum and costs of the shard: with it the shard is finished
    scrg/round=<k>/manifest.json            key, shards with their checksums, statistics of the round
    scrg/round=<k>/after.jsonl              teacher log-likelihood per token after the correction

A round is whole when its manifest is there and its key is the one asked for. Of a round that is not, finished
shards stay and the others are written.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mgsr.data.collate import TrainingSequence
from mgsr.evaluation.metrics import diversity
from mgsr.runtime.errors import DataError
from mgsr.runtime.files import write_atomically
from mgsr.scrg import RevisedSequence

MANIFEST = "manifest.json"
AFTER = "after.jsonl"
FOLDER_NAME = "scrg/round={}"
SHARD_NAME = "shard-{:05d}-{:05d}.jsonl"
"""Of a rank, and of its shards from 0."""


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
        record = asdict(self.revised)
        record.update(span_ids=list(self.span_ids), rollout=self.rollout, response=self.response)
        if self.behaviour_log_probs:
            record["behaviour_log_probs"] = list(self.behaviour_log_probs)
        if self.replaced:
            record["replaced"] = list(self.replaced)
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
        )
        revised = entry.revised
        _require_ids((revised.example_id, *revised.prompt_ids, *revised.rollout_ids, *revised.response_ids))
        _require_ids(entry.replaced)
        _require_ids(i + 1 for i in entry.span_ids)
        if len(entry.span_ids) != len(revised.response_ids):
            raise ValueError("as many span ids as response ids are needed")
        return entry

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


@dataclass(frozen=True)
class Round:
    """A finished round.

    Attributes:
        entries: shortest prompts first, an order that does not depend on the number of ranks.
        statistics: of `round_statistics`, as the manifest has them.
    """

    entries: list[RoundEntry] = field(default_factory=list)
    statistics: dict[str, float] = field(default_factory=dict)


def _require_ids(ids: Iterable[Any]) -> None:
    if not all(type(i) is int and 0 <= i < 1 << 31 for i in ids):
        raise ValueError("ids are whole numbers from 0")


def round_folder(run_folder: str | Path, round_: int) -> Path:
    return Path(run_folder) / FOLDER_NAME.format(round_)


def write_shard(
    path: Path, key: str, entries: Sequence[RoundEntry], costs: Mapping[str, float] | None = None
) -> None:
    """Write a part of a round, then the record that makes it a finished one.

    Args:
        key: changes with whatever changes the shard's text.
        costs: what the writing took, see `mgsr.runtime.meter`.
    """
    lines = (json.dumps(entry.to_dict(), ensure_ascii=False) + "\n" for entry in entries)
    content = "".join(lines)
    write_atomically(path, content, kind="shard")
    record = {
        "key": key,
        "sequences": len(entries),
        "sha256": _sha256(content.encode()),
        "costs": dict(costs or {}),
    }
    write_atomically(path.with_suffix(".json"), json.dumps(record) + "\n", kind="shard.record")


def is_finished(path: Path, key: str) -> bool:
    """Whether the shard is there, for this key, and as its record describes it."""
    record = _record(path.with_suffix(".json"))
    if record is None or record.get("key") != key:
        return False
    try:
        return _sha256(path.read_bytes()) == record.get("sha256")
    except OSError:
        return False


def finish_round(folder: Path, key: str, names: Sequence[str]) -> Round:
    """Write the manifest, which makes the round whole. Called by one rank, when every shard is finished.

    Args:
        names: the round's shards; what another number of ranks has left behind is removed.
    """
    shards: list[dict[str, Any]] = []
    entries: list[RoundEntry] = []
    costs: Counter[str] = Counter()
    for name in names:
        content = (folder / name).read_bytes()
        record = _record((folder / name).with_suffix(".json")) or {}
        shards.append({"file": name, "sequences": content.count(b"\n"), "sha256": _sha256(content)})
        costs.update(record.get("costs", {}))
        entries += _parse(content, folder / name)
    for old in folder.glob("shard-*"):
        if old.with_suffix(".jsonl").name not in names:
            old.unlink()
    (folder / AFTER).unlink(missing_ok=True)
    # statistics come from the shards: what is logged is what is trained on
    statistics = round_statistics(entries)
    manifest = {"key": key, "shards": shards, "statistics": statistics, "costs": costs}
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n", kind="manifest")
    return Round(_by_length(entries), statistics)


def read_round(folder: Path, key: str | None = None) -> Round | None:
    """The round, or None where it is not whole or has another key than the one asked for.

    Raises:
        DataError: the manifest names a shard that is missing, truncated or changed since.
    """
    manifest = read_manifest(folder)
    if manifest is None or (key is not None and manifest.get("key") != key):
        return None
    entries = []
    for name, wanted in _named_shards(folder, manifest):
        path = folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        if _sha256(content) != wanted:
            raise DataError(f"{path}: not the shard its manifest describes (checksum differs)")
        entries += _parse(content, path)
    return Round(_by_length(entries), _numbers(manifest.get("statistics")))


def _by_length(entries: Sequence[RoundEntry]) -> list[RoundEntry]:
    return sorted(entries, key=lambda entry: (len(entry.revised.prompt_ids), entry.revised.example_id))


def _named_shards(folder: Path, manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    try:
        named = [(str(shard["file"]), str(shard["sha256"])) for shard in manifest["shards"]]
    except (KeyError, TypeError):
        raise DataError(f"{folder / MANIFEST}: names no shards; delete {folder}") from None
    for name, _ in named:
        if Path(name).name != name:
            raise DataError(f"{folder / MANIFEST}: {name!r} is no file of this folder: refused; delete {folder}")
    return named


def _numbers(statistics: Any) -> dict[str, float]:
    known = statistics.items() if isinstance(statistics, dict) else ()
    return {name: value for name, value in known if isinstance(value, (int, float))}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _parse(content: bytes, path: Path) -> list[RoundEntry]:
    entries = []
    # split at line feeds alone: text may hold other line separators, which JSON leaves as they are
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line:
            continue
        try:
            entries.append(RoundEntry.from_dict(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise DataError(
                f"{path}:{number}: not a sequence of a round ({type(error).__name__}); delete {path.parent}"
            ) from None
    return entries


def read_manifest(folder: Path) -> dict[str, Any] | None:
    return _record(folder / MANIFEST)


def write_after(folder: Path, likelihoods: Mapping[int, float]) -> None:
    """Teacher log-likelihood per token of each sequence as it was trained on, by example id."""
    rows = (
        json.dumps({"example_id": i, "teacher_log_likelihood_after": value}) + "\n"
        for i, value in sorted(likelihoods.items())
    )
    write_atomically(folder / AFTER, "".join(rows))


def read_after(folder: Path) -> dict[int, float]:
    """What `write_after` has written, as far as it is there.

    Raises:
        DataError: it holds something else.
    """
    path = folder / AFTER
    if not path.exists():
        return {}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {int(row["example_id"]): float(row["teacher_log_likelihood_after"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the likelihoods of a round ({type(error).__name__}); delete it") from None


def round_statistics(entries: Sequence[RoundEntry]) -> dict[str, float]:
    """What a round did, as numbers.

    disagreement_rate: share of the searched positions of pass 1 where student and teacher chose differently;
    corrected_fraction: share of sequences with at least one correction; lengths in tokens; distinct_n and
    self_bleu of the response tokens, see `mgsr.evaluation.metrics`.
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
