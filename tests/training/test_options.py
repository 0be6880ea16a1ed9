"""Options run to their end; those of the training step do what they say, as seen from inside the step.

Here are options that neither the golden arms nor the baselines of the studies have.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
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
from tests.reading import weights

Make = Callable[..., ExperimentConfig]


@pytest.mark.parametrize(
    "overrides",
    [
        ["scrg.error_position=random", "scrg.teacher_token=argmax"],
        ["scrg.text=paired", "objective.divergence=todi", "objective.written_divergence=skewed_reverse_kl"],
        ["scrg.text=switched", "scrg.switch=recent_mean", "scrg.switch_window=2", "scrg.switch_factor=1.0"],
        ["mixture.kind=linear", "scrg.every_n_epochs=2"],
        ["mixture.kind=adaptive", "mixture.student_fraction_start=0.5", "mixture.replay_capacity=5"],
        ["clip.mode=fixed", "clip.lower=.inf", "clip.target=label"],
        ["clip.mode=fixed", "clip.keep_target=false", "clip.quantile=rank", "clip.upper=0.1"],
        ["objective.divergence=skewed_reverse_kl", "spans.chunker=fixed", "spans.relation=trace"],
        ["objective.temperature=2", "train.gradient_checkpointing=true", "train.micro_batch_size=3"],
        ["student.source=teacher", "student.keep_layers=[0]"],
        ["evaluation.temperature=0", "evaluation.val_every_n_epochs=2"],
    ],
    ids=",".join,
)
def test_an_option_runs_to_its_end(make_config: Make, overrides: list[str]) -> None:
    config = make_config("train.epochs=2", "train.batch_size=16", *overrides)
    metrics = train(config)
    assert metrics["steps"] == 4
    assert math.isfinite(metrics["val"]["loss"])
    assert all(bool(torch.isfinite(v).all()) for v in weights(run_folder(config)).values())


class Watcher(L.Callback):
    """Watches the distillation: weights at its ends, and every call of the first layer's projections."""

    def __init__(self) -> None:
        self.before: dict[str, torch.Tensor] = {}
        self.after: dict[str, torch.Tensor] = {}
        self.outputs: Counter[torch.dtype] = Counter()
        self.padding: list[tuple[int, int]] = []

    def trained(self, module: L.LightningModule) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, DistillationModule) or not pl_module.objective.needs_teacher:
            return
        self.before = self.trained(pl_module)
        for name, module in pl_module.student.named_modules():
            if name.endswith("layers.0.mlp.up_proj"):
                module.register_forward_hook(self._called)

    def _called(self, module: Any, inputs: Any, output: torch.Tensor) -> None:
        # of training alone: writing and looking at the dev set are in evaluation mode
        self.outputs[output.dtype] += module.training

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.before:
            tokens, slots = batch.tokens, batch.slots
            self.padding.append((slots - tokens, slots))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.before:
            self.after = self.trained(pl_module)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[ExperimentConfig], Watcher]:
    original = mgsr.training.trainer.build_callbacks

    def run(config: ExperimentConfig) -> Watcher:
        watcher = Watcher()

        def with_watcher(*args: Any, **kwargs: Any) -> Any:
            callbacks = original(*args, **kwargs)
            return [*callbacks, watcher]

        monkeypatch.setattr(mgsr.training.trainer, "build_callbacks", with_watcher)
        train(config)
        return watcher

    return run


@pytest.mark.parametrize(
    ("overrides", "dtype"),
    [
        ([], torch.float32),
        (["trainer.precision=bf16-mixed"], torch.bfloat16),
        (["trainer.precision=bf16-true"], torch.bfloat16),
        (["student.lora.r=2", "student.lora.target_modules=[q_proj]"], torch.float32),
    ],
    ids=["plain", "bf16-mixed", "bf16-true", "lora"],
)
def test_every_trained_weight_moves_in_the_precision_asked_for(
    make_config: Make, watched: Callable[..., Watcher], overrides: list[str], dtype: torch.dtype
) -> None:
    seen = watched(make_config("train.epochs=2", *overrides))
    assert set(seen.outputs) - {k for k, n in seen.outputs.items() if not n} == {dtype}
    assert all(bool(torch.isfinite(value).all()) for value in seen.after.values())
    moved = {name: not torch.equal(seen.before[name], value) for name, value in seen.after.items()}
    assert len(moved) > 2 and all(moved.values()), [name for name, yes in moved.items() if not yes]


def test_checkpointed_activations_are_computed_twice_and_change_nothing(
    make_config: Make, watched: Callable[..., Watcher]
) -> None:
    common = ("train.epochs=2", "trainer.grad_norm_every_n_steps=1000")
    both = [
        watched(make_config(f"arm=checkpointing_{on}", f"train.gradient_checkpointing={on}", *common))
        for on in ("false", "true")
    ]
    # 8 steps and, at the first one, three gradient norms; once more for every backward
    assert [seen.outputs[torch.float32] for seen in both] == [8 + 3, 2 * (8 + 3)]
    for name, value in both[0].after.items():
        torch.testing.assert_close(both[1].after[name], value, rtol=1e-5, atol=1e-7)


def test_buckets_waste_less_padding_and_the_curve_says_how_much(
    make_config: Make, watched: Callable[..., Watcher]
) -> None:
    shares = []
    for steps in (1, 4):
        config = make_config(f"arm=bucket_{steps}", "train.epochs=2", f"train.bucket_steps={steps}")
        seen = watched(config)
        log = EventAccumulator(str(run_folder(config)))
        log.Reload()
        curve = [event.value for event in log.Scalars("train/padding")]
        assert curve == pytest.approx([empty / slots for empty, slots in seen.padding], abs=1e-6)
        shares.append(sum(empty for empty, _ in seen.padding) / sum(slots for _, slots in seen.padding))
    assert 0 < shares[1] < shares[0]


def test_a_run_says_once_that_its_corrections_read_afresh(
    make_config: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Two rounds of several batches, each with writers of its own."""
    with caplog.at_level(logging.WARNING, logger="mgsr.generation.language_model"):
        train(make_config("train.epochs=2", "scrg.max_cache_slots=1", "scrg.batch_size=4"))
    assert [record.message for record in caplog.records] == [
        "corrections read their prefixes afresh: rows may outgrow max_cache_slots=1"
    ]
