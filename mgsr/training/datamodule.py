"""The LightningDataModule: plans whole optimiser steps and has text written between epochs (SCRG).

It knows the student only through one protocol, `TextWriter`, so rounds can be tested with a fake model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from mgsr.config.schema import ExperimentConfig, TrainConfig
from mgsr.data.collate import Batch, StepCounts, TeacherTop, TextKey, TrainingSequence, collate
from mgsr.data.sampler import pack
from mgsr.rounds.round import Rounds, TextWriter
from mgsr.rounds.store import RoundEntry
from mgsr.training.mixture import TextMixture
from mgsr.training.optim import Length
from mgsr.training.teacher_cache import ScoreEpoch


@dataclass(frozen=True)
class MicroBatch:
    rows: tuple[TrainingSequence, ...]
    counts: StepCounts


AHEAD = 8
"""Micro-batches that are collated in one go: between two steps the code that does it has left the processor's
caches, and one by one each takes three times as long."""


class MicroBatches(Dataset):
    """Planned micro-batches of one rank; item i is collated when it is asked for, some of its successors along.

    Not so where they hold what a teacher has computed, which would lie in memory several times over. What is
    collated goes to a GPU at once, by itself, so that no step waits for its batch.
    """

    def __init__(
        self,
        items: Sequence[MicroBatch],
        pad_token_id: int,
        tops: Mapping[TextKey, TeacherTop] | None = None,
        states: Mapping[TextKey, Tensor] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.items, self.pad_token_id, self.tops, self.states = items, pad_token_id, tops, states
        self.device = device or torch.device("cpu")
        self._ahead = 1 if tops or states else AHEAD
        self._ready: dict[int, Batch] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Batch:
        # a range of indices refuses what a list does, and counts negative ones alike
        place = range(len(self.items))[index]
        self._make(place)
        self._next = place + 1
        return self._ready.pop(place)

    def prefetch(self) -> None:
        """Make the next one ready, where there is a GPU that has something to do meanwhile."""
        if self.device.type != "cpu" and self._next < len(self.items):
            self._make(self._next)

    def _make(self, place: int) -> None:
        if place not in self._ready:
            self._ready = {i: self._collate(i) for i in range(place, min(place + self._ahead, len(self.items)))}

    def _collate(self, index: int) -> Batch:
        item = self.items[index]
        batch = collate(item.rows, item.counts, self.pad_token_id, self.tops, self.states)
        if self.device.type == "cuda":
            # from pinned memory alone the copy is made while the processor goes on
            batch = batch.pin_memory()
        return batch if self.device.type == "cpu" else batch.to(self.device, non_blocking=True)


class DistillationDataModule(L.LightningDataModule):
    """Ground truth and model-written text for one stage of training.

    Args:
        train, dev: encoded ground truth; dev may be empty.
        writer: writes and revises text for prompts with the models as they stand; None trains on ground truth.
        length: steps and epochs of the stage, from `training_length`.
        run_folder: rounds are kept in its `scrg/`.
        tops: text -> the teacher's cached distributions, of ground truth.
        score: has the teacher read an epoch's texts before the epoch; None: it reads them step by step.
        references: of the training rows by example id, see `Rounds`.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        train: Sequence[TrainingSequence],
        dev: Sequence[TrainingSequence],
        *,
        stage: TrainConfig,
        length: Length,
        pad_token_id: int,
        run_folder: str | Path,
        seed: int,
        writer: TextWriter | None = None,
        tops: Mapping[TextKey, TeacherTop] | None = None,
        score: ScoreEpoch | None = None,
        references: Mapping[int, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        self.stage, self.length, self.seed = stage, length, seed
        self.train_rows, self.dev_rows = list(train), list(dev)
        self.pad_token_id, self.run_folder = pad_token_id, Path(run_folder)
        self.tops, self.score = tops, score
        self.rounds: Rounds | None = None
        if writer is not None and config.scrg.enabled:
            steps = length.steps_per_epoch
            known: Any = {"seed": seed, "steps_per_epoch": steps, "references": references or {}}
            self.rounds = Rounds(config, writer, self.run_folder, **known)
        self.mixture = TextMixture(
            config, self.train_rows, self.rounds, batch_size=stage.batch_size, length=length, seed=seed
        )

    # -- Lightning's hooks --------------------------------------------------------------------------------

    def train_dataloader(self) -> StatefulDataLoader:
        assert self.trainer is not None
        # of a run taken up behind its last step Lightning asks for one epoch more, and reads nothing
        last = (self.length.total_steps - 1) // self.length.steps_per_epoch
        items = self.plan_epoch(min(self.trainer.current_epoch, last))
        return self._loader(items, self.tops, self._states(items))

    def plan_epoch(self, epoch: int) -> list[MicroBatch]:
        """This rank's micro-batches of an epoch; writes the epoch's round first where it is not there yet."""
        trainer = self.trainer
        assert trainer is not None
        rank, world = trainer.global_rank, trainer.world_size
        planned = pack(
            self.mixture.rows(epoch, trainer.global_step, rank, world),
            len,
            bucket_steps=self.stage.bucket_steps,
            micro_batches=self.length.micro_batches,
            world_size=world,
            seed=self.seed,
            epoch=epoch,
        )
        items = []
        for step in planned:
            counts = StepCounts.of(step.rows)
            items += [MicroBatch(ranks[rank], counts) for ranks in step.micro_batches]
        return items

    def val_dataloader(self) -> StatefulDataLoader:
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        rows = sorted(self.dev_rows, key=len)[rank::world]
        size = self.stage.micro_batch_size
        # a rank without rows looks too: the sums wait for every rank, and layers in parts for every forward
        most = max(1, -(-len(self.dev_rows) // world))
        chunks = [tuple(rows[i : i + size]) for i in range(0, most, size)]
        return self._loader([MicroBatch(chunk, StepCounts.of(chunk)) for chunk in chunks])

    def dev_sample(self, most: int) -> list[Batch]:
        """This rank's batches of at most `most` dev rows of all lengths: the same rows on any number of ranks."""
        assert self.trainer is not None
        rank, world, size = self.trainer.global_rank, self.trainer.world_size, self.stage.micro_batch_size
        rows = sorted(self.dev_rows, key=len)
        chosen = [rows[i * len(rows) // min(most, len(rows))] for i in range(min(most, len(rows)))][rank::world]
        chunks = [chosen[i : i + size] for i in range(0, len(chosen), size)]
        return [collate(chunk, StepCounts.of(chunk), self.pad_token_id) for chunk in chunks]

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Nothing where it is there already: Lightning would rebuild the batch at every step."""
        return batch if batch.input_ids.device == device else batch.to(device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        return self.mixture.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.mixture.load_state_dict(state_dict)

    # -- loaders ------------------------------------------------------------------------------------------

    def _loader(
        self,
        items: Sequence[MicroBatch],
        tops: Mapping[TextKey, TeacherTop] | None = None,
        states: Mapping[TextKey, Tensor] | None = None,
    ) -> StatefulDataLoader:
        # stateful: a run resumed within an epoch goes on behind the last batch it has trained on
        assert self.trainer is not None
        batches = MicroBatches(items, self.pad_token_id, tops, states, self.trainer.strategy.root_device)
        return StatefulDataLoader(batches, batch_size=None, shuffle=False)

    def _states(self, items: Sequence[MicroBatch]) -> Mapping[TextKey, Tensor] | None:
        assert self.trainer is not None
        if self.score is None or self.trainer.global_step >= self.length.total_steps:
            return None
        unknown = [row for item in items for row in item.rows if row.key not in (self.tops or {})]
        return self.score(unknown, self.run_folder / f".scored-{self.trainer.global_rank}")

    # -- the round that the epoch trains on, for those who log it ------------------------------------------

    @property
    def round(self) -> int | None:
        """Number of the round at hand, None before the first."""
        return self.mixture.round

    @property
    def entries(self) -> list[RoundEntry]:
        return self.mixture.text.entries

    @property
    def round_statistics(self) -> dict[str, float]:
        """Of the round at hand, from its manifest."""
        return self.mixture.text.statistics

    def note_likelihoods(self, likelihoods: dict[int, float]) -> None:
        """Keep the teacher's log-likelihood of the round's text as trained on, of all ranks, beside the round."""
        assert self.trainer is not None
        if self.trainer.is_global_zero:
            self.mixture.note_likelihoods(likelihoods)
