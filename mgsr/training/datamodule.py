"""The LightningDataModule: plans whole optimiser steps and has text written between epochs (SCRG).

It knows the student only through one callable, `write`, so rounds can be tested with a fake model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from mgsr.config.schema import ExperimentConfig, TrainConfig
from mgsr.data.collate import Batch, StepCounts, TeacherTop, TextKey, TrainingSequence, collate
from mgsr.data.sampler import StepSelection, pack, select
from mgsr.rounds.round import Ranks, Rounds, Write
from mgsr.rounds.store import RoundEntry
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

    Not so where they hold what a teacher has computed, which would lie in memory several times over.
    """

    def __init__(
        self,
        items: Sequence[MicroBatch],
        pad_token_id: int,
        tops: Mapping[TextKey, TeacherTop] | None = None,
        states: Mapping[TextKey, Tensor] | None = None,
    ) -> None:
        self.items, self.pad_token_id, self.tops, self.states = items, pad_token_id, tops, states
        self._ahead = 1 if tops or states else AHEAD
        self._ready: dict[int, Batch] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Batch:
        if index not in self._ready:
            # a range of indices refuses what a list does, and counts negative ones alike
            place = range(len(self.items))[index]
            self._ready = {i: self._collate(i) for i in range(place, min(place + self._ahead, len(self.items)))}
            index = place
        return self._ready.pop(index)

    def _collate(self, index: int) -> Batch:
        item = self.items[index]
        return collate(item.rows, item.counts, self.pad_token_id, self.tops, self.states)


