"""What a run measures of its text, at the size of a data set: synthetic rounds, no model.

14,000 sequences of a round, all of them corrected, 20 to 256 tokens (about 110); as many rows of ground truth.
Tokens are as rare as words of a text are (Zipf), and every corrected text keeps half of what it was.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.measure import peak_added
from experiments.bench.medians import memory, seconds, spread
from mgsr.rounds.entry import RoundEntry
from mgsr.rounds.store import SHARD_NAME, finish_round, round_folder, write_after, write_shard
from mgsr.rounds.text_quality import correction_quality, measure_corrected, text_diversity
from mgsr.scrg import Correction, RevisedSequence

SEQUENCES = 14_000
SHARD = 64
TOKENS = 32_000
SUFFIXES = ("", "s", "ing", "ed", "ation", "ly", "ness", "er")
NAMES = {
    "corrections": "while a round is written: ROUGE-L of both texts of every correction, all ranks together",
    "finish": "when it is written: its shards read, its statistics, its manifest, on the first rank",
    "end": "when the run ends: ground truth, and the figures of one round put together",
}


def _word(token: int) -> str:
    """A word of letters that the stemmer has to look at; each token has its own."""
    letters, rest = "", token // len(SUFFIXES)
    while rest or not letters:
        rest, place = divmod(rest, 21)
        letters += "bcdfghjklmnpqrstvwxyz"[place] + "aeiou"[place % 5]
    return letters + SUFFIXES[token % len(SUFFIXES)]


def _texts(draw: np.random.Generator, count: int) -> list[tuple[int, ...]]:
    lengths = draw.lognormal(4.6, 0.5, count).clip(20, 256).astype(int)
    return [tuple((draw.zipf(1.2, length) % TOKENS).tolist()) for length in lengths]


def _said(ids: Sequence[int]) -> str:
    return " ".join(map(_word, ids))


def entries(count: int, seed: int = 0) -> tuple[list[RoundEntry], dict[int, tuple[str, ...]], list[Any]]:
    """A round's sequences, the references of their prompts, and ground truth."""
    draw = np.random.default_rng(seed)
    written, renewed, truth = (_texts(draw, count) for _ in range(3))
    found = []
    for example, (before, other) in enumerate(zip(written, renewed, strict=True)):
        place = len(before) // 2
        after = (*before[:place], *other[place:]) if len(other) > place else (*before[:place], 1)
        lengths = len(before), len(after)
        correction = Correction(
            1, place, before[place], after[place], 0.5, 0.1, 0.6, 0.7, 0.05, *lengths, -2.0, 3, 9
        )
        prompt = tuple(range(example % 90 + 10))
        revised = RevisedSequence(example, prompt, before, after, (correction,), "corrected", 3, len(before))
        found.append(RoundEntry(revised, (-1,) * len(after), _said(before), _said(after)))
    return found, {example: (_said(ids),) for example, ids in enumerate(truth)}, truth


def case(name: str, sequences: int = SEQUENCES) -> dict[str, Any]:
    """Seconds and added memory of one part, in a process that has done no other."""
    texts, references, truth = entries(sequences)
    with tempfile.TemporaryDirectory() as scratch:
        folder, names = round_folder(Path(scratch), 0), []
        for number, start in enumerate(range(0, sequences, SHARD)):
            part = texts[start : start + SHARD]
            names.append(SHARD_NAME.format(0, number))
            told = {"rouge_l_gain": 0.5, "teacher_log_likelihood_before": -2.0}
            known = [{"example_id": entry.revised.example_id, **told} for entry in part]
            write_shard(folder / names[-1], "key", part, {}, known)
        if name != "finish":
            finish_round(folder, "key", names)
            write_after(folder, dict.fromkeys(range(sequences), -1.5))

        def end() -> None:
            text_diversity(Path(scratch), truth)
            correction_quality(Path(scratch))

        work: dict[str, Callable[[], Any]] = {
            "corrections": lambda: measure_corrected(folder, texts, references),
            "finish": lambda: finish_round(folder, "key", names),
            "end": end,
        }
        took: list[float] = []

        def timed() -> None:
            begun = time.perf_counter()
            work[name]()
            took.append(time.perf_counter() - begun)

        return {"added_bytes": peak_added(timed), "seconds": took}


def told(figures: Mapping[str, Any]) -> tuple[list[str], list[str], list[list[str]]]:
    """The section of the report: what stands above its table, the table's header, its rows."""
    total = sum(map(seconds, figures.values()))
    lines = [
        "### What a run measures of its text",
        "",
        f"{SEQUENCES:,} sequences in one round, every one corrected once, about 110 tokens each, and as many rows",
        "of ground truth; one core, no model.",
        f"Such a run takes {total:.1f} s in all.",
        "",
    ]
    rows = [
        [NAMES[name], f"{seconds(runs):.1f}", spread(runs), f"{memory(runs):.0f}"]
        for name, runs in figures.items()
    ]
    return lines, ["", "s", "range", "added MiB"], rows
