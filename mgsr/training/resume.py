"""Callbacks behind a clean stop and an exact resume: resume points, and the best checkpoint."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from mgsr.runtime.errors import RunInterruptedError, UserError
from mgsr.runtime.faults import reach
from mgsr.runtime.progress import say
from mgsr.runtime.ranks import barrier, is_first, largest
from mgsr.training.checkpoint import BEST, prune, resume_path
from mgsr.training.launch import in_slurm, requeue
from mgsr.training.optim import Length


class ResumePoint(Checkpoint):
    """Writes `checkpoints/resume-<step>.ckpt` every n steps, at the end of each epoch, and when asked to stop.

    The first Ctrl-C (or SIGTERM) lets the step at hand finish, writes the checkpoint and ends; a second one
    ends at once. Lightning cannot go on between an epoch's last step and the dev set, so there is a point before
    that step: whoever is stopped while looking at the dev set repeats one step.
    """

    def __init__(self, folder: Path, every_n_steps: int, go_on: str, length: Length) -> None:
        self.folder, self.every_n_steps, self.go_on, self.length = folder, every_n_steps, go_on, length
        self._asked: int | None = None
        self._between_epochs = False
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        # SLURM announces the end of a job's time by SIGUSR1, as in `#SBATCH --signal=USR1@120`
        announced = (signal.SIGUSR1,) if in_slurm() else ()
        for number in (signal.SIGINT, signal.SIGTERM, *announced):
            try:
                self._previous[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread: whoever runs us there handles signals
                return

    def _take_signals(self) -> None:
        """Lightning puts a handler of its own on top, which ends a run wherever it stands, unsaved."""
        for number in self._previous:
            signal.signal(number, self._ask)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _ask(self, number: int, frame: Any) -> None:
        if self._asked is not None:
            raise KeyboardInterrupt
        self._asked = number
        say("\nstopping after this step; once more to stop at once")

    def check(self) -> None:
        """Called between batches of long work without steps (a round, the dev set): stop there if asked."""
        if self._asked is not None:
            name = signal.Signals(self._asked).name
            if self._asked == signal.SIGUSR1 and is_first():
                requeue()
            raise RunInterruptedError(f"stopped by {name}; go on with: {self.go_on}", self._asked)

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
        self._asked = largest(self._asked or 0) or None
        if self._asked is not None or trainer.global_step % self.every_n_steps == 0 or before_dev:
            self._save(trainer)
        self.check()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        reach("validation.begin")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        reach("validation.end")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._between_epochs = True
        self._save(trainer)
        self._between_epochs = False
        self.check()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["between_epochs"] = self._between_epochs
        checkpoint["micro_batches"] = self.length.micro_batches
        checkpoint["steps_per_epoch"] = self.length.steps_per_epoch
        if self._between_epochs:
            settle(checkpoint["loops"]["fit_loop"])

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._between_epochs = bool(checkpoint["between_epochs"])
        steps, now = int(checkpoint["steps_per_epoch"]), self.length.steps_per_epoch
        if steps != now:
            raise UserError(
                f"{self.folder}: an epoch had {steps} steps and would have {now} with these devices and batches; "
                "resume with the number of devices it began with"
            )
        rescale(checkpoint["loops"]["fit_loop"], int(checkpoint["micro_batches"]), self.length.micro_batches)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._take_signals()
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
        if trainer.is_global_zero:
            prune(self.folder)
            reach("checkpoint.pruned")
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
    """The student with the best dev ROUGE-L, in `checkpoints/best.ckpt`, also of a run that was moved."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder / "checkpoints",
            filename=BEST.removesuffix(".ckpt"),
            monitor="val/rouge_l",
            mode="max",
            save_top_k=1,
            save_weights_only=True,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """The score alone: where the file lies is known."""
        score = self.best_model_score
        return {"score": None if score is None else float(score)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        import torch

        if state_dict["score"] is None:
            return
        path = str(Path(str(self.dirpath)) / BEST)
        score = torch.tensor(state_dict["score"])
        self.best_model_score = self.kth_value = score
        self.best_model_path = self.kth_best_model_path = path
        self.best_k_models = {path: score}
