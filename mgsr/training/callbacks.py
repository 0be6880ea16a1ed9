"""Lightning callbacks: the dev set's turn, what a round of text did, what the run has cost, progress."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mgsr.config.schema import TrainerConfig
from mgsr.evaluation.flops import flops_of
from mgsr.evaluation.test_set import Predictor
from mgsr.rounds.render import markdown_revision
from mgsr.rounds.store import round_costs
from mgsr.runtime.meter import Meter, Work, added, overall
from mgsr.runtime.progress import Tracker, say
from mgsr.runtime.ranks import gathered, is_first
from mgsr.training.checkpoint import BestCheckpoint, ResumePoint
from mgsr.training.datamodule import DistillationDataModule
from mgsr.training.launch import StopRequest
from mgsr.training.module import DistillationModule
from mgsr.training.optim import Length
from mgsr.training.step_metrics import MATCHED_BATCHES, divergence_factor


class Validation(L.Callback):
    """Looks at the dev set every n epochs, and after the last one."""

    def __init__(self, every_n_epochs: int, epochs: int) -> None:
        self.every_n_epochs, self.epochs = every_n_epochs, epochs

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # a run that is resumed within an epoch does not call on_train_epoch_start
        self._set(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._set(trainer)

    def _set(self, trainer: L.Trainer) -> None:
        last = trainer.current_epoch + 1 >= self.epochs
        trainer.check_val_every_n_epoch = 1 if last else self.every_n_epochs


class Mixture(L.Callback):
    """Tells the DataModule the dev loss, which steers an adaptive share of student text."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = trainer.callback_metrics.get("val/loss")
        data = trainer.datamodule  # type: ignore[attr-defined]
        if loss is not None:
            data.mixture.observe_dev_loss(float(loss))


class MatchGradient(L.Callback):
    """Makes the divergence as strong as forward KL before the first step, see `objective.match_gradient`."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # a run that is taken up has it from its checkpoint
        if not isinstance(pl_module, DistillationModule) or not pl_module.objective.match or trainer.global_step:
            return
        objective, strategy = pl_module.objective, trainer.strategy
        most = MATCHED_BATCHES * pl_module.config.batch_size
        sample = trainer.datamodule.dev_sample(most)  # type: ignore[attr-defined]
        placement = pl_module.placement
        with placement.whole() as student, torch.no_grad():
            student.eval()
            batches = map(strategy.batch_to_device, sample)
            read = ((b, *placement.student_states(b, plain=True), *placement.teacher_states(b)) for b in batches)
            several = partial(strategy.reduce, reduce_op="sum") if trainer.world_size > 1 else torch.clone
            objective.factor = divergence_factor(objective, read, pl_module.vocab_size, several)
        say(f"objective.match_gradient: the divergence is weighted by {objective.factor:.4g}")


class RoundLog(L.Callback):
    """TensorBoard: figures and a few revised sequences of each round; histograms of the clipping."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: TrainerConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self._logged: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"logged": self._logged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._logged = state_dict["logged"]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data.round is None or data.round == self._logged or not trainer.is_global_zero:
            return
        self._logged = data.round
        writer = _writer(trainer)
        for name, value in data.round_statistics.items():
            pl_module.logger.log_metrics({f"scrg/{name}": value}, trainer.global_step)  # type: ignore[union-attr]
        if writer is None:
            return
        positions = [c.position for entry in data.entries for c in entry.revised.corrections]
        if positions:
            writer.add_histogram("scrg/error_position", torch.tensor(positions), trainer.global_step)
        shown = [entry for entry in data.entries if entry.revised.corrections][: self.config.text_samples]
        for i, entry in enumerate(shown):
            text = markdown_revision(entry.revised, self.tokenizer)
            writer.add_text(f"scrg/revised_{i}", text, trainer.global_step)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        writer = _writer(trainer)
        if trainer.global_step % self.config.histogram_every_n_steps or writer is None:
            return
        assert isinstance(pl_module, DistillationModule)
        rows = pl_module.step_metrics.last_rows
        if rows is None or pl_module.objective.clip is None:
            return
        for name in ("lower", "upper", "retained_mass") if pl_module.clip is not None else ("retained_mass",):
            writer.add_histogram(f"dac/{name}_histogram", getattr(rows, name).float(), trainer.global_step)
        if pl_module.clip is None:
            return
        for name, value in spread_of_bounds(pl_module.clip, rows.lower, rows.upper).items():
            writer.add_scalar(f"dac/{name}", value, trainer.global_step)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, DistillationModule)
        data.note_likelihoods(pl_module.step_metrics.take_likelihoods())


def spread_of_bounds(clip: Any, lower: Tensor, upper: Tensor) -> dict[str, float]:
    """Do the learned bounds differ between tokens, or do all stand at a limit of their range?"""
    figures = {"lower_std": lower.std(correction=0), "upper_std": upper.std(correction=0)}
    figures.update({f"near_{limit}": share for limit, share in clip.limit_shares(lower, upper).items()})
    return {name: float(value) for name, value in figures.items()}


