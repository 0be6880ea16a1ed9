"""Rounds of model-written text on disk: JSON-lines shards, and a manifest that is written last.

    scrg/round=<k>/shard-<rank>-<n>.jsonl   one sequence per line, every correction record with it
    scrg/round=<k>/shard-<rank>-<n>.json    key, checksum and costs of the shard, and what its corrections gained:
                                            with it the shard is finished
    scrg/round=<k>/manifest.json            key, shards with their checksums, statistics of the round
    scrg/round=<k>/after.jsonl              teacher log-likelihood per token after the correction

A round is whole when its manifest is there and its key is the one asked for. Of a round that is not, finished
shards stay and the others are written.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from mgsr.evaluation.metrics import diversity
from mgsr.rounds.entry import RoundEntry
from mgsr.runtime.errors import DataError
from mgsr.runtime.files import check, refused, write_atomically, write_checked
from mgsr.runtime.json_files import Each, ListOf, read_json
from mgsr.runtime.meter import added
from mgsr.runtime.progress import say

MANIFEST = "manifest.json"
AFTER = "after.jsonl"
FOLDER_NAME = "scrg/round={}"
SHARD_NAME = "shard-{:05d}-{:05d}.jsonl"
"""Of a rank, and of its shards from 0."""
CORRECTED = {"example_id": int, "rouge_l_gain": float, "teacher_log_likelihood_before": Real}
"""Of a corrected sequence, what its revision gained."""
RECORD = {"key": str, "sha256": str, "costs": Each(float), "corrected": ListOf(CORRECTED)}
SHAPE = {
    "key": str,
    "shards": ListOf({"file": str, "sha256": str}, 1),
    "statistics": Each(Real),
    "costs": Each(float),
}


@dataclass(frozen=True)
class Round:
    """A finished round.

    Attributes:
        entries: shortest prompts first, an order that does not depend on the number of ranks.
        statistics: of `round_statistics`, as the manifest has them.
    """

    entries: list[RoundEntry] = field(default_factory=list)
    statistics: dict[str, float] = field(default_factory=dict)


def round_folder(run_folder: str | Path, round_: int) -> Path:
    return Path(run_folder) / FOLDER_NAME.format(round_)


def round_folders(run_folder: Path) -> dict[int, Path]:
    """The rounds of a run by number, whole or not; copies beside them are none."""
    found = {path.name.removeprefix("round="): path for path in sorted((run_folder / "scrg").glob("round=*"))}
    return {int(name): path for name, path in found.items() if name.isascii() and name.isdecimal()}


def write_shard(
    path: Path,
    key: str,
    entries: Sequence[RoundEntry],
    costs: Mapping[str, float] | None = None,
    corrected: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a part of a round, then the record that makes it a finished one.

    Args:
        key: changes with whatever changes the shard's text.
        costs: what the writing took, see `mgsr.runtime.meter`.
        corrected: `CORRECTED` of every corrected sequence.
    """
    lines = (json.dumps(entry.to_dict(), ensure_ascii=False) + "\n" for entry in entries)
    content = "".join(lines)
    write_atomically(path, content, kind="shard")
    record = {
        "key": key,
        "sequences": len(entries),
        "sha256": _sha256(content.encode()),
        "costs": dict(costs or {}),
        "corrected": list(corrected),
    }
    write_atomically(path.with_suffix(".json"), json.dumps(record) + "\n", kind="shard.record")


def is_finished(path: Path, key: str) -> bool:
    """Whether the shard is there, for this key, and as its record describes it."""
    try:
        record = read_json(path.with_suffix(".json"), RECORD, "the shard is written again", missing={})
    except DataError as error:
        say(str(error))
        return False
    return bool(record) and record["key"] == key and path.exists() and _sha256(_content(path)) == record["sha256"]


def finish_round(folder: Path, key: str, names: Sequence[str]) -> Round:
    """Write the manifest, which makes the round whole. Called by one rank, when every shard is finished.

    Args:
        names: the round's shards; what another number of ranks has left behind is removed.
    """
    shards: list[dict[str, Any]] = []
    entries: list[RoundEntry] = []
    costs: Counter[str] = Counter()
    for name in names:
        content = _content(folder / name)
        record = read_json((folder / name).with_suffix(".json"), RECORD, f"delete {folder}")
        shards.append({"file": name, "sequences": content.count(b"\n"), "sha256": _sha256(content)})
        costs.update(record["costs"])
        entries += _parse(content, folder / name)
    for old in folder.glob("shard-*"):
        if old.with_suffix(".jsonl").name not in names:
            old.unlink()
    (folder / AFTER).unlink(missing_ok=True)
    # statistics come from the shards: what is logged is what is trained on
    statistics = round_statistics(entries)
    manifest = {"key": key, "shards": shards, "statistics": statistics, "costs": costs}
    text = json.dumps(manifest, indent=2) + "\n"
    # its figures are believed: a checksum beside it tells when they are edited
    write_checked(folder / MANIFEST, lambda file: file.write(text.encode()), kind="manifest")
    return Round(_by_length(entries), statistics)


