"""What is measured of a finished run beside its test sets: its text, its corrections, its exposure bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mgsr.config.schema import ExperimentConfig
from mgsr.data.prompts import Example, pad_id, require_eos
from mgsr.evaluation.exposure_bias import exposure
from mgsr.evaluation.metrics import diversity, rouge_l
from mgsr.rounds.store import RoundEntry, read_after, read_manifest, read_round
from mgsr.runtime.devices import placed, working_device
from mgsr.runtime.progress import say

DIVERSITY = ("distinct_1", "distinct_2", "distinct_3", "self_bleu")


def rounds_of(run_folder: Path) -> list[tuple[Path, list[RoundEntry]]]:
    """Every finished round of a run, oldest first."""
    found = []
    for path in (run_folder / "scrg").glob("round=*"):
        manifest = read_manifest(path)
        entries = read_round(path, str(manifest["key"])) if manifest is not None else None
        if entries is not None:
            found.append((path, entries))
    return sorted(found, key=lambda item: int(item[0].name.removeprefix("round=")))


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
    rounds: Sequence[tuple[Path, Sequence[RoundEntry]]], references: Mapping[int, Sequence[str]]
) -> dict[str, float] | None:
    """Are the corrections any good? None without a corrected sequence.

    Shares of corrected sequences that gained by it, and mean gains, all passes together: in the teacher's
    log-likelihood per token (nats; where the training step has told the one after) and in ROUGE-L against the
    references of the same prompt.
    """
    gains: list[float] = []
    likelihood: list[float] = []
    for folder, entries in rounds:
        after = read_after(folder)
        for entry in entries:
            corrections = entry.revised.corrections
            if not corrections:
                continue
            known = references[entry.revised.example_id]
            gains.append(rouge_l(entry.response, known) - rouge_l(entry.rollout, known))
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


def exposure_bias(
    config: ExperimentConfig,
    student: Any,
    teacher: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    vocab_size: int,
) -> dict[str, Any]:
    """`exposure` on a test set, with the first sampling seed."""
    say(f"{config.arm}: exposure bias on {len(examples)} prompts")
    device = working_device(config.trainer.accelerator)
    with placed(device, student), placed(device, teacher):
        return exposure(
            student,
            teacher,
            [(example.id, example.prompt_ids) for example in examples],
            seed=config.evaluation.seeds[0],
            eos_token_id=require_eos(tokenizer),
            pad_token_id=pad_id(tokenizer),
            max_new_tokens=config.evaluation.max_new_tokens,
            batch_size=config.evaluation.batch_size,
            vocab_size=vocab_size,
        )
