"""The text of a round does not depend on how many ranks write it, in which order, or in which batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mgsr.config.load import load_config
from mgsr.config.schema import ExperimentConfig
from mgsr.data.splits import read_split
from mgsr.rounds.round import Rounds
from mgsr.rounds.store import read_round, round_folder
from mgsr.training.build import build_job
from mgsr.training.sft import prepare_student, prepare_teacher, shared_start
from tests.reliability.harness import SMALL


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExperimentConfig, Any]:
    """A job in float64: in float32 rounding may move a draw across a boundary."""
    root = tmp_path_factory.mktemp("ranks")
    path = root / "small.yaml"
    path.write_text(SMALL)
    double = ["teacher.dtype=float64", "student.dtype=float64", "trainer.precision=64-true", "scrg.passes=2"]
    config = load_config(path, [f"run_root={root}/runs", *double])
    train, dev = read_split(config.data, "train"), read_split(config.data, "dev")
    teacher = prepare_teacher(config)
    student = prepare_student(config, teacher, train)
    assert teacher is not None
    teacher.model.double(), student.model.double()
    start = shared_start(config, teacher, student)
    return config, build_job(config, train, dev, start, root, torch.device("cpu"))


def written(parts: tuple[ExperimentConfig, Any], folder: Path, world: int, shard_size: int = 0) -> list[Any]:
    config, job = parts
    config.scrg.shard_size = shard_size
    known = {"seed": config.seed, "steps_per_epoch": 3, "references": job.data.rounds.references}
    rounds = Rounds(config, job.data.rounds.writer, folder, **known)
    prompts = sorted(job.data.train_rows, key=lambda row: (len(row.prompt_ids), row.example_id))
    found: list[Any] = []
    # the first rank comes last: it writes the manifest when all shards are there
    for rank in reversed(range(world)):
        if rank:
            shards = [s for s in rounds.shards(rounds.key(0, prompts), prompts, world) if s.rank == rank]
            rounds._write_missing(round_folder(folder, 0), 0, shards)
        else:
            found = rounds.ensure(0, prompts, written_now=True, world=world).entries
    manifest_key = rounds.key(0, prompts)
    read = read_round(round_folder(folder, 0), manifest_key)
    assert read is not None and read.entries == found
    return found


@pytest.mark.parametrize(("world", "shard_size"), [(2, 0), (3, 0), (1, 5), (2, 1)])
def test_rounds_are_the_same_text(parts: Any, tmp_path: Path, world: int, shard_size: int) -> None:
    alone = written(parts, tmp_path / "one", 1)
    together = written(parts, tmp_path / "many", world, shard_size)
    assert len(alone) == 12 and any(entry.revised.corrections for entry in alone)
    texts = [
        [(e.revised.example_id, e.revised.rollout_ids, e.revised.response_ids) for e in entries]
        for entries in (alone, together)
    ]
    assert texts[0] == texts[1]
    assert [e.span_ids for e in alone] == [e.span_ids for e in together]
    positions = [[c.position for e in entries for c in e.revised.corrections] for entries in (alone, together)]
    assert positions[0] == positions[1]
