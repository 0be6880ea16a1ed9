"""A DataModule without models: made-up rows, made-up text, a trainer that stands where it is told to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

from mgsr.config.schema import ExperimentConfig
from mgsr.data.collate import TrainingSequence
from mgsr.rounds.store import RoundEntry
from mgsr.scrg import Prompt, RevisedSequence
from mgsr.training.datamodule import DistillationDataModule
from mgsr.training.optim import training_length

END = 2


def made_up_rows(count: int) -> list[TrainingSequence]:
    """Ground truth of many lengths, so that sorting by length moves rows about."""
    draw = random.Random(0)
    rows = []
    for i in range(count):
        prompt = tuple(draw.randrange(3, 50) for _ in range(draw.randint(1, 12)))
        response = (*(draw.randrange(3, 50) for _ in range(draw.randint(1, 20))), END)
        rows.append(TrainingSequence(1000 + i, prompt, response, (-1,) * len(response), True))
    return rows


class FakeWriter:
    """Stands for the models: a `TextWriter` of text that `entries` makes up."""

    def phase(self) -> AbstractContextManager[None]:
        return nullcontext()

    def write(self, prompts: Sequence[Prompt], round_: int) -> tuple[list[RoundEntry], dict[str, float]]:
        return self.entries(prompts, round_), {}

    def entries(self, prompts: Sequence[Prompt], round_: int) -> list[RoundEntry]:
        raise NotImplementedError


class MadeUpText(FakeWriter):
    """Text of other lengths in every arm and round; `sizes` are those of the rounds."""

    def __init__(self, arm: str) -> None:
        self.arm = arm
        self.sizes: dict[int, int] = {}

    def entries(self, prompts: Sequence[Prompt], round_: int) -> list[RoundEntry]:
        self.sizes[round_] = self.sizes.get(round_, 0) + len(prompts)
        entries = []
        for example, prompt in prompts:
            draw = random.Random(f"{self.arm} {round_} {example}")
            text = (*(draw.randrange(3, 50) for _ in range(draw.randint(1, 20))), END)
            revised = RevisedSequence(example, tuple(prompt), text, text, (), "not_searched", 0, 0)
            entries.append(RoundEntry(revised, (-1,) * len(text)))
        return entries


def data_module(
    config: ExperimentConfig, rows: list[TrainingSequence], folder: Path, world: int = 1
) -> DistillationDataModule:
    """The stage of distillation on the first of `world` ranks, about to begin; its writer is a `MadeUpText`."""
    length = training_length(config.train, len(rows), world)
    data = DistillationDataModule(
        config,
        rows,
        [],
        stage=config.train,
        length=length,
        pad_token_id=0,
        run_folder=folder,
        seed=config.seed,
        writer=MadeUpText(config.arm),
    )
    data.trainer = SimpleNamespace(global_rank=0, world_size=world, global_step=0)  # type: ignore[assignment]
    return data


def planned_steps(data: DistillationDataModule, epoch: int) -> list[list[TrainingSequence]]:
    """The rows of every optimiser step of an epoch that begins now."""
    assert data.trainer is not None
    data.trainer.global_step = epoch * data.length.steps_per_epoch  # type: ignore[misc]
    items, forwards = data.plan_epoch(epoch), data.length.micro_batches
    starts = range(0, len(items), forwards)
    return [[row for item in items[i : i + forwards] for row in item.rows] for i in starts]