class DistillationDataModule(L.LightningDataModule):
    """Ground truth and model-written text for one stage of training.

    Args:
        train, dev: encoded ground truth; dev may be empty.
        write: writes and revises text for prompts with the models as they stand; None trains on ground truth.
        length: steps and epochs of the stage, from `training_length`.
        run_folder: rounds are kept in its `scrg/`.
        tops: text -> the teacher's cached distributions, of ground truth.
        score: has the teacher read an epoch's texts before the epoch; None: it reads them step by step.
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
        write: Write | None = None,
        tops: Mapping[TextKey, TeacherTop] | None = None,
        score: ScoreEpoch | None = None,
    ) -> None:
        super().__init__()
        self.config, self.stage, self.length = config, stage, length
        self.train_rows, self.dev_rows = list(train), list(dev)
        self.pad_token_id, self.run_folder, self.seed = pad_token_id, Path(run_folder), seed
        self.tops, self.score = tops, score
        self.rounds: Rounds | None = None
        if write is not None and config.scrg.enabled:
            self.rounds = Rounds(config, write, self.run_folder, seed=seed, steps_per_epoch=length.steps_per_epoch)
        self.adaptive_fraction = config.mixture.student_fraction_start
        # an epoch keeps the share it began with, also where it is planned again on resume
        self.epoch_fractions: dict[int, float] = {}
        self.previous_dev_loss: float | None = None
        self.round: int | None = None
        self.entries: list[RoundEntry] = []

    # -- what the checkpoint keeps ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "adaptive_fraction": self.adaptive_fraction,
            "epoch_fractions": dict(self.epoch_fractions),
            "previous_dev_loss": self.previous_dev_loss,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.adaptive_fraction = state_dict["adaptive_fraction"]
        self.epoch_fractions = dict(state_dict["epoch_fractions"])
        self.previous_dev_loss = state_dict["previous_dev_loss"]

    # -- Lightning's hooks --------------------------------------------------------------------------------

    def train_dataloader(self) -> StatefulDataLoader:
        assert self.trainer is not None
        # of a run taken up behind its last step Lightning asks for one epoch more, and reads nothing
        last = (self.length.total_steps - 1) // self.length.steps_per_epoch
        items = self.plan_epoch(min(self.trainer.current_epoch, last))
        return self._loader(items, self.tops, self._states(items))

    def _states(self, items: Sequence[MicroBatch]) -> Mapping[TextKey, Tensor] | None:
        assert self.trainer is not None
        if self.score is None or self.trainer.global_step >= self.length.total_steps:
            return None
        unknown = [row for item in items for row in item.rows if row.key not in (self.tops or {})]
        return self.score(unknown, self.run_folder / f".scored-{self.trainer.global_rank}")

    def val_dataloader(self) -> StatefulDataLoader:
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        rows = sorted(self.dev_rows, key=len)[rank::world]
        size = self.stage.micro_batch_size
        chunks = [tuple(rows[i : i + size]) for i in range(0, len(rows), size)]
        return self._loader([MicroBatch(chunk, StepCounts.of(chunk)) for chunk in chunks])

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Nothing where it is there already: Lightning would rebuild the batch at every step."""
        return batch if batch.input_ids.device == device else batch.to(device)

    def _loader(self, items: Sequence[MicroBatch], *known: Any) -> StatefulDataLoader:
        # stateful: a run resumed within an epoch goes on behind the last batch it has trained on
        batches = MicroBatches(items, self.pad_token_id, *known)
        return StatefulDataLoader(batches, batch_size=None, shuffle=False)

    def observe_dev_loss(self, loss: float) -> None:
        """Raise the share of student text when dev loss has worsened (DistiLLM, Ko et al. 2024)."""
        mixture = self.config.mixture
        if self.previous_dev_loss is not None and loss > self.previous_dev_loss + mixture.adaptive_eps:
            self.adaptive_fraction = min(1.0, self.adaptive_fraction + mixture.adaptive_step)
        self.previous_dev_loss = loss

    # -- the plan of an epoch -----------------------------------------------------------------------------

    def plan_epoch(self, epoch: int) -> list[MicroBatch]:
        """This rank's micro-batches of an epoch; writes the epoch's round first where it is not there yet."""
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        steps = self.selection(epoch)
        text = self._student_rows(epoch, steps)
        groups = [([self.train_rows[i] for i in step.ground_truth], text[k]) for k, step in enumerate(steps)]
        planned = pack(
            groups,
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

    def selection(self, epoch: int) -> list[StepSelection]:
        """Which prompts of an epoch train on ground truth and which on student text."""
        assert self.trainer is not None
        first = epoch * self.length.steps_per_epoch
        self.epoch_fractions.setdefault(epoch, self.adaptive_fraction)
        steps = select(
            len(self.train_rows),
            self.stage.batch_size,
            seed=self.seed,
            epoch=epoch,
            fraction=lambda step: self.student_fraction(first + step),
            groups=self.length.micro_batches * self.trainer.world_size,
        )
        # the last epoch ends where training does, so that the dev set is looked at once more
        return steps[: max(0, self.length.total_steps - first)]

    def student_fraction(self, step: int) -> float:
        """Share of student text at an optimiser step."""
        mixture = self.config.mixture
        if self.rounds is None:
            return 0.0
        if mixture.kind == "adaptive":
            return self.epoch_fractions.get(step // self.length.steps_per_epoch, self.adaptive_fraction)
        if mixture.kind == "linear":
            done = min(1.0, step / max(1, self.length.total_steps - 1))
            start, end = mixture.student_fraction_start, mixture.student_fraction
            return start + (end - start) * done
        return mixture.student_fraction

    def _student_rows(self, epoch: int, steps: Sequence[StepSelection]) -> list[list[TrainingSequence]]:
        assert self.trainer is not None
        if self.rounds is None or not any(step.student for step in steps):
            return [[] for _ in steps]
        round_ = epoch // self.config.scrg.every_n_epochs
        if (epoch + 1) * self.length.steps_per_epoch <= self.trainer.global_step:
            # behind us: nothing will be read
            return [[self.train_rows[i] for i in step.student] for step in steps]
        if self.round != round_:
            # later epochs of a round train on the text as it was read at its first
            self._open_round(round_, epoch, steps)
        if self._replays:
            buffer = self._replay_buffer(round_)
            draw = np.random.default_rng([self.seed, epoch, 3])
            return [[buffer[i] for i in draw.integers(len(buffer), size=len(step.student))] for step in steps]
        by_id = {entry.revised.example_id: self._row(entry) for entry in self.entries}
        return [[by_id[self.train_rows[i].example_id] for i in step.student] for step in steps]

    def _open_round(self, round_: int, epoch: int, steps: Sequence[StepSelection]) -> None:
        """Have the round's text at hand: written if this is the step it is written before, else read."""
        trainer = self.trainer
        assert trainer is not None and self.rounds is not None
        ranks = Ranks(trainer.global_rank, trainer.world_size, trainer.strategy.barrier)
        prompts = self._round_prompts(round_, steps)
        first = self._first_use(round_, epoch)
        written_now = first is not None and trainer.global_step == first * self.length.steps_per_epoch
        self.entries = self.rounds.ensure(round_, prompts, ranks, written_now=written_now)
        self.round = round_

    def _first_use(self, round_: int, last: int) -> int | None:
        """The epoch that a round is written for, of its epochs up to `last`: the first that trains on text."""
        first = round_ * self.config.scrg.every_n_epochs
        used = (e for e in range(first, last + 1) if any(step.student for step in self.selection(e)))
        return next(used, None)

    @property
    def _replays(self) -> bool:
        mixture = self.config.mixture
        return mixture.replay == "on" or (mixture.replay == "auto" and mixture.kind == "adaptive")

    def _row(self, entry: RoundEntry) -> TrainingSequence:
        return entry.training_sequence(cross_entropy=self.config.scrg.cross_entropy)

    def _round_prompts(self, round_: int, steps: Sequence[StepSelection]) -> list[TrainingSequence]:
        """The prompts that a round writes for: those its epochs select, sorted by length."""
        every = self.config.scrg.every_n_epochs
        if every == 1:
            chosen = {i for step in steps for i in step.student}
        elif self.config.mixture.kind == "adaptive":
            # the share may rise within the round, so any prompt may be asked for
            chosen = set(range(len(self.train_rows)))
        else:
            epochs = range(round_ * every, (round_ + 1) * every)
            chosen = {i for epoch in epochs for step in self.selection(epoch) for i in step.student}
        return sorted((self.train_rows[i] for i in chosen), key=lambda row: (len(row.prompt_ids), row.example_id))

    def _replay_buffer(self, round_: int) -> list[TrainingSequence]:
        """The newest `replay_capacity` sequences of all rounds so far, first in first out."""
        assert self.rounds is not None
        rows: list[TrainingSequence] = []
        for k in range(round_, -1, -1):
            if len(rows) >= self.config.mixture.replay_capacity:
                break
            if k < round_ and self._first_use(k, (k + 1) * self.config.scrg.every_n_epochs - 1) is None:
                continue
            entries = self.entries if k == round_ else self.rounds.finished(k)
            rows += [self._row(entry) for entry in reversed(entries)]
        return rows[: self.config.mixture.replay_capacity]

    def note_likelihoods(self, likelihoods: dict[int, float]) -> None:
        """Keep the teacher's log-likelihood of the round's text as trained on, of all ranks, beside the round."""
        assert self.trainer is not None
        # replayed text comes from other rounds too
        if self.rounds is None or self.round is None or not likelihoods or self._replays:
            return
        if self.trainer.is_global_zero:
            self.rounds.note_likelihoods(self.round, likelihoods)
