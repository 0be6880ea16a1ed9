"""Batches mask by position; rounds on disk are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mgsr.data.collate import StepCounts, TrainingSequence, collate
from mgsr.losses import IGNORED
from mgsr.losses.objective import flat_targets
from mgsr.rounds.store import (
    SHARD_NAME,
    RoundEntry,
    finish_round,
    is_finished,
    read_manifest,
    read_round,
    round_folder,
    round_statistics,
    write_after,
    write_shard,
)
from mgsr.runtime.errors import DataError
from mgsr.scrg import Correction, RevisedSequence

PAD_IS_EOS = 2


def sequence(
    prompt: int, response: tuple[int, ...], spans: tuple[int, ...], truth: bool = True
) -> TrainingSequence:
    return TrainingSequence(7, tuple(range(10, 10 + prompt)), response, spans, truth)


def test_eos_is_trained_on_although_it_is_the_padding_id() -> None:
    rows = [sequence(2, (5, PAD_IS_EOS), (0, -1)), sequence(3, (6, 7, 8, PAD_IS_EOS), (0, 0, 1, 1), truth=False)]
    batch = collate(rows, StepCounts.of(rows), PAD_IS_EOS)
    assert batch.labels.tolist() == [
        [IGNORED, IGNORED, 5, PAD_IS_EOS, IGNORED, IGNORED, IGNORED],
        [IGNORED, IGNORED, IGNORED, 6, 7, 8, PAD_IS_EOS],
    ]
    assert batch.input_ids[0].tolist() == [10, 11, 5, 2, 2, 2, 2]
    assert batch.lengths == (4, 7)
    assert batch.counts == StepCounts(ground_truth_tokens=2, response_tokens=6, span_pairs=2)


def test_span_ids_are_unique_within_the_batch() -> None:
    rows = [sequence(1, (5, 6), (0, 0)), sequence(1, (5, 6), (0, 0))]
    batch = collate(rows, StepCounts.of(rows), 0)
    first, second = batch.span_ids[0, 1:].tolist(), batch.span_ids[1, 1:].tolist()
    assert first[0] == first[1] and second[0] == second[1] and first[0] != second[0]
    assert batch.span_ids[:, 0].tolist() == [-1, -1]


def test_labels_are_shifted_once() -> None:
    rows = [sequence(2, (5, 6), (3, 3))]
    labels, spans, truth = flat_targets(collate(rows, StepCounts.of(rows), 0).targets)
    # hidden state 1, the last of the prompt, predicts the first response token
    assert labels.tolist() == [IGNORED, 5, 6] and spans.tolist()[1:] == [3, 3]
    assert truth.tolist() == [True] * 3


def test_moving_a_batch_moves_every_tensor() -> None:
    rows = [TrainingSequence(0, (1,), (2, 3), (-1, -1), False, (-0.5, -0.25))]
    batch = collate(rows, StepCounts.of(rows), 0).to("meta")
    assert all(t.device.type == "meta" for t in vars(batch).values() if isinstance(t, torch.Tensor))
    kept = collate(rows, StepCounts.of(rows), 0)
    assert kept.behaviour_log_probs is not None and kept.behaviour_log_probs[0].tolist() == [0.0, -0.5, -0.25]


def correction(position: int) -> Correction:
    return Correction(1, position, 4, 5, 0.5, 0.1, 0.6, 0.7, 0.05, 3, 4, -1.5, 2, 3)


def entry(example: int, corrected: bool) -> RoundEntry:
    revised = RevisedSequence(
        example_id=example,
        prompt_ids=(1, 2),
        rollout_ids=(3, 4, 9),
        response_ids=(3, 5, 6, 9) if corrected else (3, 4, 9),
        corrections=(correction(1),) if corrected else (),
        status="corrected" if corrected else "no_disagreement",
        disagreements=2 if corrected else 0,
        positions=3,
    )
    return RoundEntry(revised, (-1,) * len(revised.response_ids), "a\u2028b", 'c "d"')


def test_a_round_reads_back_as_it_was_written(tmp_path: Path) -> None:
    folder = round_folder(tmp_path, 0)
    shards = [[entry(0, True), entry(1, False)], [entry(2, True)]]
    names = [SHARD_NAME.format(rank, 0) for rank in range(2)]
    left_behind = SHARD_NAME.format(2, 0)
    for name, part in zip([*names, left_behind], [*shards, shards[0]], strict=True):
        assert not is_finished(folder / name, "s")
        write_shard(folder / name, "s", part, {"tokens_scoring": 5})
        assert is_finished(folder / name, "s") and not is_finished(folder / name, "another key")
    assert read_round(folder, "k") is None, "a round without a manifest is not there"
    finished = finish_round(folder, "k", names)
    assert not list(folder.glob("shard-00002-*")), "of another number of ranks"
    manifest = read_manifest(folder)
    assert manifest is not None and manifest["costs"] == {"tokens_scoring": 10}
    whole = read_round(folder, "k")
    assert whole is not None and whole.entries == [*shards[0], *shards[1]]
    assert whole == finished == read_round(folder) and whole.statistics == manifest["statistics"]
    assert read_round(folder, "another key") is None
    line = json.loads((folder / names[0]).read_text().split("\n")[0])
    assert line["corrections"][0]["position"] == 1 and line["rollout"] == "a\u2028b"


@pytest.mark.parametrize("harm", ["truncate", "remove"])
def test_a_damaged_shard_is_named(tmp_path: Path, harm: str) -> None:
    folder = round_folder(tmp_path, 3)
    shard = folder / SHARD_NAME.format(0, 0)
    write_shard(shard, "s", [entry(0, True)])
    finish_round(folder, "k", [shard.name])
    if harm == "remove":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-5])
    assert not is_finished(shard, "s")
    with pytest.raises(DataError, match="shard-00000"):
        read_round(folder, "k")


def test_a_manifest_without_its_checksum_is_refused(tmp_path: Path) -> None:
    shard = tmp_path / SHARD_NAME.format(0, 0)
    write_shard(shard, "s", [entry(0, True)])
    finish_round(tmp_path, "k", [shard.name])
    (tmp_path / "manifest.json.sha256").unlink()
    with pytest.raises(DataError, match=r"manifest\.json: has no checksum beside it") as refused:
        read_round(tmp_path, "k")
    assert "\n" not in str(refused.value)


def test_statistics_of_a_round() -> None:
    statistics = round_statistics([entry(0, True), entry(1, False)])
    assert statistics["disagreement_rate"] == pytest.approx(2 / 6)
    assert statistics["corrected_fraction"] == 0.5
    assert statistics["mean_length_before"] == 3 and statistics["mean_length_after"] == 3.5
    # bigrams: (3,5) (5,6) (6,9) and (3,4) (4,9)
    assert statistics["distinct_2"] == 1.0
    assert statistics["mean_error_position"] == 1 and statistics["mean_kl_at_error"] == 0.5
    assert round_statistics([]) == {}


def test_likelihoods_after_stand_beside_the_round(tmp_path: Path) -> None:
    folder = round_folder(tmp_path, 0)
    write_after(folder, {3: -0.5, 1: -2.0})
    lines = [json.loads(line) for line in (folder / "after.jsonl").read_text().splitlines()]
    assert lines == [
        {"example_id": 1, "teacher_log_likelihood_after": -2.0},
        {"example_id": 3, "teacher_log_likelihood_after": -0.5},
    ]
    assert read_manifest(folder) is None
