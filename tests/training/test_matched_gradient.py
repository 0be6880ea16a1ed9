"""`objective.match_gradient`: the divergence made as strong as forward KL, whatever the batches are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mgsr.config.schema import ExperimentConfig
from mgsr.losses import DIVERGENCES, Objective, dac_kl, forward_kl
from mgsr.losses.objective import Targets
from mgsr.losses.projection import OutputLayer
from mgsr.losses.reduction import TermCounts
from mgsr.training.callbacks import CostLog
from mgsr.training.step_metrics import divergence_factor
from mgsr.training.train import train

Make = Callable[..., ExperimentConfig]
EXACT = ("teacher.dtype=float64", "student.dtype=float64", "trainer.precision=64-true")


class OfABatch:
    """As much of a batch as the measurement reads."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 7, (2, 5), generator=draw)
        labels[0, :2] = -100
        truth = torch.ones(2, dtype=torch.bool)
        count = int((labels[:, 1:] != -100).sum())
        spans = torch.full((2, 5), -1)
        self.targets = Targets(labels, spans, truth, TermCounts(count, count, 0))
        self.states = [torch.randn(2, 5, 4, dtype=torch.float64, generator=draw) for _ in range(2)]


@pytest.mark.parametrize("name", ["reverse_kl", "jensen_shannon", "todi", "dac_kl"])
def test_the_factor_makes_gradients_to_the_logits_equally_large(name: str) -> None:
    draw = torch.Generator().manual_seed(9)
    layers = [OutputLayer(torch.randn(7, 4, dtype=torch.float64, generator=draw)) for _ in range(2)]
    batches = [OfABatch(seed) for seed in range(3)]
    clip = (0.1, 0.9) if name == "dac_kl" else None
    objective = Objective((1.0, 0.5, 1.0), clip, {"divergence": name, "sharpness": 0.05})
    read = [(b, b.states[0], layers[0], b.states[1], layers[1]) for b in batches]
    factor = divergence_factor(objective, read, 7)  # type: ignore[arg-type]

    def norm(divergence: Callable[..., Any]) -> float:
        total = 0.0
        for batch in batches:
            counted = batch.targets.labels[:, 1:] != -100
            logits = (batch.states[0][:, :-1] @ layers[0].weight.T).requires_grad_()
            taught = batch.states[1][:, :-1] @ layers[1].weight.T
            (grad,) = torch.autograd.grad(divergence(taught, logits)[counted].sum(), logits)
            total += float(grad.square().sum())
        return math.sqrt(total)

    own = DIVERGENCES.get(name) or (lambda t, s: dac_kl(t, s, 0.1, 0.9, sharpness=0.05).loss)
    assert factor == pytest.approx(norm(forward_kl) / norm(own), rel=1e-9)


def test_a_matched_run_says_its_factor_and_keeps_it(make_config: Make) -> None:
    words = ("objective.divergence=jensen_shannon", "objective.match_gradient=true", *EXACT)
    short = ("train.epochs=2", "scrg.enabled=false", "trainer.checkpoint_every_n_steps=2")
    metrics = train(make_config("arm=matched", *words, *short))
    factor = metrics["divergence_factor"]
    # Jensen-Shannon's gradient is a good deal smaller
    assert factor > 1.5
    by_hand = make_config("arm=by_hand", words[0], f"objective.w_dac={factor!r}", *EXACT, *short)
    again = train(by_hand)
    assert "divergence_factor" not in again
    assert again["result"]["test"]["rouge_l"] == pytest.approx(metrics["result"]["test"]["rouge_l"])
    assert again["val"]["loss"] == pytest.approx(metrics["val"]["loss"], rel=1e-9)


class Stop(Exception):
    """The end of a run that nobody asked for."""


@pytest.mark.parametrize("micro", [1, 3])
def test_the_factor_does_not_hang_on_micro_batches(make_config: Make, micro: int) -> None:
    words = ("objective.divergence=jensen_shannon", "objective.match_gradient=true", "scrg.enabled=false", *EXACT)
    short = ("train.epochs=1", "train.max_steps=1", "data.synthetic.dev_rows=9")
    whole = train(make_config("arm=whole", *words, *short))
    parts = train(make_config("arm=parts", f"train.micro_batch_size={micro}", *words, *short))
    assert parts["divergence_factor"] == pytest.approx(whole["divergence_factor"], rel=1e-9)


def test_a_resumed_run_has_the_factor_of_its_start(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("objective.divergence=jensen_shannon", "objective.match_gradient=true", "scrg.enabled=false")
    short = ("train.epochs=2", "trainer.checkpoint_every_n_steps=2", *EXACT)
    whole = train(make_config("arm=whole", *words, *short))
    config = make_config("arm=stopped", *words, *short)

    def stop_at_5(self: Any, trainer: Any, module: Any, *args: Any) -> None:
        if trainer.global_step == 5 and module.objective.match:
            raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(CostLog, "on_train_batch_start", stop_at_5)
        with pytest.raises(Stop):
            train(config)
    # by now the student is another, and so would a factor be
    resumed = train(config, resume=True)
    assert resumed["divergence_factor"] == whole["divergence_factor"]
    assert resumed["val"]["loss"] == pytest.approx(whole["val"]["loss"], rel=1e-9)
