"""The replay buffer: the newest sequences of all rounds, first in first out, none favoured for its length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mgsr.config.schema import ExperimentConfig
from mgsr.data.collate import TrainingSequence
from mgsr.training.datamodule import DistillationDataModule
from tests.training.epochs import data_module, made_up_rows, planned_steps

Make = Callable[..., ExperimentConfig]
ROWS = 60
WORDS = (
    "scrg.passes=0",
    "mixture.student_fraction=1",
    "mixture.replay='on'",
    "train.batch_size=6",
    "train.epochs=5",
)


def data_of(make_config: Make, folder: Path, *words: str) -> DistillationDataModule:
    return data_module(make_config(*WORDS, *words), made_up_rows(ROWS), folder)


def buffers(data: DistillationDataModule, epochs: int) -> list[list[TrainingSequence]]:
    """What there is to draw from in each epoch."""
    found = []
    for epoch in range(epochs):
        planned_steps(data, epoch)
        found.append(data.mixture._replay_buffer(epoch))
    return found


def rounds_held(data: DistillationDataModule, buffer: list[TrainingSequence]) -> list[int]:
    """How many sequences of each round, newest first, the buffer holds."""
    assert data.rounds is not None
    texts = [
        {(e.revised.example_id, tuple(e.revised.response_ids)) for e in data.rounds.finished(k).entries}
        for k in range(data.mixture.round or 0, -1, -1)
    ]
    return [sum(row.key in text for row in buffer) for text in texts]


@pytest.mark.parametrize(("capacity", "held"), [(150, [60, 60, 30]), (60, [60, 0, 0]), (25, [25, 0, 0])])
def test_the_newest_rounds_stay(capacity: int, held: list[int], make_config: Make, tmp_path: Path) -> None:
    data = data_of(make_config, tmp_path, f"mixture.replay_capacity={capacity}")
    buffer = buffers(data, 3)[-1]
    assert len(buffer) == capacity and rounds_held(data, buffer) == held


def test_no_length_is_favoured(make_config: Make, tmp_path: Path) -> None:
    """Of a round that fits in part those that stay are a fair sample, and another one for every round."""
    data = data_of(make_config, tmp_path, "mixture.replay_capacity=30")
    kept = buffers(data, 5)
    lengths = np.array([len(row.prompt_ids) for row in data.train_rows])
    means = [np.mean([len(row.prompt_ids) for row in buffer]) for buffer in kept]
    # thirty of sixty: the longest would lie 2.5 to 3.5 tokens above the mean, a sample within 1.5
    assert np.abs(np.array(means) - lengths.mean()).max() < 1.5
    ids = [frozenset(row.example_id for row in buffer) for buffer in kept]
    assert len(set(ids)) == len(ids)
    stayed = Counter(example for some in ids for example in some)
    assert len(stayed) > 50 and max(stayed.values()) <= 5


@pytest.mark.parametrize("shard", [1, 7, 60])
def test_the_order_hangs_on_nothing_but_seed_round_and_example(
    shard: int, make_config: Make, tmp_path: Path
) -> None:
    """Not on how the ranks cut a round into files: they may come in any order."""
    words = ("mixture.replay_capacity=100", "arm=same")
    one = buffers(data_of(make_config, tmp_path / "one", *words), 3)
    other = buffers(data_of(make_config, tmp_path / "other", *words, f"scrg.shard_size={shard}"), 3)
    assert one == other
    seeded = buffers(data_of(make_config, tmp_path / "seeded", *words, "seed=1"), 3)
    assert [row.example_id for row in seeded[0]] != [row.example_id for row in one[0]]


def test_what_is_trained_on_comes_from_all_that_is_held(make_config: Make, tmp_path: Path) -> None:
    data = data_of(make_config, tmp_path, "mixture.replay_capacity=90")
    read: set[tuple[int, tuple[int, ...]]] = set()
    held: set[tuple[int, tuple[int, ...]]] = set()
    for epoch in range(5):
        read |= {row.key for rows in planned_steps(data, epoch) for row in rows}
        held |= {row.key for row in data.mixture._replay_buffer(epoch)}
    assert read <= held and len(read) > 180
