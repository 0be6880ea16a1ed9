"""Which text each prompt of an epoch trains on: ground truth, a round's, or the replay buffer's.

The share of model-written text is constant, grows linearly, or follows the dev loss (DistiLLM, Ko et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mgsr.config.schema import ExperimentConfig
from mgsr.data.collate import TrainingSequence
from mgsr.data.sampler import StepSelection, select
from mgsr.rounds.round import Rounds
from mgsr.rounds.store import Round
from mgsr.runtime.rng import draw_bits
from mgsr.training.optim import Length

StepRows = tuple[list[TrainingSequence], list[TrainingSequence]]
"""Rows of an optimiser step: ground truth, and text that a model has written."""


class TextMixture:
    """Shares the prompts of a stage out between ground truth and written text.

    Args:
        truth: encoded ground truth of all prompts.
        rounds: of written text; None trains on ground truth alone.
        batch_size: prompts per optimiser step.

    Attributes:
        round, text: the round at hand, and what it holds.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        truth: Sequence[TrainingSequence],
        rounds: Rounds | None,
        *,
        batch_size: int,
        length: Length,
        seed: int,
    ) -> None:
        self.config, self.truth, self.rounds = config, truth, rounds
        self.batch_size, self.length, self.seed = batch_size, length, seed
        self.adaptive_fraction = config.mixture.student_fraction_start
        # an epoch keeps the share it began with, also where it is planned again on resume
        self.epoch_fractions: dict[int, float] = {}
        self.previous_dev_loss: float | None = None
        self.round: int | None = None
        self.text = Round()

    # -- the rows of an epoch -----------------------------------------------------------------------------

    def rows(self, epoch: int, global_step: int, rank: int, world: int) -> list[StepRows]:
        """Rows of every step of an epoch, of all ranks; the epoch's round is written where it is not there yet.

        Args:
            global_step: optimiser steps that are done.
        """
        steps = self.selection(epoch)
        text = self._written_rows(epoch, steps, global_step, rank, world)
        return [([self.truth[i] for i in step.ground_truth], text[k]) for k, step in enumerate(steps)]

    def selection(self, epoch: int) -> list[StepSelection]:
        """Which prompts of an epoch train on ground truth and which on written text."""
        first = epoch * self.length.steps_per_epoch
        self.epoch_fractions.setdefault(epoch, self.adaptive_fraction)
        steps = select(
            len(self.truth),
            self.batch_size,
            seed=self.seed,
            epoch=epoch,
            fraction=lambda step: self.student_fraction(first + step),
        )
        # the last epoch ends where training does, so that the dev set is looked at once more
        return steps[: max(0, self.length.total_steps - first)]

    def student_fraction(self, step: int) -> float:
        """Share of written text at an optimiser step."""
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

    def _written_rows(
        self, epoch: int, steps: Sequence[StepSelection], global_step: int, rank: int, world: int
    ) -> list[list[TrainingSequence]]:
        if self.rounds is None or not any(step.student for step in steps):
            return [[] for _ in steps]
        round_ = epoch // self.config.scrg.every_n_epochs
        if (epoch + 1) * self.length.steps_per_epoch <= global_step:
            # behind us: nothing will be read
            return [[self.truth[i] for i in step.student] for step in steps]
        if self.round != round_:
            # later epochs of a round train on the text as it was read at its first
            first = self._first_use(round_, epoch)
            now = first is not None and global_step == first * self.length.steps_per_epoch
            prompts = self._round_prompts(round_, steps)
            self.text = self.rounds.ensure(round_, prompts, written_now=now, rank=rank, world=world)
            self.round = round_
        if self._replays:
            buffer = self._replay_buffer(round_)
            draw = np.random.default_rng([self.seed, epoch, 3])
            return [[buffer[i] for i in draw.integers(len(buffer), size=len(step.student))] for step in steps]
        by_id = {row.example_id: row for row in self._sequences(self.text)}
        return [[by_id[self.truth[i].example_id] for i in step.student] for step in steps]

    def _first_use(self, round_: int, last: int) -> int | None:
        """The epoch that a round is written for, of its epochs up to `last`: the first that trains on text."""
        first = round_ * self.config.scrg.every_n_epochs
        used = (e for e in range(first, last + 1) if any(step.student for step in self.selection(e)))
        return next(used, None)

    def _round_prompts(self, round_: int, steps: Sequence[StepSelection]) -> list[TrainingSequence]:
        """The prompts that a round writes for: those its epochs select, sorted by length."""
        every = self.config.scrg.every_n_epochs
        if every == 1:
            chosen = {i for step in steps for i in step.student}
        elif self.config.mixture.kind == "adaptive":
            # the share may rise within the round, so any prompt may be asked for
            chosen = set(range(len(self.truth)))
        else:
            epochs = range(round_ * every, (round_ + 1) * every)
            chosen = {i for epoch in epochs for step in self.selection(epoch) for i in step.student}
        return sorted((self.truth[i] for i in chosen), key=lambda row: (len(row.prompt_ids), row.example_id))

    def _sequences(self, text: Round) -> list[TrainingSequence]:
        return [entry.training_sequence(cross_entropy=self.config.scrg.cross_entropy) for entry in text.entries]

    # -- replay -------------------------------------------------------------------------------------------

    @property
    def _replays(self) -> bool:
        mixture = self.config.mixture
        return mixture.replay == "on" or (mixture.replay == "auto" and mixture.kind == "adaptive")

    def _replay_buffer(self, round_: int) -> list[TrainingSequence]:
        """The newest `replay_capacity` sequences of all rounds so far, first in first out.

        Those of one round are of one age. Their order is drawn by example, so that the part of a round that still
        fits is a fair sample of it, and the same on any number of ranks.
        """
        assert self.rounds is not None
        capacity = self.config.mixture.replay_capacity
        rows: list[TrainingSequence] = []
        for k in range(round_, -1, -1):
            if len(rows) >= capacity:
                break
            last = (k + 1) * self.config.scrg.every_n_epochs - 1
            if k < round_ and self._first_use(k, last) is None:
                continue
            text = self.text if k == round_ else self.rounds.finished(k)
            drawn = {row.example_id: draw_bits(self.seed, k, row.example_id) for row in self.truth}
            rows += sorted(self._sequences(text), key=lambda row: (drawn[row.example_id], row.example_id))
        return rows[:capacity]

    # -- what training tells -------------------------------------------------------------------------------

    def observe_dev_loss(self, loss: float) -> None:
        """Raise the share of written text when dev loss has worsened (DistiLLM, Ko et al. 2024)."""
        mixture = self.config.mixture
        if self.previous_dev_loss is not None and loss > self.previous_dev_loss + mixture.adaptive_eps:
            self.adaptive_fraction = min(1.0, self.adaptive_fraction + mixture.adaptive_step)
        self.previous_dev_loss = loss

    def note_likelihoods(self, likelihoods: dict[int, float]) -> None:
        """Keep the teacher's log-likelihood of the round's text as trained on beside the round."""
        # replayed text comes from other rounds too
        if self.rounds is not None and self.round is not None and likelihoods and not self._replays:
            self.rounds.note_likelihoods(self.round, likelihoods)

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
