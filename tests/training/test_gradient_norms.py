"""`grad_norm/<term>`: of the gradient of a whole optimiser step, whatever part of it a micro-batch holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from mgsr.config.schema import ExperimentConfig
from mgsr.losses import Weights
from mgsr.study.pool import read_curves
from mgsr.training.run_folder import run_folder
from mgsr.training.step_metrics import term_gradient_norms
from mgsr.training.train import train

Make = Callable[..., ExperimentConfig]
EXACT = ("teacher.dtype=float64", "student.dtype=float64", "trainer.precision=64-true")


def test_micro_batches_give_the_norms_of_the_whole_step(make_config: Make) -> None:
    """Rows lie by length: the first micro-batch has the shortest, and may have no ground truth at all."""
    curves = {}
    for micro in (8, 3, 1):
        words = ("train.epochs=2", "train.max_steps=5", "trainer.grad_norm_every_n_steps=2", *EXACT)
        config = make_config(f"arm=micro_{micro}", f"train.micro_batch_size={micro}", *words)
        train(config)
        curves[micro] = {k: v for k, v in read_curves(run_folder(config)).items() if k.startswith("grad_norm/")}
    assert set(curves[8]) == {"grad_norm/sft", "grad_norm/dac_kl", "grad_norm/span"}
    for micro in (3, 1):
        for name, curve in curves[8].items():
            assert curves[micro][name]["steps"] == curve["steps"] == [0, 2, 4]
            assert curves[micro][name]["values"] == pytest.approx(curve["values"], rel=1e-4, abs=1e-12), name


def terms(x: Tensor, parts: Sequence[tuple[float, float, float]]) -> Callable[[Weights], Iterator[Tensor]]:
    """Micro-batches whose three terms are multiples of x's sum."""
    return lambda weights: (sum(w * c for w, c in zip(weights, part, strict=True)) * x.sum() for part in parts)


def test_gradients_are_added_before_their_norm_is_taken() -> None:
    x, idle = torch.ones(4, requires_grad=True), torch.ones(2, requires_grad=True)
    # 3 - 3 is no gradient at all, and 1 + 2 is one of 3
    losses = terms(x, [(3.0, 1.0, 5.0), (-3.0, 2.0, 7.0)])
    norms = term_gradient_norms(losses, (1.0, 10.0, 0.0), [x, idle])
    assert {name: float(norm) for name, norm in norms.items()} == {"sft": 0.0, "dac_kl": 60.0}


def test_every_rank_reduces_every_parameter() -> None:
    """A rank whose rows do not reach a term's parameters has to wait for the others all the same."""
    x, idle = torch.ones(4, requires_grad=True), torch.ones(2, requires_grad=True)
    shapes = []

    def reduce(gradient: Tensor) -> Tensor:
        shapes.append(tuple(gradient.shape))
        return gradient + 1.0

    norms = term_gradient_norms(terms(x, [(0.0, 0.0, 1.0)]), (0.0, 0.0, 1.0), [x, idle], reduce)
    assert shapes == [(4,), (2,)]
    assert float(norms["span"]) == pytest.approx((4 * 2.0**2 + 2 * 1.0) ** 0.5)
