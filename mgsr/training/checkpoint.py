"""Checkpoints: written whole, checked before they are read, never a carrier of code.

checkpoints/resume-<step>.ckpt   where to go on; the two newest are kept
checkpoints/best.ckpt            the student with the best dev ROUGE-L
checkpoints/*.ckpt.sha256        their checksums
"""

from __future__ import annotations

import pickle
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from mgsr.runtime.devices import on_host
from mgsr.runtime.errors import DataError, UserError
from mgsr.runtime.faults import reach
from mgsr.runtime.files import SUFFIX, Background, check, remove_checked, write_checked
from mgsr.runtime.progress import say
from mgsr.runtime.ranks import barrier, is_first, largest
from mgsr.runtime.wording import plural
from mgsr.training.launch import StopRequest
from mgsr.training.optim import Length

BEST = "best.ckpt"
KEPT = 2
_NAME = re.compile(r"resume-\d{8,}\.ckpt", re.ASCII)


def resume_path(folder: Path, step: int) -> Path:
    """Where the resume point of an optimiser step is, below a stage's folder."""
    return folder / "checkpoints" / f"resume-{step:08d}.ckpt"


def step_of(path: Path) -> int:
    return int(path.stem.removeprefix("resume-"))


def resume_points(folder: Path) -> list[Path]:
    """All of them, newest first, whether whole or not; copies under other names are none."""
    found = (path for path in (folder / "checkpoints").glob("resume-*.ckpt") if _NAME.fullmatch(path.name))
    return sorted(found, key=step_of, reverse=True)


def newest_whole(folder: Path) -> Path | None:
    """The newest resume point that is whole; what is said of damaged ones is printed. None: there is none at all.

    Raises:
        UserError: there are some, and all are damaged.
    """
    points = resume_points(folder)
    for number, path in enumerate(points):
        try:
            check(path)
        except DataError as error:
            if number + 1 == len(points):
                raise UserError(
                    f"{error}, and there is no whole resume point before it; delete {folder} to start anew"
                ) from None
            say(f"{error}: going on from the one before, {points[number + 1].name}")
            continue
        return path
    return None


def best_is_missing(best: Path) -> UserError:
    """The last student must not stand in the place of the best one in silence."""
    return UserError(
        f"{best}: is missing, though the dev set has chosen a student; put it and {BEST}{SUFFIX} back (a copy of "
        "the last resume point under that name is the last student, not the best), or delete "
        f"{best.parent.parent} to run it anew"
    )


def prune(folder: Path) -> None:
    """Remove all resume points but the newest; called when the newest is whole."""
    for path in resume_points(folder)[KEPT:]:
        remove_checked(path)


def read_checkpoint(path: Path, *, map_location: Any = "cpu", checked: bool = False) -> dict[str, Any]:
    """A checkpoint's content: tensors, mapped from the file where they are for the CPU, and plain values.

    Args:
        checked: its checksum has been looked at. Otherwise the first rank does so, and no other reads it all.

    Raises:
        DataError: it is torn, was changed, or holds anything else; nothing of that is run.
    """
    if not checked and is_first():
        check(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location, weights_only=True, mmap=map_location == "cpu")
    except Exception as error:  # whatever a made-up file can provoke in a reader
        carries = isinstance(error, pickle.UnpicklingError) and "eights" in str(error)
        reason = "holds more than tensors and plain values" if carries else "is no checkpoint"
        raise DataError(f"{path}: {reason}: refused; delete it, or take it from whom you trust") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise DataError(f"{path}: is no checkpoint: refused; delete it")
    return content


class DurableIO(CheckpointIO):
    """Lightning's checkpoints by `write_checked` and `read_checkpoint`, written while training goes on.

    A save waits for the one before, takes a copy and returns; a checkpoint is there when it has its name.

    Args:
        in_place: loaded tensors are not copied to a device, so that they must not stay in the file's pages.
    """

    def __init__(self, *, in_place: bool = False) -> None:
        self.in_place, self.background = in_place, Background()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        # one copy at a time
        self.background.wait()
        self.background.begin(partial(self._write, on_host(checkpoint), Path(path)))

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        best = path.name == BEST
        write_checked(path, lambda file: torch.save(checkpoint, file), kind="best" if best else "checkpoint")
        if not best:
            prune(path.parent.parent)
            reach("checkpoint.pruned")

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        content = read_checkpoint(Path(path), checked=True)
        return content | {"optimizer_states": on_host(content["optimizer_states"])} if self.in_place else content

    def remove_checkpoint(self, path: Any) -> None:
        remove_checked(Path(path))


