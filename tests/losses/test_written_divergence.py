"""One divergence on ground truth and another on written text, as in DistiLLM-2."""

from __future__ import annotations

import pytest
import torch

from mgsr.losses import (
    DIVERGENCES,
    cross_entropy,
    forward_kl,
    global_mean,
    skewed_forward_kl,
    skewed_reverse_kl,
    tiled_objective,
)
from tests.losses.dense import Problem

PAIRS = {
    "distillm2": ("skewed_forward_kl", "skewed_reverse_kl", {"detach": True}),
    "without closed forms": ("todi", "alpha_beta", {}),
    "mixed": ("forward_kl", "veto", {"beta": 0.3}),
}


@pytest.mark.parametrize("tile_size", [1, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", PAIRS)
def test_every_row_has_its_own(name, temperature, tile_size):
    first, second, options = PAIRS[name]
    problem = Problem()
    named = {"divergence": first, "written_divergence": second, "written_kwargs": options}
    shared = {"temperature": temperature, "sft_mask": problem.truth, "tile_size": tile_size}
    got = tiled_objective(*problem.arguments, weights=(0.5, 1.0, 0.0), collect_rows=True, **named, **shared)
    student, teacher = problem.hidden @ problem.weight.T, problem.taught @ problem.teacher.T
    values = torch.where(
        problem.truth,
        DIVERGENCES[first](teacher, student, temperature=temperature),
        DIVERGENCES[second](teacher, student, temperature=temperature, **options),
    )
    keep = problem.labels != -100
    nll = global_mean(cross_entropy(student, problem.labels), keep & problem.truth)
    want = 0.5 * nll + global_mean(values, keep)
    torch.testing.assert_close(got.total, want, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(got.rows.dac_kl, values[keep].detach(), rtol=1e-9, atol=1e-12)
    for mine, other in zip(
        *(torch.autograd.grad(loss, problem.inputs) for loss in (got.total, want)), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-11)


def test_an_infinite_value_of_the_one_does_not_reach_the_other():
    """A class that the student lacks makes forward KL infinite, and a skewed divergence not."""
    rows, classes = 4, 6
    draw = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(rows, classes, dtype=torch.float64, generator=draw) for _ in range(2))
    student.requires_grad_()
    bias = torch.zeros(classes, dtype=torch.float64)
    bias[2] = -torch.inf
    eye, truth = torch.eye(rows, dtype=torch.float64), torch.tensor([False, False, False, True])
    given = (eye, student.T, eye, teacher.T, torch.zeros(rows, dtype=torch.long), None)
    named = {"divergence": "forward_kl", "written_divergence": "skewed_forward_kl", "sft_mask": truth}
    got = tiled_objective(*given, weights=(0, 1, 0), student_bias=bias, collect_rows=True, **named)
    biased = student + bias
    want = skewed_forward_kl(teacher, biased)[:3]
    torch.testing.assert_close(got.rows.dac_kl[:3], want.detach())
    assert got.rows.dac_kl[3] == torch.inf == forward_kl(teacher, biased)[3]
    (grad,) = torch.autograd.grad(got.total, student)
    (wanted,) = torch.autograd.grad(want.sum() / rows, student)
    torch.testing.assert_close(grad[:3], wanted[:3])


def test_detached_skewed_reverse_kl_is_the_definition():
    problem = Problem()
    named = {"divergence": "skewed_reverse_kl", "divergence_kwargs": {"detach": True, "alpha": 0.3}}
    got = tiled_objective(*problem.arguments, weights=(0.0, 1.0, 0.0), tile_size=7, **named)
    student, teacher = problem.hidden @ problem.weight.T, problem.taught @ problem.teacher.T
    want = global_mean(skewed_reverse_kl(teacher, student, alpha=0.3, detach=True), problem.labels != -100)
    for mine, other in zip(
        *(torch.autograd.grad(loss, problem.inputs) for loss in (got.total, want)), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"written_divergence": "forward_kl"}, "beside another divergence than dac_kl"),
        ({"divergence": "todi", "written_divergence": "dac_kl"}, "beside another divergence than dac_kl"),
        ({"divergence": "todi", "written_divergence": "nothing"}, "must be one of forward_kl"),
    ],
)
def test_what_does_not_go_together_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        tiled_objective(*Problem().arguments, clip=(0.1, 0.9), **options)
