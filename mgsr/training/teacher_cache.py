"""What the teacher says of a text, kept so that it need not read it again.

Two ways. Distributions: the most probable classes of ground truth, on disk, for all epochs and arms.

    <folder>/<hash>-top.safetensors   log_probs [M, K] float32, ids [M, K] int32, log_tail [M] float32
    <folder>/index.json               text hash -> [first row, rows]; k; error of what is kept

A row stands for one response token. What is there is found by the hash of prompt and response ids, so a folder
serves any set of texts and grows with them.

Hidden states: of all texts of one epoch, read in a phase of its own after which the teacher leaves the device.
They are exact, in a file that is mapped into memory: width x bytes per number for every response token.

Shapes: M response tokens of all texts, T of one text, K classes, H the teacher's width.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mgsr import models
from mgsr.config.load import fingerprint
from mgsr.data.collate import TeacherTop, TextKey, TrainingSequence
from mgsr.generation import HiddenLogits, LanguageModel
from mgsr.losses import cache_error, top_of_logits
from mgsr.models.output_layer import output_head
from mgsr.runtime.errors import DataError
from mgsr.runtime.faults import reach
from mgsr.runtime.files import refused, system_error, write_atomically
from mgsr.runtime.json_files import Each, ListOf, read_json
from mgsr.runtime.progress import progress, say
from mgsr.runtime.wording import plural
from mgsr.training.placement import Placement

INDEX, TENSORS = "index.json", "top.safetensors"
SHAPE = {"k": int, "tokens": int, "kl_sum": Real, "kl_max": Real, "file": str, "texts": Each(ListOf(int))}
BYTES_PER_CLASS = 8
CHUNK = 32

# texts -> for chunks of them, the teacher's logits at their response tokens, end to end
Read = Callable[[Sequence[TrainingSequence]], Iterator[tuple[Sequence[TrainingSequence], HiddenLogits]]]
ScoreEpoch = Callable[[Sequence[TrainingSequence], Path], "TeacherStates"]


@dataclass(frozen=True)
class CacheReport:
    """What a cache holds of the texts that were asked for; `kl_*` in nats per token, over the whole cache."""

    tokens: int
    written: int
    kl_mean: float
    kl_max: float
    bytes_per_token: int


def cached_teacher(
    root: Path, teacher: Any, rows: Sequence[TrainingSequence], k: int, *, vocab_size: int, **reader: int
) -> tuple[dict[TextKey, TeacherTop], CacheReport]:
    """The distributions of every text, by the content of the teacher's weights, the shared vocabulary and k.

    Args:
        root: folder of the caches.
        k: classes per token; all of them where the vocabulary is smaller.
        reader: `eos_token_id` and `pad_token_id`.

    Raises:
        DataError: the folder's two files don't belong together.
    """
    k = min(k, vocab_size)
    folder = root / f"teacher-top-{fingerprint(models.content_fingerprint(teacher), vocab_size, k)}"
    read = _reader(teacher, "teacher cache", CHUNK, vocab_size=vocab_size, **reader)
    tops, report = teacher_tops(folder, rows, k, read)
    say(
        f"teacher cache: {plural(report.tokens, 'token')}, {report.written} of them new, top {k} at "
        f"{report.bytes_per_token} bytes per token; KL from the teacher to what is kept {report.kl_mean:.2e} "
        f"nats per token, {report.kl_max:.2e} at most; {folder}"
    )
    return tops, report


def teacher_tops(
    folder: Path, rows: Sequence[TrainingSequence], k: int, read: Read
) -> tuple[dict[TextKey, TeacherTop], CacheReport]:
    """What the teacher says of every text, read from `folder` or scored and added to it.

    Returns:
        Text -> `TeacherTop`, and the report.

    Raises:
        DataError: the folder's two files don't belong together.
    """
    index, tensors = _read_folder(folder)
    places: dict[str, list[int]] = dict(index["texts"])
    hashes = [text_hash(row) for row in rows]
    missing = {name: row for name, row in zip(hashes, rows, strict=True) if name not in places}
    if missing:
        parts = {name: [tensors[name]] for name in TeacherTop._fields} if tensors else {}
        first = int(index["tokens"])
        total, worst = float(index["kl_sum"]), float(index["kl_max"])
        for name, (top, kl) in zip(missing, _tops(list(missing.values()), k, read), strict=True):
            places[name] = [first, len(kl)]
            first += len(kl)
            total, worst = total + float(kl.double().sum()), max(worst, float(kl.max()))
            for field, value in zip(TeacherTop._fields, top, strict=True):
                parts.setdefault(field, []).append(value)
        tensors = {field: torch.cat(values).contiguous() for field, values in parts.items()}
        index = {"k": k, "tokens": first, "kl_sum": total, "kl_max": worst, "texts": places}
        _write_folder(folder, index, tensors)
    found = {
        row.key: TeacherTop(*(tensors[field][start : start + n] for field in TeacherTop._fields))
        for row, (start, n) in zip(rows, (places[name] for name in hashes), strict=True)
    }
    tokens = sum(len(row.response_ids) for row in rows)
    written = sum(len(row.response_ids) for row in missing.values())
    mean = float(index["kl_sum"]) / max(1, int(index["tokens"]))
    return found, CacheReport(tokens, written, mean, float(index["kl_max"]), BYTES_PER_CLASS * k + 4)


def text_hash(row: TrainingSequence) -> str:
    text = json.dumps([row.prompt_ids, row.response_ids])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _tops(rows: Sequence[TrainingSequence], k: int, read: Read) -> Iterator[tuple[TeacherTop, Tensor]]:
    """Of every text its distributions, and the KL of every token from the teacher to what is kept."""
    for chunk, scores in read(rows):
        place = 0
        for row in chunk:
            logits = scores[slice(place, place + len(row.response_ids))].float()
            place += len(row.response_ids)
            values, ids, log_tail = top_of_logits(logits, k)
            top = TeacherTop(values.float().cpu(), ids.int().cpu(), log_tail.float().cpu())
            yield top, cache_error(logits, k).cpu()


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    empty: dict[str, Any] = {"tokens": 0, "kl_sum": 0.0, "kl_max": 0.0, "texts": {}}
    if not (folder / INDEX).exists():
        return empty, {}
    remedy = f"delete {folder} to have the teacher cache written again"
    index = read_json(folder / INDEX, SHAPE, remedy)
    try:
        tensors = load_file(folder / Path(index["file"]).name)
        whole = all(len(tensors[name]) == index["tokens"] for name in TeacherTop._fields)
    except (OSError, KeyError, ValueError, TypeError, SafetensorError):
        whole = False
    if not whole or any(
        len(place) != 2 or min(place) < 0 or sum(place) > index["tokens"] for place in index["texts"].values()
    ):
        raise DataError(f"{folder / INDEX}: does not belong to the tensors beside it; {remedy}")
    return index, tensors


def _write_folder(folder: Path, index: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """The tensors go to a file of a new name, then the index names it: a torn write leaves the old pair whole."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(folder, error) from error
    # named by what it holds: of two writers, the last index names its own tensors
    name = f"{hashlib.sha256(json.dumps(index['texts']).encode()).hexdigest()[:16]}-{TENSORS}"
    try:
        save_file(tensors, folder / name)
    except (OSError, SafetensorError) as error:
        (folder / name).unlink(missing_ok=True)
        raise refused(folder / name, system_error(error)) from None
    write_atomically(folder / INDEX, json.dumps({**index, "file": name}))
    for old in folder.glob(f"*-{TENSORS}"):
        if old.name != name:
            old.unlink(missing_ok=True)


