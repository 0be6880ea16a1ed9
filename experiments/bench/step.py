"""The training step: mgsr's module under Lightning against a bare loop over the same batches.

The bare loop does the two forwards, the objective, backward, clipping, optimiser and schedule, and nothing else:
no Lightning, no logging, no data loading. Neither validates, writes text or saves within the time that is taken.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from experiments.bench.pair import demo_config, teacher_of
from mgsr.config.schema import ExperimentConfig
from mgsr.data.splits import read_split
from mgsr.models.output_layer import last_hidden, output_head
from mgsr.training.build import Job, build_job
from mgsr.training.callbacks import StepProgress
from mgsr.training.optim import build_optimizer
from mgsr.training.sft import prepare_student, shared_start
from mgsr.training.trainer import quiet_lightning


def config_of(steps: int) -> ExperimentConfig:
    """The demo's own steps, half of their text from a round before the first."""
    # 125 steps are an epoch of the demo's; what a round of more epochs costs to plan is not a step's cost
    return demo_config(f"train.max_steps={steps}", f"scrg.every_n_epochs={steps // 125 + 1}")


def job_of(config: ExperimentConfig, folder: Path) -> Job:
    """The main job as `mgsr train` builds it; nothing looks at a dev set."""
    train = read_split(config.data, "train")
    teacher = teacher_of(config)
    student = prepare_student(config, teacher, train)
    start = shared_start(config, teacher, student)
    return build_job(config, train, (), start, folder, torch.device("cpu"))


class Twin(L.Callback):
    """Before every step under Lightning, the same batch through a bare step of a second, equal job.

    A machine's speed changes from second to second; step by step both meet it alike. `light` are the seconds from
    the end of a bare step to the start of the next one: Lightning's step with everything around it.
    """

    def __init__(self, bare: Callable[[Any], float]) -> None:
        self.step = bare
        self.light: list[float] = []
        self.bare: list[float] = []
        self.losses: list[float] = []
        self.their_losses: list[torch.Tensor] = []
        self._end = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        start = time.perf_counter()
        if self._end:
            self.light.append(start - self._end)
        loss = self.step(batch)
        self._end = time.perf_counter()
        self.bare.append(self._end - start)
        self.losses.append(loss)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.their_losses.append(outputs["loss"])

    def check(self) -> None:
        """Every step's loss is the same in both.

        Raises:
            AssertionError: one differs by more than a thousandth.
        """
        for step, (mine, theirs) in enumerate(zip(self.losses, self.their_losses, strict=True)):
            assert abs(mine - float(theirs)) < 1e-3 * abs(mine), f"step {step}: losses {float(theirs)} and {mine}"


def bare_step(job: Job, config: ExperimentConfig, total_steps: int) -> Callable[[Any], float]:
    """Two forwards, objective, backward, clipping, optimiser, schedule: what any loop must do."""
    module = job.module
    student, teacher, objective = module.student.train(), module.teacher.eval(), module.objective
    optimizer, scheduler = build_optimizer(
        student, module.clip, config.train, clip_lr=config.clip.lr, total_steps=total_steps
    )

    def step(batch: Any) -> float:
        with torch.no_grad():
            taught = last_hidden(teacher, batch.input_ids)
        hidden = last_hidden(student, batch.input_ids)
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
        return float(terms.total.detach())

    return step


def both(steps: int, warm_up: int = 5) -> dict[str, Any]:
    """Seconds per step of both, TensorBoard and the step lines on.

    Raises:
        AssertionError: the two jobs did not see the same losses.
    """
    quiet_lightning()
    total = steps + warm_up
    config = config_of(total)
    with tempfile.TemporaryDirectory() as scratch:
        job, other = (job_of(config, Path(scratch) / name) for name in ("light", "bare"))
        twin = Twin(bare_step(other, config, total))
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=total,
            max_epochs=-1,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            gradient_clip_val=config.train.grad_clip,
            log_every_n_steps=1,
            logger=L.pytorch.loggers.TensorBoardLogger(scratch, name="", version=""),
            callbacks=[twin, StepProgress(total, "bench")],
            enable_model_summary=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            default_root_dir=scratch,
        )
        trainer.fit(job.module, job.data)
    twin.check()
    light, bare = twin.light[warm_up:], twin.bare[warm_up:-1]
    return {"seconds": [sum(light) / len(light)], "bare": [sum(bare) / len(bare)]}


CASES = {"both": both}