def read_round(folder: Path, key: str | None = None) -> Round | None:
    """The round, or None where it is not whole or has another key than the one asked for.

    Raises:
        DataError: the manifest is broken, or names a shard that is missing, truncated or changed since.
        UserError: the system refuses to read it.
    """
    manifest = read_manifest(folder)
    if manifest is None or (key is not None and manifest["key"] != key):
        return None
    entries = []
    for shard in manifest["shards"]:
        entries += _read_shard(folder, shard)
    return Round(_by_length(entries), manifest["statistics"])


def _read_shard(folder: Path, shard: Mapping[str, Any]) -> list[RoundEntry]:
    path = folder / shard["file"]
    content = _content(path)
    if _sha256(content) != shard["sha256"]:
        raise DataError(
            f"{path}: not the shard its manifest describes (checksum differs); "
            f"restore it, or delete {path.parent} if no step has read it"
        )
    return _parse(content, path)


def read_corrected(folder: Path, shard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`CORRECTED` of a shard's corrected sequences.

    Raises:
        DataError: the shard's record is missing or broken, or that of another text.
    """
    path = (folder / shard["file"]).with_suffix(".json")
    remedy = f"restore it, or delete {folder.parents[1]} to run it anew"
    record = read_json(path, RECORD, remedy)
    if record["sha256"] != shard["sha256"]:
        raise DataError(f"{path}: not the record of the shard its manifest describes; {remedy}")
    return record["corrected"]


def _by_length(entries: Sequence[RoundEntry]) -> list[RoundEntry]:
    return sorted(entries, key=lambda entry: (len(entry.revised.prompt_ids), entry.revised.example_id))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path}: is not there; restore it, or delete {path.parent} if no step has read it"
        ) from None
    except OSError as error:
        raise refused(path, error, "read") from error


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
    """What the manifest says; None where there is none.

    Raises:
        DataError: it is broken, was changed since, has no checksum, or names something else than shards of this
            folder.
    """
    path = folder / MANIFEST
    manifest = read_json(path, SHAPE, f"restore it, or delete {path.parent} if no step has read it", missing={})
    if not manifest:
        return None
    check(path)
    for shard in manifest["shards"]:
        if Path(shard["file"]).name != shard["file"]:
            raise DataError(f"{path}: {shard['file']!r} is no file of this folder: refused; delete {folder}")
    return manifest


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
    content = _content(path)
    try:
        rows = [json.loads(line) for line in content.splitlines()]
        return {int(row["example_id"]): float(row["teacher_log_likelihood_after"]) for row in rows}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{path}: not the likelihoods of a round ({type(error).__name__}); delete it") from None


def round_statistics(entries: Sequence[RoundEntry]) -> dict[str, float]:
    """What a round did, as numbers.

    disagreement_rate: share of the searched positions of pass 1 where the models chose differently, if any;
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
        "corrected_fraction": sum(bool(e.revised.corrections or e.replaced) for e in entries) / len(entries),
        "mean_length_before": sum(len(r.rollout_ids) for r in revised) / len(revised),
        "mean_length_after": sum(len(r.response_ids) for r in revised) / len(revised),
        **diversity(texts),
    }
    if positions:
        statistics["disagreement_rate"] = sum(r.disagreements for r in revised) / positions
    if corrections:
        statistics["mean_error_position"] = sum(c.position for c in corrections) / len(corrections)
        statistics["mean_kl_at_error"] = sum(c.kl for c in corrections) / len(corrections)
    return statistics


def round_costs(run_folder: Path, last: int | None = None) -> dict[str, float]:
    """What the finished rounds of a run took, up to `last`: a run taken up again may have later ones on disk."""
    wanted = (path for number, path in round_folders(run_folder).items() if last is None or number <= last)
    return added(*(manifest["costs"] for path in wanted if (manifest := read_manifest(path)) is not None))
