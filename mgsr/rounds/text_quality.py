"""What is measured of the rounds of a finished run: how diverse their text is, and what corrections gain.

Most of it is measured while the rounds are written, by the rank that writes, and only put together here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mgsr.evaluation.metrics import diversity, rouge_l
from mgsr.rounds.store import (
    RoundEntry,
    read_after,
    read_corrected,
    read_manifest,
    read_round,
    round_folders,
)
from mgsr.runtime.errors import DataError
from mgsr.runtime.ranks import agreed, is_first

EXAMPLES, LONGEST = 2, 300
"""Corrections that are shown to people, and the characters of a text."""
DIVERSITY = ("distinct_1", "distinct_2", "distinct_3", "self_bleu")


def rounds_of(run_folder: Path) -> Iterator[tuple[Path, list[RoundEntry]]]:
    """Every finished round of a run, oldest first, one at a time."""
    for path in _folders(run_folder):
        whole = read_round(path)
        if whole is not None:
            yield path, whole.entries


def _folders(run_folder: Path) -> list[Path]:
    return [path for _, path in sorted(round_folders(run_folder).items())]


def _manifests(run_folder: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Of every finished round of a run, oldest first."""
    for path in _folders(run_folder):
        manifest = read_manifest(path)
        if manifest is not None:
            yield path, manifest


def text_diversity(run_folder: Path, ground_truth: Sequence[Sequence[int]]) -> dict[str, dict[str, float]]:
    """Diversity of the token ids trained on: ground truth, and written text as the mean of its rounds.

    Measured by the first rank; every rank has to call this.
    """
    return agreed(_text_diversity(run_folder, ground_truth) if is_first() else {})


def _text_diversity(run_folder: Path, ground_truth: Sequence[Sequence[int]]) -> dict[str, dict[str, float]]:
    figures = {"ground_truth": diversity(ground_truth)}
    each = [manifest["statistics"] for _, manifest in _manifests(run_folder) if manifest["statistics"]]
    if each:
        names = [name for name in DIVERSITY if all(name in one for one in each)]
        figures["written"] = {name: sum(one[name] for one in each) / len(each) for name in names}
    return figures


def correction_quality(run_folder: Path) -> dict[str, float] | None:
    """Are the corrections any good? None without a corrected sequence.

    Shares of corrected sequences that gained by it, and mean gains, all passes together: in the teacher's
    log-likelihood per token (nats; where the training step has told the one after) and in ROUGE-L against the
    references of the same prompt. Put together by the first rank; every rank has to call this.
    """
    return agreed(_correction_quality(run_folder) if is_first() else None)


def _correction_quality(run_folder: Path) -> dict[str, float] | None:
    gains: list[float] = []
    likelihood: list[float] = []
    for folder, manifest in _manifests(run_folder):
        after = read_after(folder)
        for shard in manifest["shards"]:
            for one in read_corrected(folder, shard):
                gains.append(one["rouge_l_gain"])
                if one["example_id"] in after:
                    likelihood.append(after[one["example_id"]] - one["teacher_log_likelihood_before"])
    if not gains:
        return None
    figures = {"corrected": float(len(gains)), **_gains("rouge_l", gains)}
    return {**figures, **_gains("teacher_log_likelihood", likelihood)} if likelihood else figures


def correction_examples(run_folder: Path, prompts: Mapping[int, str]) -> list[dict[str, str]]:
    """The first corrected texts of the first round, before and after, as the smallest example ids have them.

    Read by the first rank; every rank has to call this.
    """
    return agreed(_correction_examples(run_folder, prompts) if is_first() else [])


def _correction_examples(run_folder: Path, prompts: Mapping[int, str]) -> list[dict[str, str]]:
    for _, entries in rounds_of(run_folder):
        corrected = [entry for entry in entries if entry.revised.corrections and entry.rollout != entry.response]
        corrected.sort(key=lambda entry: entry.revised.example_id)
        if corrected:
            texts = ((prompts[e.revised.example_id], e.rollout, e.response) for e in corrected[:EXAMPLES])
            return [dict(zip(("prompt", "before", "after"), map(_short, each), strict=True)) for each in texts]
    return []


def _short(text: str) -> str:
    """On one line.

    >>> _short("one\\n two")
    'one two'
    """
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def measure_corrected(
    folder: Path,
    entries: Sequence[RoundEntry],
    references: Mapping[int, Sequence[str]],
    tokenizer: str = "published",
) -> list[dict[str, Any]]:
    """Of every corrected sequence, what `mgsr.rounds.store.CORRECTED` describes.

    Raises:
        DataError: an example is no training row.
    """
    found = []
    for entry in entries:
        example, corrections = entry.revised.example_id, entry.revised.corrections
        if not corrections:
            continue
        if example not in references:
            raise DataError(
                f"{folder}: example {example} is no training row; `scrg.text` answers the prompts it is given"
            )
        after, before = (rouge_l(text, references[example], tokenizer) for text in (entry.response, entry.rollout))
        likelihood = corrections[0].teacher_log_likelihood_before
        gained = {"rouge_l_gain": after - before, "teacher_log_likelihood_before": likelihood}
        found.append({"example_id": example, **gained})
    return found


def _gains(name: str, values: Sequence[float]) -> dict[str, float]:
    raised, lowered = sum(v > 0 for v in values), sum(v < 0 for v in values)
    return {
        f"{name}_raised": raised / len(values),
        f"{name}_lowered": lowered / len(values),
        # exact, so that the order of the shards does not matter
        f"{name}_gain": math.fsum(values) / len(values),
    }