class TeacherStates(Mapping[TextKey, Tensor]):
    """Text -> the teacher's states `[T, H]` that predict its response tokens.

    Args:
        path: of the file. Its name goes at once, its content with the last reader, so that nothing is left over.
        rows: the texts it will hold; each once, however often it is trained on.
    """

    def __init__(self, path: Path, rows: Sequence[TrainingSequence], width: int, dtype: torch.dtype) -> None:
        self._places: dict[TextKey, tuple[int, int]] = {}
        tokens = 0
        for row in rows:
            if row.key not in self._places:
                self._places[row.key] = (tokens, len(row.response_ids))
                tokens += len(row.response_ids)
        if not tokens:
            self._states = torch.empty(0, width, dtype=dtype)
            return
        path.unlink(missing_ok=True)
        _allocate(path, tokens * width * dtype.itemsize)
        numbers = torch.from_file(str(path), shared=True, size=tokens * width, dtype=dtype)
        path.unlink()
        self._states = numbers.view(tokens, width)

    def __setitem__(self, key: TextKey, states: Tensor) -> None:
        start, count = self._places[key]
        self._states[start : start + count] = states

    def __getitem__(self, key: TextKey) -> Tensor:
        start, count = self._places[key]
        return self._states[start : start + count]

    def __iter__(self) -> Iterator[TextKey]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _allocate(path: Path, size: int) -> None:
    """Have the disk set a file's blocks aside: of a mapped file without them, a full disk kills whoever writes.

    Raises:
        UserError: the disk has not got that much space.
    """
    try:
        with path.open("wb") as file:
            reach("states.allocate", path)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise refused(path.parent, error) from error


def build_score(placement: Placement, device: torch.device, batch_size: int, **reader: int) -> ScoreEpoch:
    """Scores texts with the teacher, which is on `device` for as long as that takes and the student is not.

    Args:
        batch_size: of the teacher's forwards, `train.micro_batch_size`.
        reader: `eos_token_id` and `pad_token_id`.
    """
    read = _reader(placement.teacher, "teacher", batch_size, memory_key="train.micro_batch_size", **reader)

    def score(rows: Sequence[TrainingSequence], path: Path) -> TeacherStates:
        different = sorted({row.key: row for row in rows}.values(), key=len)
        with placement.scoring(device):
            # only here it has the type that it computes in
            weight = output_head(placement.teacher).weight
            states = TeacherStates(path, rows, weight.shape[1], weight.dtype)
            for chunk, scores in read(different):
                found = scores.hidden_NH.split([len(row.response_ids) for row in chunk])
                for row, states_TH in zip(chunk, found, strict=True):
                    states[row.key] = states_TH.cpu()
        return states

    return score


def _reader(teacher: Any, name: str, batch_size: int, **options: Any) -> Read:
    """Reads texts with the teacher, `batch_size` at a time, under a progress bar of this name."""

    def read(rows: Sequence[TrainingSequence]) -> Iterator[tuple[Sequence[TrainingSequence], HiddenLogits]]:
        model = LanguageModel(teacher, max_new_tokens=1, batch_size=batch_size, **options)
        with progress(name, len(rows), unit="sequences") as advance:
            for start in range(0, len(rows), batch_size):
                chunk = rows[start : start + batch_size]
                prompts = [(row.example_id, row.prompt_ids) for row in chunk]
                yield chunk, model.score(prompts, [row.response_ids for row in chunk])
                advance(len(chunk))

    return read