def _writer(trainer: L.Trainer) -> Any:
    """TensorBoard's writer on the rank that has one."""
    return getattr(trainer.logger, "experiment", None) if trainer.is_global_zero and trainer.logger else None


class StepProgress(L.Callback):
    """Optimiser steps done, of all: one bar over the stage in a terminal, plain lines elsewhere.

    Rounds of text and looks at the dev set show a bar of their own inside it. Their time counts: time left is that
    of the whole stage.

    Args:
        first_step: where the stage is taken up; the rate counts what this process does.
    """

    def __init__(self, total_steps: int, name: str, first_step: int = 0) -> None:
        self.total_steps, self.name, self.first_step = total_steps, name, first_step
        self._steps: Tracker | None = None
        self._dev: Tracker | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # the first round of text is written before on_train_start
        self._steps = Tracker(self.name, self.total_steps, unit="steps", first=self.first_step, every=15.0)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self._steps is not None:
            self._steps.move(trainer.global_step, lambda: _shown(trainer))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        predict = getattr(pl_module, "predict", None)
        if isinstance(predict, Predictor):
            self._dev = Tracker("dev set", len(predict.mine), unit="responses")
            predict.advance = self._dev.advance

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._dev is not None:
            self._dev.close()
            self._dev = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.on_validation_end(trainer, pl_module)
        if self._steps is not None:
            self._steps.close()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._steps is not None:
            self._steps.move(trainer.global_step)
            self._steps.close(lambda: _shown(trainer))


def _shown(trainer: L.Trainer) -> str:
    """The latest figures, for a line of progress."""
    metrics = trainer.callback_metrics
    names = {"train/loss": "loss", "val/loss": "dev loss", "val/rouge_l": "dev ROUGE-L"}
    return ", ".join(f"{word} {float(metrics[name]):.3f}" for name, word in names.items() if name in metrics)


class LetGo(L.Callback):
    """Drops gradients and the optimiser's state behind the last step: Lightning would move them to host memory."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            optimizer.zero_grad(set_to_none=True)
            optimizer.state.clear()


class CostLog(L.Callback):
    """Seconds, tokens and work of training steps, and seconds of the dev set; checkpointed, so that a resumed run
    counts on.

    Seconds are those of all devices together, as those of the rounds are.

    After every look at the dev set `cost/seconds`, `cost/tokens` and, of families whose arithmetic is known,
    `cost/tera_flops` say what had been spent until then, text included: arms can be compared at equal cost.
    """

    def __init__(self) -> None:
        self.meter = Meter(work={"trained_student": Work(), "read_teacher": Work()})
        self._before: dict[str, float] = {}
        self._start = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"totals": added(*gathered(self._own()))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if is_first():
            self._before = dict(state_dict["totals"])

    def _own(self) -> dict[str, float]:
        """Of this rank; the first one has what was spent before the run was taken up."""
        return added(self._before, self.meter.totals())

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._start = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        rows = () if batch.stands_in else range(len(batch.lengths))
        taught = rows if batch.uncached is None else batch.uncached.numbers
        if pl_module.teacher is None or not pl_module.objective.needs_teacher:
            taught = ()
        for name, some in (("trained_student", rows), ("read_teacher", taught)):
            for row in some:
                self.meter.work[name].read(batch.lengths[row], batch.answered[row])
        read = sum(batch.lengths[row] for some in (rows, taught) for row in some)
        self.meter.add("training", time.monotonic() - self._start, read)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.meter.add("validation", time.monotonic() - self._start)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, DistillationDataModule):
            return
        assert isinstance(pl_module, DistillationModule)
        spent = self.totals(data)
        # Lightning counts the steps of `val/` from 0: the two must meet
        step = trainer.global_step - 1
        if trainer.logger is None:
            return
        curves = {f"cost/{unit}": overall(spent, unit) for unit in ("seconds", "tokens")}
        flops = flops_of(spent, pl_module.student, pl_module.teacher)
        if flops is not None:
            curves["cost/tera_flops"] = flops / 1e12
        trainer.logger.log_metrics(curves, step)

    def totals(self, data: DistillationDataModule) -> dict[str, float]:
        """Everything until now, of all ranks, each of which has to ask; rounds of text tell their own part."""
        return added(*gathered(self._own()), round_costs(data.run_folder, data.round))


def build_callbacks(
    config: TrainerConfig,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: Length,
    val_every_n_epochs: int,
    name: str,
    stop: StopRequest,
    validates: bool,
    first_step: int = 0,
) -> list[L.Callback]:
    """The callbacks of a stage, which is taken up at `first_step`.

    `stop` is asked by signals, between two steps and by long work between them.
    """
    best: list[L.Callback] = [BestCheckpoint(folder)] if validates else []
    return [
        ResumePoint(folder, config.checkpoint_every_n_steps, stop, length),
        Mixture(),
        RoundLog(tokenizer, config),
        CostLog(),
        MatchGradient(),
        LetGo(),
        Validation(val_every_n_epochs, length.epochs),
        *best,
        StepProgress(length.total_steps, name, first_step),
    ]
