"""AdamW with its parameter groups, the schedule, autocast, and what follows from the sizes of a stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from mgsr.config.schema import TrainConfig
from mgsr.data.sampler import micro_batches_per_step, steps_per_epoch
from mgsr.runtime.devices import NARROW
from mgsr.runtime.errors import ConfigError


@dataclass(frozen=True)
class Length:
    """How long a stage trains: from the config alone, so that nothing has to ask the trainer for it."""

    steps_per_epoch: int
    total_steps: int
    epochs: int
    micro_batches: int


def training_length(train: TrainConfig, rows: int, world_size: int) -> Length:
    """Steps and epochs of `rows` training prompts.

    Raises:
        ConfigError: no rows.
    """
    micro_batches = micro_batches_per_step(train.batch_size, train.micro_batch_size, world_size)
    per_epoch = steps_per_epoch(rows, train.batch_size)
    if per_epoch == 0:
        raise ConfigError(
            "`data.train`: no training rows are left; give rows that fit `data.max_length`", "data.train"
        )
    total = train.max_steps or per_epoch * train.epochs
    return Length(per_epoch, total, math.ceil(total / per_epoch), micro_batches)


def schedule(step: int, *, total_steps: int, warmup_ratio: float, min_lr_ratio: float) -> float:
    """Linear warm-up, then a cosine down to `min_lr_ratio` at the last step; a factor on the peak rate.

    >>> [round(schedule(s, total_steps=4, warmup_ratio=0.5, min_lr_ratio=0.0), 2) for s in range(5)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warmup = math.ceil(warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * done))


def build_optimizer(
    student: nn.Module,
    clip: nn.Module | None,
    train: TrainConfig,
    *,
    clip_lr: float,
    total_steps: int,
    fused: bool = False,
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW over the student's and the clip network's parameters, each with its own rate and decay.

    Args:
        fused: one kernel per group, for GPUs; its last digits are others than those of the plain one.
    """
    trained = [p for p in student.parameters() if p.requires_grad]
    cosine = partial(
        schedule, total_steps=total_steps, warmup_ratio=train.warmup_ratio, min_lr_ratio=train.min_lr_ratio
    )
    candidates: list[tuple[dict[str, Any], Callable[[int], float]]] = [
        ({"params": [p for p in trained if p.dim() >= 2], "weight_decay": train.weight_decay}, cosine),
        # gains and biases are not decayed: it would pull them to 0, not towards a simpler function
        ({"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0}, cosine),
    ]
    if clip is not None:
        # the network follows a student that keeps changing: its rate stays constant
        candidates.append(
            ({"params": list(clip.parameters()), "weight_decay": 0.0, "lr": clip_lr}, lambda step: 1.0)
        )
    groups = [pair for pair in candidates if pair[0]["params"]]
    optimizer = torch.optim.AdamW(
        [g for g, _ in groups], lr=train.lr, betas=(train.betas[0], train.betas[1]), fused=fused or None
    )
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, [s for _, s in groups])


def scales_gradients(trainer: Any) -> bool:
    """Whether a scaler of float16 gradients provokes overflows, and skips the steps that have one itself."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def takes_fused(trainer: Any) -> bool:
    """Whether AdamW is fused: on NVIDIA's GPUs, unless it would unscale gradients itself, behind our clipping."""
    return trainer.strategy.root_device.type == "cuda" and not scales_gradients(trainer)


def use_fused(states: Iterable[dict[str, Any]], fused: bool) -> None:
    """Make optimiser states go on as this machine wants it, whatever the one did that wrote them."""
    for state in states:
        for group in state["param_groups"]:
            group["fused"] = fused or None


class CastOnce(MixedPrecision):
    """Autocast that casts the weights once per optimiser step, and not anew in every micro-batch.

    Lightning's keeps nothing that it has cast. Autocast itself lets go of it where the outermost context ends: one
    that is off stands around all micro-batches of a step, and ends before the weights change.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._step = ExitStack()
        self._within = False

    def autocast_context_manager(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=NARROW[self.precision])

    @contextmanager
    def train_step_context(self) -> Iterator[None]:
        if not self._within:
            self._step.enter_context(torch.autocast(self.device, enabled=False))
            self._within = True
        with super().train_step_context():
            yield

    def _after_closure(self, *args: Any, **kwargs: Any) -> None:
        self._end_step()
        super()._after_closure(*args, **kwargs)

    def teardown(self) -> None:
        # also behind an error within a step
        self._end_step()
        super().teardown()

    def _end_step(self) -> None:
        self._step.close()
        self._within = False
