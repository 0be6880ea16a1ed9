"""What is measured of the rounds of a finished run: how diverse their text is, and what corrections gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mgsr.evaluation.metrics import diversity, rouge_l
from mgsr.rounds.store import RoundEntry, read_after, read_round, round_folders
from mgsr.runtime.errors import DataError

DIVERSITY = ("distinct_1", "distinct_2", "distinct_3", "self_bleu")


def rounds_of(run_folder: Path) -> list[tuple[Path, list[RoundEntry]]]:
    """Every finished round of a run, oldest first."""
    folders = sorted(round_folders(run_folder).items())
    return [(path, whole.entries) for _, path in folders if (whole := read_round(path)) is not None]


def text_diversity(
    rounds: Sequence[tuple[Path, Sequence[RoundEntry]]], ground_truth: Sequence[Sequence[int]]
) -> dict[str, dict[str, float]]:
    """Diversity of the token ids trained on: ground truth, and written text as the mean of its rounds."""
    figures = {"ground_truth": diversity(ground_truth)}
    each = [diversity([entry.revised.response_ids for entry in entries]) for _, entries in rounds if entries]
    if each:
        names = [name for name in DIVERSITY if all(name in one for one in each)]
        figures["written"] = {name: sum(one[name] for one in each) / len(each) for name in names}
    return figures


def correction_quality(
    rounds: Sequence[tuple[Path, Sequence[RoundEntry]]],
    references: Mapping[int, Sequence[str]],
    tokenizer: str = "published",
) -> dict[str, float] | None:
    """Are the corrections any good? None without a corrected sequence.

    Shares of corrected sequences that gained by it, and mean gains, all passes together: in the teacher's
    log-likelihood per token (nats; where the training step has told the one after) and in ROUGE-L against the
    references of the same prompt (`tokenizer`: of `rouge_l`).
    """
    gains: list[float] = []
    likelihood: list[float] = []
    for folder, entries in rounds:
        after = read_after(folder)
        for entry in entries:
            corrections = entry.revised.corrections
            if not corrections:
                continue
            if entry.revised.example_id not in references:
                raise DataError(
                    f"{folder}: example {entry.revised.example_id} is no training row; restore the round, or "
                    f"delete {folder.parents[1]} to run it anew"
                )
            known = references[entry.revised.example_id]
            gains.append(rouge_l(entry.response, known, tokenizer) - rouge_l(entry.rollout, known, tokenizer))
            if entry.revised.example_id in after:
                before = corrections[0].teacher_log_likelihood_before
                likelihood.append(after[entry.revised.example_id] - before)
    if not gains:
        return None
    figures = {"corrected": float(len(gains)), **_gains("rouge_l", gains)}
    return {**figures, **_gains("teacher_log_likelihood", likelihood)} if likelihood else figures


def _gains(name: str, values: Sequence[float]) -> dict[str, float]:
    raised, lowered = sum(v > 0 for v in values), sum(v < 0 for v in values)
    return {
        f"{name}_raised": raised / len(values),
        f"{name}_lowered": lowered / len(values),
        f"{name}_gain": sum(values) / len(values),
    }
