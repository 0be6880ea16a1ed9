"""One stage of training: module + data + config -> a Lightning Trainer that runs, logs and checkpoints."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import DoublePrecision
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mgsr.config.load import flat_tree
from mgsr.config.schema import ExperimentConfig, TrainConfig
from mgsr.models import check_state, with_base
from mgsr.runtime.devices import is_out_of_memory, working_device
from mgsr.runtime.errors import DataError, RunInterruptedError, UserError
from mgsr.runtime.files import SUFFIX, refused, write_whole
from mgsr.runtime.ranks import agreed, barrier, is_first
from mgsr.training.callbacks import build_callbacks
from mgsr.training.checkpoint import (
    BEST,
    BestCheckpoint,
    DurableIO,
    best_is_missing,
    newest_whole,
    read_checkpoint,
    resume_points,
    step_of,
)
from mgsr.training.datamodule import DistillationDataModule
from mgsr.training.fsdp import build_strategy
from mgsr.training.launch import StopRequest, cluster_environment
from mgsr.training.module import DistillationModule
from mgsr.training.optim import CastOnce, Length

HPARAMS = "events.out.tfevents.0.hparams"
"""Written anew by every start of a run. TensorBoard takes the first session that it reads, and reads files by the
time in their names."""


def quiet_lightning() -> None:
    """Silence what Lightning says about things decided here on purpose."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for pattern in (
        ".*does not have many workers.*",
        ".*number of training batches.*is smaller than the logging interval.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*You're resuming from a checkpoint that ended before.*",
        ".*Found .* module.* in eval mode.*",
        ".*LeafSpec.*",
        ".*treespec.*",
        ".*set_vital.*",
        ".*Precision .* is not supported by the model summary.*",
        # reduced already, or the same on every rank
        ".*It is recommended to use `self.log.*sync_dist=True.*",
    ):
        warnings.filterwarnings("ignore", pattern)


def fit(
    config: ExperimentConfig,
    module: DistillationModule,
    data: DistillationDataModule,
    tokenizer: PreTrainedTokenizerBase,
    *,
    folder: Path,
    length: Length,
    name: str,
    stop: StopRequest,
    hyper_parameters: dict[str, Any] | None = None,
) -> Path | None:
    """Train until the stage's last step, from the resume point in `folder` if there is one.

    Args:
        folder: `checkpoints/` and TensorBoard's events go there.
        name: of the stage, for progress lines.
        stop: what signals ask, and how to go on; the same that `module` and its writers check.
        hyper_parameters: nested configuration for TensorBoard's HPARAMS tab.

    Returns:
        The best checkpoint by `val/rouge_l`; None where the module writes no dev set.
    """
    quiet_lightning()
    validates = module.predict is not None and bool(data.dev_rows)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    resume = agreed(newest_whole(folder) if is_first() else None)
    first_step = 0 if resume is None else step_of(resume)
    callbacks = build_callbacks(
        config.trainer,
        folder,
        tokenizer,
        length=length,
        val_every_n_epochs=config.evaluation.val_every_n_epochs,
        name=name,
        stop=stop,
        validates=validates,
        first_step=first_step,
    )
    kind, precision = working_device(config.trainer.accelerator).type, config.trainer.precision
    files = DurableIO(in_place=kind == "cpu")
    plugins: list[Any] = [files, cluster_environment(config.trainer)]
    casts: Any = None
    if config.trainer.strategy == "fsdp2" and precision == "64-true":
        # ModelParallelStrategy takes float64 by this way alone
        casts = DoublePrecision()
    elif precision.endswith("-mixed"):
        casts = CastOnce(precision, kind)
    plugins += [casts] if casts else []
    # what was logged behind the resume point is logged again: TensorBoard is told to forget the first time
    purge: dict[str, Any] = {"purge_step": first_step}
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False, **purge)
    trainer = L.Trainer(
        # not its own choice for `auto`: that would be MPS on a Mac
        accelerator=kind,
        devices=config.trainer.devices,
        num_nodes=config.trainer.num_nodes,
        strategy=build_strategy(config.trainer, unused_parameters=module.objective.has_idle_parameters),
        precision=None if casts else precision,  # type: ignore[arg-type]
        max_steps=length.total_steps,
        max_epochs=-1,
        accumulate_grad_batches=length.micro_batches,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        check_val_every_n_epoch=config.evaluation.val_every_n_epochs,
        limit_val_batches=1.0 if validates else 0,
        num_sanity_val_steps=0,
        # parts gathered there would stay without a gradient
        inference_mode=config.trainer.strategy != "fsdp2",
        gradient_clip_val=data.stage.grad_clip or None,
        # curves are thinned by the module, which knows optimiser steps
        log_every_n_steps=1,
        logger=logger,
        callbacks=callbacks,
        plugins=plugins,
        enable_model_summary=False,
        enable_progress_bar=False,
        enable_checkpointing=True,
        default_root_dir=folder,
    )
    if hyper_parameters is not None:
        _show_hyper_parameters(logger, folder, shown_values(hyper_parameters))
    try:
        trainer.fit(module, data, ckpt_path=None if resume is None else str(resume), weights_only=True)
        files.background.wait()
    except BaseException as error:
        if isinstance(error, Exception):
            # what was saved is there before the error is told; a stop names the step that a new start begins with
            with nullcontext() if isinstance(error, RunInterruptedError) else suppress(UserError):
                files.background.wait()
        # a stage that ends so is not torn down
        stop.unwatch()
        if isinstance(error, SystemExit):
            # so Lightning ends at a second Ctrl-C
            raise stop.ended() from None
        if not isinstance(error, (RuntimeError, MemoryError)) or not is_out_of_memory(error):
            raise
        raise _out_of_memory(name, module.section, data.stage, trainer.global_step) from error
    barrier("trained")
    best = folder / "checkpoints" / BEST
    if validates and not best.exists():
        # the last student's figures would stand for those of the best one
        raise best_is_missing(best)
    return best if validates else None