class ResumePoint(Checkpoint):
    """Saves `checkpoints/resume-<step>.ckpt` every n steps, at the end of each epoch, and when asked to stop.

    Training goes on while one is written; it is waited for to stop, and at an epoch's end before a round of text.
    Lightning cannot go on between an epoch's last step and the dev set, so there is a point before that step:
    whoever is stopped while looking at the dev set repeats one step.
    """

    def __init__(self, folder: Path, every_n_steps: int, stop: StopRequest, length: Length) -> None:
        self.folder, self.every_n_steps, self.stop, self.length = folder, every_n_steps, stop, length
        self._between_epochs = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        newest = resume_points(self.folder)
        self.stop.standing = f"step {step_of(newest[0]) if newest else 0} of {self.length.total_steps}"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.stop.watch()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.stop.unwatch()

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        reach("step.begin")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        reach("step.end")
        left, within = divmod(int(trainer.num_training_batches) - batch_idx - 1, trainer.accumulate_grad_batches)
        # within a step gradients would be lost; the end of the epoch writes one, behind the dev set
        if within or left == 0:
            return
        before_dev = left == 1 and self._validates(trainer)
        # all ranks stop behind the same step, whichever of them was asked
        self.stop.asked = largest(self.stop.asked or 0) or None
        if self.stop.asked is not None or trainer.global_step % self.every_n_steps == 0 or before_dev:
            self._save(trainer)
        self.stop.check()

    def on_validation_start(self, *_: Any) -> None:
        reach("validation.begin")

    def on_validation_end(self, *_: Any) -> None:
        reach("validation.end")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._between_epochs = True
        self._save(trainer)
        self._between_epochs = False
        self.stop.check()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["between_epochs"] = self._between_epochs
        checkpoint["micro_batches"] = self.length.micro_batches
        checkpoint["steps_per_epoch"] = self.length.steps_per_epoch
        if self._between_epochs:
            settle(checkpoint["loops"]["fit_loop"])

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._between_epochs = bool(checkpoint["between_epochs"])
        steps, now = int(checkpoint["steps_per_epoch"]), self.length.steps_per_epoch
        if steps != now:
            had = f"an epoch had {plural(steps, 'step')}"
            raise UserError(f"{self.folder}: {had}, here it has {now}; begin another arm")
        rescale(checkpoint["loops"]["fit_loop"], int(checkpoint["micro_batches"]), self.length.micro_batches)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning puts a handler of its own on top, which ends a run wherever it stands, unsaved
        self.stop.watch()
        if self._between_epochs:
            # an epoch begins, as in a run that was never stopped
            self._between_epochs = False
            for loop in (trainer.fit_loop, trainer.fit_loop.epoch_loop):
                loop.restarting = False
                loop.reset_restart_stage()

    @staticmethod
    def _validates(trainer: L.Trainer) -> bool:
        every = trainer.check_val_every_n_epoch
        return bool(trainer.enable_validation and every and (trainer.current_epoch + 1) % every == 0)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(resume_path(self.folder, trainer.global_step))
        self.stop.standing = f"step {trainer.global_step} of {self.length.total_steps}"

        rounds = getattr(getattr(trainer, "datamodule", None), "rounds", None)
        if self.stop.asked is not None or (self._between_epochs and rounds is not None):
            # a later start, or the text of the next round, stands on this one
            trainer.strategy.checkpoint_io.background.wait()  # type: ignore[attr-defined]
            barrier("resume point")


def settle(fit_loop: dict[str, Any]) -> None:
    """Make Lightning's progress at the end of an epoch that of an epoch which is over.

    Taken up as it is, Lightning (2.6) would run the epoch's end again, and count one step and one epoch too many.
    """
    fit_loop["state_dict"].pop("combined_loader", None)
    for progress in (fit_loop["epoch_progress"][which] for which in ("total", "current")):
        progress["completed"] = progress["processed"]
    batches = fit_loop["epoch_loop.batch_progress"]
    batches["is_last_batch"] = False
    optimiser = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for part in (batches, fit_loop["epoch_loop.scheduler_progress"], optimiser["step"], optimiser["zero_grad"]):
        part["current"] = dict.fromkeys(part["current"], 0)


def rescale(fit_loop: dict[str, Any], before: int, now: int) -> None:
    """Count an epoch's micro-batches until now as another number of devices cuts them.

    Args:
        before, now: micro-batches per optimiser step, on one rank.
    """
    if before == now:
        return
    current = fit_loop["epoch_loop.batch_progress"]["current"]
    for name in ("ready", "started", "processed"):
        current[name] = current[name] * now // before
    # a point within an epoch is written before its last micro-batch counts as completed
    current["completed"] = max(0, current["processed"] - 1)
    for loader in fit_loop["state_dict"].get("combined_loader", ()):
        for name in ("_sampler_iter_yielded", "_num_yielded"):
            loader[name] = loader[name] * now // before


class BestCheckpoint(ModelCheckpoint):
    """The student with the best dev ROUGE-L, the latest of equals: `best.ckpt`, also of a run that was moved."""

    def __init__(self, folder: Path) -> None:
        name, best = BEST.removesuffix(".ckpt"), {"monitor": "val/rouge_l", "mode": "max", "save_top_k": 1}
        when = {"save_weights_only": True, "enable_version_counter": False, "save_on_train_epoch_end": False}
        super().__init__(folder / "checkpoints", filename=name, **best, **when)  # type: ignore[arg-type]

    def check_monitor_top_k(self, trainer: L.Trainer, current: torch.Tensor | None = None) -> bool:
        # ties go to the later student: of a score that says nothing to the last one
        tie = current is not None and bool(current == self.best_model_score)
        return tie or super().check_monitor_top_k(trainer, current)

    def state_dict(self) -> dict[str, Any]:
        # the score alone: where the file lies is known
        score = self.best_model_score
        return {"score": None if score is None else float(score)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["score"] is None:
            return
        path = str(Path(str(self.dirpath)) / BEST)
        if not Path(path).exists():
            raise best_is_missing(Path(path))
        score = torch.tensor(state_dict["score"])
        self.best_model_score = self.kth_value = score
        self.best_model_path = self.kth_best_model_path = path
        self.best_k_models = {path: score}
