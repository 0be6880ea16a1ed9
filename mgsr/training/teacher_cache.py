"""The teacher's cached distributions of a run's ground truth, made where they are missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mgsr import models
from mgsr.config.load import fingerprint
from mgsr.data.collate import TeacherTop, TextKey, TrainingSequence
from mgsr.generation import LanguageModel
from mgsr.losses import cache_error, top_of_logits
from mgsr.runtime.progress import progress, say
from mgsr.training.teacher_top import CacheReport, teacher_tops

CHUNK = 32


def cached_teacher(
    root: Path,
    teacher: Any,
    rows: Sequence[TrainingSequence],
    k: int,
    *,
    vocab_size: int,
    eos_token_id: int,
    pad_token_id: int,
) -> tuple[dict[TextKey, TeacherTop], CacheReport]:
    """Distributions of every text, by the content of the teacher's weights, the shared vocabulary and k.

    Args:
        root: folder of the caches.
        k: classes per token; all of them where the vocabulary is smaller.
    """
    k = min(k, vocab_size)
    folder = root / f"teacher-top-{fingerprint(models.content_fingerprint(teacher), vocab_size, k)}"
    score = partial(
        _score,
        teacher=teacher,
        k=k,
        vocab_size=vocab_size,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )
    tops, report = teacher_tops(folder, rows, k, score)
    say(
        f"teacher cache: {report.tokens} tokens, {report.written} of them new, top {k} at "
        f"{report.bytes_per_token} bytes per token; KL from the teacher to what is kept {report.kl_mean:.2e} "
        f"nats per token, {report.kl_max:.2e} at most; {folder}"
    )
    return tops, report


def response_states(
    teacher: Any,
    rows: Sequence[TrainingSequence],
    *,
    eos_token_id: int,
    pad_token_id: int,
    batch_size: int,
) -> Iterator[Tensor]:
    """The teacher's last hidden states `[T, H]` that predict the response tokens of every text, in order."""
    reader = LanguageModel(
        teacher,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        max_new_tokens=1,
        batch_size=batch_size,
        memory_key="train.micro_batch_size",
    )
    with progress("teacher", len(rows), unit="sequences") as advance:
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            scores = reader.score([(r.example_id, r.prompt_ids) for r in chunk], [r.response_ids for r in chunk])
            yield from scores.hidden_NH.split([len(row.response_ids) for row in chunk])
            advance(len(chunk))


def _score(
    rows: Sequence[TrainingSequence],
    *,
    teacher: Any,
    k: int,
    vocab_size: int,
    eos_token_id: int,
    pad_token_id: int,
) -> Iterator[tuple[TeacherTop, Tensor]]:
    reader = LanguageModel(
        teacher,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        max_new_tokens=1,
        batch_size=CHUNK,
        vocab_size=vocab_size,
    )
    with progress("teacher cache", len(rows), unit="sequences") as advance:
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            scores = reader.score([(r.example_id, r.prompt_ids) for r in chunk], [r.response_ids for r in chunk])
            place = 0
            for row in chunk:
                logits = scores[slice(place, place + len(row.response_ids))].float()
                place += len(row.response_ids)
                values, ids, log_tail = top_of_logits(logits, k)
                yield (
                    TeacherTop(values.float().cpu(), ids.int().cpu(), log_tail.float().cpu()),
                    cache_error(logits, k).cpu(),
                )
            advance(len(chunk))
