"""The training step: mgsr's module under Lightning against a bare loop over the same batches.

The bare loop does the two forwards, the objective, backward, clipping, optimiser and schedule, and nothing else:
no Lightning, no logging, no data loading. Neither validates, writes text or saves within the time that is taken.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from experiments.bench.pair import demo_config
from mgsr.callbacks import StepProgress
from mgsr.datamodule import DistillationDataModule
from mgsr.fitting import quiet_lightning
from mgsr.heads import last_hidden, output_head
from mgsr.job import Job, build_job, shared_vocabulary
from mgsr.material import read_split
from mgsr.optimisation import build_optimizer
from mgsr.schema import ExperimentConfig
from mgsr.stages import prepare_student, prepare_teacher

WARM_UP = 5


def config_of(steps: int, *overrides: str) -> ExperimentConfig:
    """Ground truth alone: what a step costs does not depend on who wrote its text."""
    return demo_config(f"train.max_steps={steps + WARM_UP}", "scrg.enabled=false", *overrides)


def job_of(config: ExperimentConfig, folder: Path) -> Job:
    """The main job as `mgsr train` builds it; nothing looks at a dev set."""
    dev, train = read_split(config.data, "dev"), read_split(config.data, "train")
    teacher = prepare_teacher(config, dev)
    student = prepare_student(config, teacher, train, dev)
    return build_job(config, train, (), teacher, student, shared_vocabulary(teacher, student), folder)


class Clock(L.Callback):
    """Seconds from the end of the warm-up to the end of the last step."""

    start = stop = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == WARM_UP and not self.start:
            self.start = time.perf_counter()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.stop = time.perf_counter()


def lightning_steps(steps: int, *overrides: str) -> dict[str, Any]:
    """Seconds per step under Lightning, TensorBoard and the step lines on."""
    quiet_lightning()
    config = config_of(steps, *overrides)
    with tempfile.TemporaryDirectory() as scratch:
        job = job_of(config, Path(scratch))
        clock = Clock()
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=steps + WARM_UP,
            max_epochs=-1,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            gradient_clip_val=config.train.grad_clip,
            log_every_n_steps=1,
            logger=L.pytorch.loggers.TensorBoardLogger(scratch, name="", version=""),
            callbacks=[clock, StepProgress(steps + WARM_UP, "bench")],
            enable_model_summary=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            default_root_dir=scratch,
        )
        trainer.fit(job.module, job.data)
        loss = float(trainer.callback_metrics["train/loss"])
    return {"seconds": [(clock.stop - clock.start) / steps], "loss": loss}


def bare_steps(steps: int, *overrides: str) -> dict[str, Any]:
    """Seconds per step of the bare loop."""
    config = config_of(steps, *overrides)
    with tempfile.TemporaryDirectory() as scratch:
        job = job_of(config, Path(scratch))
    module = job.module
    batches = _batches(job.data, steps + WARM_UP)
    student, teacher, objective = module.student.train(), module.teacher.eval(), module.objective
    optimizer, scheduler = build_optimizer(
        student, module.clip, config.train, clip_lr=config.clip.lr, total_steps=steps + WARM_UP
    )
    start = 0.0
    for number, batch in enumerate(batches):
        if number == WARM_UP:
            start = time.perf_counter()
        with torch.no_grad():
            taught = last_hidden(teacher, batch.input_ids, batch.attention_mask)
        hidden = last_hidden(student, batch.input_ids, batch.attention_mask)
        terms = objective(
            batch,
            hidden,
            output_head(student),
            taught,
            output_head(teacher),
            vocab_size=module.vocab_size,
        )
        optimizer.zero_grad()
        (terms.total + terms.clip_penalty).backward()
        nn.utils.clip_grad_norm_(student.parameters(), config.train.grad_clip)
        nn.utils.clip_grad_norm_(module.clip.parameters(), config.train.grad_clip)
        optimizer.step()
        scheduler.step()
    seconds = time.perf_counter() - start
    return {"seconds": [seconds / steps], "loss": float(terms.total.detach())}


class _Epoch:
    """As much of a trainer as the data module asks when it plans an epoch."""

    global_rank, world_size = 0, 1


def _batches(data: DistillationDataModule, number: int) -> list[Any]:
    data.trainer = _Epoch()  # type: ignore[assignment]
    batches: list[Any] = []
    epoch = 0
    while len(batches) < number:
        batches += list(data._loader(data.plan_epoch(epoch)))
        epoch += 1
    return batches[:number]


CASES = {"lightning": lightning_steps, "bare": bare_steps}
