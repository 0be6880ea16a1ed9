"""A teacher's most probable classes for ground-truth text, on disk: later epochs and other arms need no forward.

    <folder>/<hash>-top.safetensors   log_probs [M, K] float32, ids [M, K] int32, log_tail [M] float32
    <folder>/index.json               text hash -> [first row, rows]; k; error of what is kept

A row stands for one response token. What is there is found by the hash of prompt and response ids, so a folder
serves any set of texts and grows with them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mgsr.data.collate import TeacherTop, TextKey, TrainingSequence
from mgsr.runtime.errors import DataError, UserError
from mgsr.runtime.files import write_atomically

INDEX, TENSORS = "index.json", "top.safetensors"
BYTES_PER_CLASS = 8

# sequences -> one TeacherTop each, and the KL of every token from the teacher to what is kept
Score = Callable[[Sequence[TrainingSequence]], Iterator[tuple["TeacherTop", Tensor]]]


@dataclass(frozen=True)
class CacheReport:
    """What a cache holds of the texts that were asked for; `kl_*` in nats per token, over the whole cache."""

    tokens: int
    written: int
    kl_mean: float
    kl_max: float
    bytes_per_token: int


def text_hash(row: TrainingSequence) -> str:
    text = json.dumps([row.prompt_ids, row.response_ids])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def teacher_tops(
    folder: Path, rows: Sequence[TrainingSequence], k: int, score: Score
) -> tuple[dict[TextKey, TeacherTop], CacheReport]:
    """What the teacher says of every text, read from `folder` or scored and added to it.

    Returns:
        Text -> `TeacherTop`, and the report.

    Raises:
        DataError: the folder's two files don't belong together.
    """
    index, tensors = _read(folder)
    places: dict[str, list[int]] = dict(index["texts"])
    hashes = [text_hash(row) for row in rows]
    missing = {name: row for name, row in zip(hashes, rows, strict=True) if name not in places}
    if missing:
        parts = {name: [tensors[name]] for name in TeacherTop._fields} if tensors else {}
        first = int(index["tokens"])
        total, worst = float(index["kl_sum"]), float(index["kl_max"])
        for name, (top, kl) in zip(missing, score(list(missing.values())), strict=True):
            places[name] = [first, len(kl)]
            first += len(kl)
            total, worst = total + float(kl.double().sum()), max(worst, float(kl.max()))
            for field, value in zip(TeacherTop._fields, top, strict=True):
                parts.setdefault(field, []).append(value)
        tensors = {field: torch.cat(values).contiguous() for field, values in parts.items()}
        index = {"k": k, "tokens": first, "kl_sum": total, "kl_max": worst, "texts": places}
        _write(folder, index, tensors)
    found = {
        row.key: TeacherTop(*(tensors[field][start : start + n] for field in TeacherTop._fields))
        for row, (start, n) in zip(rows, (places[name] for name in hashes), strict=True)
    }
    tokens = sum(len(row.response_ids) for row in rows)
    written = sum(len(row.response_ids) for row in missing.values())
    mean = float(index["kl_sum"]) / max(1, int(index["tokens"]))
    return found, CacheReport(tokens, written, mean, float(index["kl_max"]), BYTES_PER_CLASS * k + 4)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    empty: dict[str, Any] = {"tokens": 0, "kl_sum": 0.0, "kl_max": 0.0, "texts": {}}
    if not (folder / INDEX).exists():
        return empty, {}
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    try:
        tensors = load_file(folder / str(index["file"]))
        whole = len(tensors["log_tail"]) == index["tokens"]
    except (OSError, KeyError, ValueError, SafetensorError):
        whole = False
    if not whole:
        raise DataError(f"{folder}: the teacher cache is damaged; delete the folder to have it written again")
    return index, tensors


def _write(folder: Path, index: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """The tensors go to a file of a new name, then the index names it: a torn write leaves the old pair whole."""
    folder.mkdir(parents=True, exist_ok=True)
    # named by what it holds: of two writers, the last index names its own tensors
    name = f"{hashlib.sha256(json.dumps(index['texts']).encode()).hexdigest()[:16]}-{TENSORS}"
    try:
        save_file(tensors, folder / name)
    except (OSError, SafetensorError) as error:
        (folder / name).unlink(missing_ok=True)
        raise UserError(
            f"{folder / name}: the teacher cache cannot be written: {error}; free some space"
        ) from None
    write_atomically(folder / INDEX, json.dumps({**index, "file": name}))
    for old in folder.glob(f"*-{TENSORS}"):
        if old.name != name:
            old.unlink(missing_ok=True)
