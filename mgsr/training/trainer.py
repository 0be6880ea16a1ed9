"""One stage of training: module + data + config -> a Lightning Trainer that runs, logs and checkpoints."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import DoublePrecision
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mgsr.config.load import flat_tree
from mgsr.config.schema import ExperimentConfig, TrainConfig
from mgsr.models import check_state, with_base
from mgsr.runtime.devices import is_out_of_memory, working_device
from mgsr.runtime.errors import DataError, UserError
from mgsr.runtime.ranks import agreed, barrier, is_first
from mgsr.training.callbacks import build_callbacks
from mgsr.training.checkpoint import (
    BEST,
    DurableIO,
    StopRequest,
    newest_whole,
    read_checkpoint,
    resume_points,
    step_of,
)
from mgsr.training.datamodule import DistillationDataModule
from mgsr.training.fsdp import build_strategy
from mgsr.training.launch import cluster_environment
from mgsr.training.module import DistillationModule
from mgsr.training.optim import Length


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
    callbacks = build_callbacks(
        config.trainer,
        folder,
        tokenizer,
        length=length,
        val_every_n_epochs=config.evaluation.val_every_n_epochs,
        name=name,
        stop=stop,
        validates=validates,
    )
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    resume = agreed(newest_whole(folder) if is_first() else None)
    plugins: list[Any] = [DurableIO(), cluster_environment(config.trainer)]
    # ModelParallelStrategy takes float64 by this way alone
    double = config.trainer.strategy == "fsdp2" and config.trainer.precision == "64-true"
    if double:
        plugins.append(DoublePrecision())
    # what was logged behind the resume point is logged again: TensorBoard is told to forget the first time
    purge: dict[str, Any] = {"purge_step": 0 if resume is None else step_of(resume)}
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False, **purge)
    trainer = L.Trainer(
        # not its own choice for `auto`: that would be MPS on a Mac
        accelerator=working_device(config.trainer.accelerator).type,
        devices=config.trainer.devices,
        num_nodes=config.trainer.num_nodes,
        strategy=build_strategy(config.trainer, unused_parameters=module.objective.has_idle_parameters),
        precision=None if double else config.trainer.precision,  # type: ignore[arg-type]
        max_steps=length.total_steps,
        max_epochs=-1,
        accumulate_grad_batches=length.micro_batches,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        check_val_every_n_epoch=config.evaluation.val_every_n_epochs,
        limit_val_batches=1.0 if validates else 0,
        num_sanity_val_steps=0,
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
        logger.log_hyperparams(_plain(flat_tree(hyper_parameters)), {"hp/rouge_l": float("nan")})
    try:
        trainer.fit(module, data, ckpt_path=None if resume is None else str(resume), weights_only=True)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _out_of_memory(name, module.section, data.stage, trainer.global_step) from error
    barrier("trained")
    best = folder / "checkpoints" / BEST
    return best if best.exists() else None


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
        raise DataError(f"{error}; delete it to take the student of the last resume point instead") from None
    prefix = "student."
    weights = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    whole = with_base(weights, student)
    check_state(str(checkpoint), whole, student.state_dict())
    student.load_state_dict(whole)
    return content


def _plain(flat: dict[str, Any]) -> dict[str, Any]:
    """Values that the HPARAMS tab takes."""
    return {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in flat.items()}
