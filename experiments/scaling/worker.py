"""One rank of one measurement: training steps and a round of text, timed by part.

Started by torchrun; the first rank prints one line of JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.profiler import ProfilerActivity, profile

import mgsr.training.trainer
from mgsr.config.load import load_config
from mgsr.rounds.store import read_manifest
from mgsr.runtime.ranks import is_first
from mgsr.training.callbacks import build_callbacks
from mgsr.training.launch import joined
from mgsr.training.train import train

WARM, PROFILED = 8, 5
BASE = Path(__file__).parents[2] / "configs" / "demo.yaml"
# the demo's data and larger models, not trained before: what is measured is time
SIZES = [
    "experiment=scaling",
    "arm=measured",
    "data.synthetic.teacher_rows=2000",
    "data.synthetic.train_rows=512",
    "data.synthetic.dev_rows=2",
    "data.synthetic.test_rows=2",
    "data.synthetic.vocab_size=2048",
    "teacher.sft.enabled=false",
    "teacher.architecture.hidden_size=256",
    "teacher.architecture.num_layers=6",
    "teacher.architecture.num_heads=8",
    "teacher.architecture.intermediate_size=0",
    "student.sft.enabled=false",
    "student.architecture.hidden_size=128",
    "student.architecture.num_layers=4",
    "student.architecture.intermediate_size=0",
    "scrg.max_new_tokens=24",
    "scrg.batch_size=128",
    "scrg.every_n_epochs=10",
    "train.max_steps=40",
    "evaluation.seeds=[10]",
    "evaluation.max_new_tokens=4",
    "evaluation.val_every_n_epochs=100",
    "trainer.grad_norm_every_n_steps=1000",
    "trainer.histogram_every_n_steps=1000",
    "trainer.log_every_n_steps=1000",
]


class Parts(L.Callback):
    """Seconds of every step by part; the last steps under the profiler, which tells when gloo was at work."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.steps: list[dict[str, float]] = []
        self.collectives = 0.0
        self._last = 0.0
        self._profile: Any = None

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self.steps[-1][name] = now - self._last
        self._last = now

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.total - PROFILED:
            self._profile = profile(activities=[ProfilerActivity.CPU])
            self._profile.__enter__()
        self.steps.append({})
        self._last = time.perf_counter()

    def on_before_backward(self, *args: Any) -> None:
        self._lap("forward and objective")

    def on_after_backward(self, *args: Any) -> None:
        self._lap("backward, with its collectives")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._lap("optimiser and figures")
        if trainer.global_step == self.total and self._profile is not None:
            self._profile.__exit__(None, None, None)
            spent = (e.device_time_total or e.cpu_time_total for e in self._profile.key_averages() if _gloo(e.key))
            self.collectives = sum(spent) / 1e6 / PROFILED
            self._profile = None

    def figures(self) -> dict[str, float]:
        """Medians over the steps between warm-up and profiler."""
        measured = self.steps[WARM : self.total - PROFILED]
        parts = {name: statistics.median(step[name] for step in measured) for name in measured[0]}
        return {**parts, "collectives under way": self.collectives}


def _gloo(name: str) -> bool:
    return name.startswith("gloo:")


def main(overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        # every rank has to see the same folder
        root = next((o for o in overrides if o.startswith("run_root=")), f"run_root={scratch}")
        config = load_config(BASE, [*SIZES, *overrides, root])
        parts = Parts(config.train.max_steps)
        build: Callable[..., Any] = build_callbacks

        def with_parts(*arguments: Any, **options: Any) -> Any:
            callbacks = build(*arguments, **options)
            return [*callbacks, parts]

        mgsr.training.trainer.build_callbacks = with_parts  # type: ignore[assignment]
        torch.set_num_threads(1)
        with joined(config.trainer):
            train(config)
            if is_first():
                folder = Path(config.run_root) / config.experiment / config.arm / f"seed={config.seed}"
                costs = (read_manifest(folder / "scrg" / "round=0") or {})["costs"]
                metrics = json.loads((folder / "metrics.json").read_text())
                tokens = metrics["costs"]["tokens_training"] / config.train.max_steps
                # of all devices together
                devices = config.trainer.devices
                round_seconds = (costs["seconds_generation"] + costs["seconds_scoring"]) / devices
                found = {"parts": parts.figures(), "tokens_per_step": tokens, "round_seconds": round_seconds}
                print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
