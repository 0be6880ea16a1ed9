"""Rounds of text: which are whole, which shards are missing, who writes them.

A round is keyed by what changes its text, so that asking for it twice writes it once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from mgsr.config.load import fingerprint
from mgsr.config.schema import ExperimentConfig
from mgsr.data.collate import TrainingSequence
from mgsr.rounds.store import (
    FOLDER_NAME,
    SHARD_NAME,
    Round,
    RoundEntry,
    finish_round,
    is_finished,
    read_after,
    read_manifest,
    read_round,
    write_after,
    write_shard,
)
from mgsr.rounds.text_quality import measure_corrected
from mgsr.runtime.errors import DataError
from mgsr.runtime.progress import progress, say
from mgsr.runtime.ranks import agreed, barrier
from mgsr.runtime.wording import plural
from mgsr.scrg import Prompt


class TextWriter(Protocol):
    """Who writes the text of a round, with the models as they stand."""

    def phase(self) -> AbstractContextManager[Any]:
        """Open while a round is written: on every rank, also where it has nothing to write."""
        ...

    def write(self, prompts: Sequence[Prompt], round_: int) -> tuple[list[RoundEntry], dict[str, float]]:
        """One entry per prompt, in their order, and what they cost (see `mgsr.runtime.meter`).

        Args:
            prompts: of a shard, shortest first.
        """
        ...


@dataclass(frozen=True)
class Shard:
    """A part of a round: whose it is, its file, what its text depends on, and the prompts it answers."""

    rank: int
    name: str
    key: str
    prompts: Sequence[TrainingSequence]


class Rounds:
    """The rounds of one run.

    Args:
        run_folder: rounds are kept in its `scrg/`.
        steps_per_epoch: of the stage, which says before which step a round is written.
        references: of every prompt by example id, which tell what its correction has gained.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        writer: TextWriter,
        run_folder: Path,
        *,
        seed: int,
        steps_per_epoch: int,
        references: Mapping[int, Sequence[str]],
    ) -> None:
        self.config, self.writer, self.run_folder = config, writer, run_folder
        self.references = references
        self.seed, self.steps_per_epoch = seed, steps_per_epoch

    def ensure(
        self,
        round_: int,
        prompts: Sequence[TrainingSequence],
        *,
        written_now: bool,
        rank: int = 0,
        world: int = 1,
    ) -> Round:
        """Read a round that is whole; write what is missing otherwise, each rank its part, the manifest last.

        Args:
            prompts: of all ranks, shortest first: shards and batches are cut from them as they come.
            written_now: this is the step before which the round is written; later on the student has changed, and
                what is missing or damaged cannot be written again.
            rank, world: this process among those that write the round together.

        Raises:
            DataError: the round is damaged, and the student has trained on since.
        """
        folder, key = self.run_folder / FOLDER_NAME.format(round_), self.key(round_, prompts)
        whole = self._whole(folder, key, prompts, written_now)
        if agreed(whole is not None):
            return self._shared(folder, whole)
        shards = self.shards(key, prompts, world)
        if not written_now and not all(is_finished(folder / shard.name, shard.key) for shard in shards):
            self._refuse_too_late(f"{folder}: text of this round is missing or damaged")
        with self.writer.phase():
            self._write_missing(folder, round_, [shard for shard in shards if shard.rank == rank])
        barrier(f"scrg-{round_}-shards")
        if rank == 0:
            whole = finish_round(folder, key, [shard.name for shard in shards])
            try:
                self._answering(folder, whole, prompts)
            except DataError as error:
                raise DataError(f"{error}; delete {folder} to have it written again") from None
        barrier(f"scrg-{round_}-manifest")
        return self._shared(folder, read_round(folder, key) if whole is None else whole)

    def first_step(self, round_: int) -> int:
        """The optimiser step that a round is written before."""
        return round_ * self.config.scrg.every_n_epochs * self.steps_per_epoch

    def key(self, round_: int, prompts: Sequence[TrainingSequence]) -> str:
        """Changes with whatever changes the round's text: configuration, start step, prompts."""
        tree = asdict(self.config)
        tree["teacher"].pop("placement")
        for name in ("evaluation", "trainer", "run_root", "experiment", "arm"):
            tree.pop(name)
        # a run that is made longer, or works in other batches, keeps the rounds it has
        for name in ("epochs", "max_steps", "max_nonfinite_steps", "micro_batch_size", "gradient_checkpointing"):
            tree["train"].pop(name)
        for name in ("batch_size", "shard_size", "max_cache_slots", "vllm_memory"):
            tree["scrg"].pop(name)
        start = self.first_step(round_)
        return fingerprint(tree, self.seed, start, [(row.example_id, row.prompt_ids) for row in prompts])

    def shards(self, key: str, prompts: Sequence[TrainingSequence], world: int) -> list[Shard]:
        """Which rank writes which prompts to which file."""
        scrg, shards = self.config.scrg, []
        size = scrg.shard_size or scrg.batch_size
        for rank in range(world):
            mine = prompts[rank::world]
            for number, start in enumerate(range(0, len(mine), size)):
                part = mine[start : start + size]
                part_key = fingerprint(key, [row.example_id for row in part])
                shards.append(Shard(rank, SHARD_NAME.format(rank, number), part_key, part))
        return shards

    def finished(self, round_: int) -> Round:
        """A round that has been trained on, as it lies on the disk.

        Raises:
            DataError: it is missing or damaged.
        """
        folder = self.run_folder / FOLDER_NAME.format(round_)
        whole = read_round(folder)
        if whole is None:
            self._refuse_too_late(f"{folder}: its manifest is missing or damaged")
        assert whole is not None
        return whole

    def note_likelihoods(self, round_: int, likelihoods: dict[int, float]) -> None:
        """Keep the teacher's log-likelihood of a round's text as trained on, beside the round."""
        folder = self.run_folder / FOLDER_NAME.format(round_)
        # the first epoch of a round has trained on the text as it was written; later ones do not overwrite it
        known = read_after(folder)
        if not known.keys() >= likelihoods.keys():
            write_after(folder, {**likelihoods, **known})

    def _whole(
        self, folder: Path, key: str, prompts: Sequence[TrainingSequence], written_now: bool
    ) -> Round | None:
        try:
            read_manifest(folder)
        except DataError as error:
            # as one that is lost: made again, if the shards are whole
            say(f"{error}: made again from its shards")
            return None
        try:
            whole = read_round(folder, key)
            return None if whole is None else self._answering(folder, whole, prompts)
        except DataError as error:
            if not written_now:
                self._refuse_too_late(str(error))
            say(f"{error}: written again")
            return None

    @staticmethod
    def _answering(folder: Path, whole: Round, prompts: Sequence[TrainingSequence]) -> Round:
        """The round, which has one sequence for every prompt and for no other."""
        left = {(row.example_id, tuple(row.prompt_ids)) for row in prompts}
        for entry in whole.entries:
            prompt = entry.revised.example_id, tuple(entry.revised.prompt_ids)
            if prompt not in left:
                raise DataError(f"{folder}: example {prompt[0]} is no prompt of this round, or is there twice")
            left.remove(prompt)
        if left:
            raise DataError(f"{folder}: has no text for example {min(left)[0]}")
        return whole

    def _write_missing(self, folder: Path, round_: int, shards: Sequence[Shard]) -> None:
        missing = [shard for shard in shards if not is_finished(folder / shard.name, shard.key)]
        if len(missing) < len(shards):
            say(f"round {round_}: {len(shards) - len(missing)} of {plural(len(shards), 'shard')} there already")
        tokenizer = self.config.evaluation.rouge_tokenizer
        total, left = (sum(len(shard.prompts) for shard in some) for some in (shards, missing))
        with progress(f"round {round_}", total, unit="sequences", first=total - left) as advance:
            for shard in missing:
                prompts = [(row.example_id, row.prompt_ids) for row in shard.prompts]
                entries, costs = self.writer.write(prompts, round_)
                # here every rank has its own share at hand
                gained = measure_corrected(folder, entries, self.references, tokenizer)
                write_shard(folder / shard.name, shard.key, entries, costs, gained)
                advance(len(entries))

    @staticmethod
    def _shared(folder: Path, whole: Round | None) -> Round:
        """The round, on a rank that was told it is there."""
        if whole is None:
            raise DataError(
                f"{folder}: not there on this node; `run_root` must lie on a disk that all nodes share"
            )
        return whole

    def _refuse_too_late(self, what: str) -> None:
        raise DataError(
            f"{what}; the student has trained on since and cannot write it again: restore the file, or delete "
            f"{self.run_folder} to start anew"
        )
