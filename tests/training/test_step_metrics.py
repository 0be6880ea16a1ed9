"""What a user's own callback finds in `trainer.callback_metrics` while a run trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mgsr.training.trainer
from mgsr.config.schema import ExperimentConfig
from mgsr.training.module import DistillationModule
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train

CURVES = (
    *("train/loss", "train/loss_sft", "train/loss_dac_kl", "train/loss_span", "train/padding"),
    *("train/grad_norm", "train/grad_norm_clip", "dac/lower", "dac/upper", "dac/retained_mass"),
    *("grad_norm/sft", "grad_norm/dac_kl", "grad_norm/span"),
)


class Reader(L.Callback):
    """Notes after every optimiser step of the distillation what it finds."""

    def __init__(self) -> None:
        self.found: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, DistillationModule)
        if pl_module.objective.needs_teacher:
            self.found[trainer.global_step - 1] = dict(trainer.callback_metrics)


def test_callbacks_find_the_last_point_of_every_curve(
    make_config: Callable[..., ExperimentConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, original = Reader(), mgsr.training.trainer.build_callbacks

    def with_reader(*args: Any, **kwargs: Any) -> Any:
        callbacks = original(*args, **kwargs)
        return [*callbacks, reader]

    monkeypatch.setattr(mgsr.training.trainer, "build_callbacks", with_reader)
    config = make_config("train.epochs=2", "trainer.log_every_n_steps=3")
    train(config)
    log = EventAccumulator(str(run_folder(config)))
    log.Reload()
    assert list(reader.found) == list(range(8))
    for name in CURVES:
        points = {event.step: event.value for event in log.Scalars(name)}
        assert set(points) == ({0, 4} if name.startswith("grad_norm/") else {0, 3, 6})
        for step, found in reader.found.items():
            assert isinstance(found[name], torch.Tensor)
            assert float(found[name]) == points[max(at for at in points if at <= step)], (name, step)
    # the dev set's figures, looked at between the two epochs, stand beside them
    assert {"val/loss", "val/rouge_l"} <= set(reader.found[4])