def chosen_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with a run's best student; where no dev set has chosen yet, the last one; None: none yet.

    Raises:
        UserError: the dev set has chosen a student whose checkpoint is missing, or all there are are damaged.
    """
    best = folder / "checkpoints" / BEST
    if best.exists():
        return best
    newest = newest_whole(folder)
    if newest is None:
        return None
    states = read_checkpoint(newest, map_location="meta").get("callbacks", {})
    scores = [s.get("score") for name, s in states.items() if name.startswith(BestCheckpoint.__qualname__)]
    if any(score is not None for score in scores):
        raise best_is_missing(best)
    return newest


def _out_of_memory(name: str, section: str, stage: TrainConfig, step: int) -> UserError:
    """What to lower. Whoever writes text halves its batches: this was a forward or backward of training."""
    ways = [f"lower {section}.micro_batch_size (now {stage.micro_batch_size})"] * (stage.micro_batch_size > 1)
    ways += [f"set {section}.gradient_checkpointing=true"] * (not stage.gradient_checkpointing)
    return UserError(f"{name}: out of memory at step {step}; {', '.join([*ways, 'shorten data.max_length'])}")


def load_student(student: PreTrainedModel, checkpoint: Path) -> dict[str, Any]:
    """Put the student's weights of a checkpoint into `student`; returns the checkpoint's other entries.

    Raises:
        DataError: it is damaged, or of another model.
    """
    try:
        content = read_checkpoint(checkpoint)
    except DataError as error:
        if checkpoint.name != BEST:
            raise
        if not resume_points(checkpoint.parent.parent):
            raise
        raise DataError(
            f"{error}; restore it (a copy of the last resume point under that name, with its {SUFFIX}, is the "
            "last student, not the best)"
        ) from None
    prefix = "student."
    weights = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    whole = with_base(weights, student)
    check_state(str(checkpoint), whole, student.state_dict())
    student.load_state_dict(whole)
    return content


def _show_hyper_parameters(logger: TensorBoardLogger, folder: Path, flat: dict[str, Any]) -> None:
    """Those of this start, also of a run that was made longer: TensorBoard would keep the first it has seen."""
    logger.hparams.update(flat)
    if is_first():
        (folder / logger.NAME_HPARAMS_FILE).unlink(missing_ok=True)
        content = event_file(flat, {"hp/rouge_l": float("nan")}, 0)
        write_whole(folder / HPARAMS, lambda file: file.write(content), kind="hparams")


def event_file(
    hyper_parameters: dict[str, Any],
    metrics: dict[str, float],
    step: int,
    curves: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> bytes:
    """Content of an event file of TensorBoard: curves, and an HPARAMS session as Lightning's logger writes it.

    Args:
        metrics: what the HPARAMS tab compares, at `step`; NaN where it is still to come.
        curves: name -> `steps` and `values`.

    Raises:
        UserError: the folder of temporary files cannot be written to.
    """
    try:
        with TemporaryDirectory() as aside:
            with SummaryWriter(aside) as writer:
                for tag, curve in (curves or {}).items():
                    for at, value in zip(curve["steps"], curve["values"], strict=True):
                        writer.add_scalar(tag, value, at)
                for tag, value in metrics.items():
                    if not math.isnan(value):
                        writer.add_scalar(tag, value, step)
                for summary in hparams(hyper_parameters, metrics):
                    writer.file_writer.add_summary(summary, step)
            (written,) = Path(aside).glob("events.*")
            return written.read_bytes()
    except OSError as error:
        raise refused(gettempdir(), error) from error


def shown_values(hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A nested configuration by dotted names, with values that the HPARAMS tab takes."""
    flat = flat_tree(hyper_parameters)
    return {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in flat.items()}
