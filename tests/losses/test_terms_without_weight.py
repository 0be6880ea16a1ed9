"""A term of weight 0 is left out and not multiplied by 0: where it is infinite that would be NaN."""

from __future__ import annotations

import math

import pytest
import torch

from mgsr.losses import tiled_objective
from mgsr.losses.divergences import CLASSIC, DIVERGENCES
from mgsr.models.clip_network import ClipNetwork
from tests.losses import reference

ROWS, CLASSES = 6, 40
LABELS, SPANS = torch.tensor([1, 2, -100, 4, 0, 7]), torch.tensor([0, 0, -1, 1, 1, 1])
CLIPS = {
    "joint": lambda: ClipNetwork(sharpness=0.05),
    "priced": lambda: ClipNetwork(sharpness=0.05, objective="priced"),
    "tensors": lambda: tuple(torch.full((ROWS,), bound, requires_grad=True) for bound in (0.1, 0.8)),
    "numbers": lambda: (0.1, 0.8),
    "everything": lambda: (-1.0, 2.0),
}


class Problem:
    """Two models of which each excludes half of the classes behind the labels: every divergence is infinite."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.hidden = torch.randn(ROWS, 4).requires_grad_()
        self.weight = torch.randn(CLASSES, 4).requires_grad_()
        self.taught, self.teacher = torch.randn(ROWS, 4), torch.randn(CLASSES, 4)
        self.bias, self.teacher_bias = torch.zeros(CLASSES), torch.zeros(CLASSES)
        self.bias[8::2] = -math.inf
        self.teacher_bias[9::2] = -math.inf

    def run(self, weights, clip, **options):
        """The terms, and gradients of what is trained on: of the student, then of the clip."""
        terms = tiled_objective(
            self.hidden,
            self.weight,
            self.taught,
            self.teacher,
            LABELS,
            SPANS,
            clip=clip,
            weights=weights,
            student_bias=self.bias,
            teacher_bias=self.teacher_bias,
            **options,
        )
        bounds = clip.parameters() if isinstance(clip, torch.nn.Module) else clip or ()
        trained = [self.hidden, self.weight, *(bound for bound in bounds if isinstance(bound, torch.Tensor))]
        found = torch.autograd.grad(terms.total + terms.clip_penalty, trained, allow_unused=True)
        return terms, [torch.zeros(()) if grad is None else grad for grad in found]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (1.0, 0.0, 1.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("form", ["normalised", "literal"])
def test_an_infinite_dac_kl_without_weight_changes_nothing(clip, weights, temperature, form):
    infinite = 0
    for seed in range(8):
        problem = Problem(seed)
        terms, (hidden, weight, *bounds) = problem.run(
            weights, CLIPS[clip](), temperature=temperature, sharpness=0.05, form=form
        )
        infinite += not math.isfinite(terms.dac_kl)
        # another divergence without weight, which is finite, in its place
        _, expected = problem.run(weights, None, temperature=temperature, divergence="total_variation")
        torch.testing.assert_close(hidden, expected[0])
        torch.testing.assert_close(weight, expected[1])
        assert not any(bool(grad.any()) for grad in bounds), "what only that term trains gets a gradient of 0"
    assert infinite


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_an_infinite_divergence_without_weight_changes_nothing(name, temperature):
    problem = Problem(0)
    terms, got = problem.run((1.0, 0.0, 1.0), None, temperature=temperature, divergence=name)
    p, q = (
        reference.softmax((h @ w.T + b).detach().numpy(), temperature)
        for h, w, b in (
            (problem.taught, problem.teacher, problem.teacher_bias),
            (problem.hidden, problem.weight, problem.bias),
        )
    )
    values = {"symmetric_kl": 0.5, "jensen_shannon": 0.5, "skewed_forward_kl": 0.1, "skewed_reverse_kl": 0.1}
    kept = [i for i in range(ROWS) if LABELS[i] >= 0]
    if name in CLASSIC:
        expected = sum(reference.divergence(name, p[i], q[i], values.get(name, 0.0)) for i in kept) / len(kept)
        assert float(terms.dac_kl) == pytest.approx(expected, rel=1e-5)
    for mine, other in zip(
        got,
        problem.run((1.0, 0.0, 1.0), None, temperature=temperature, divergence="total_variation")[1],
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_an_infinite_cross_entropy_without_weight_changes_nothing(temperature):
    """A label that the student excludes."""
    problem = Problem(1)
    _, expected = problem.run((0.0, 1.0, 1.0), None, temperature=temperature, divergence="total_variation")
    problem.bias[int(LABELS[0])] = -math.inf
    terms, got = problem.run((0.0, 1.0, 1.0), None, temperature=temperature, divergence="total_variation")
    assert math.isinf(terms.sft) and math.isfinite(terms.total.detach())
    assert all(bool(torch.isfinite(grad).all()) for grad in got) and not torch.equal(got[0], expected[0])
