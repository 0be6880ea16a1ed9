from __future__ import annotations

import math

import pytest
import torch

from mgsr.losses import tiled_objective
from mgsr.models.clip_network import ClipNetwork
from tests.losses import reference
from tests.losses.dense import WEIGHTS, Problem, assert_same, dense_objective

INF = math.inf


def network(seed=0, **options):
    torch.manual_seed(seed)
    net = ClipNetwork(features=8, hidden=8, sharpness=0.02, **options).double()
    torch.nn.init.normal_(net.outer.weight)
    return net


@pytest.mark.parametrize("classes", [5, 37, 300])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("target", ["argmax", "label"])
def test_learned_bounds(shallow, classes, temperature, target):
    net, problem = network(), Problem(classes=classes, seed=2)
    assert_same(
        problem,
        net,
        extra=net.parameters(),
        tiles=(1, 7, 100),
        temperature=temperature,
        target=target,
        sharpness=0.02,
    )


@pytest.mark.parametrize("classes", [37, 300])
def test_the_price_reaches_the_network_alone(shallow, classes):
    net, problem = network(objective="priced", mass_price=0.8), Problem(classes=classes, seed=3)
    _, _, clipped = dense_objective(problem, net, sharpness=0.02)
    want = torch.autograd.grad(0.7 * 0.8 * clipped, list(net.parameters()))
    got = tiled_objective(*problem.arguments, clip=net, weights=WEIGHTS, tile_size=6)
    assert got.clip_penalty.item() == pytest.approx(0.7 * 0.8 * clipped.item(), rel=1e-7)
    grads = torch.autograd.grad(
        got.clip_penalty, [*problem.inputs, *net.parameters()], retain_graph=True, allow_unused=True
    )
    assert grads[0] is None and grads[1] is None
    for mine, other in zip(grads[2:], want, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)
        assert other.abs().max() > 1e-7
    # total is without the price
    joint = tiled_objective(*problem.arguments, clip=network(), weights=WEIGHTS)
    torch.testing.assert_close(got.total, joint.total)
    assert joint.clip_penalty.item() == 0.0
    both = torch.autograd.grad(got.total + got.clip_penalty, list(net.parameters()), retain_graph=True)
    alone = torch.autograd.grad(got.total, list(net.parameters()))
    for sum_, total, penalty in zip(both, alone, grads[2:], strict=True):
        torch.testing.assert_close(sum_, total + penalty)


def test_tensor_bounds_get_their_gradient():
    problem = Problem()
    lower = torch.linspace(0.05, 0.3, 41, dtype=torch.float64).requires_grad_()
    upper = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    assert_same(problem, (lower, upper), extra=(lower, upper), tiles=(5,), sharpness=0.1)


@pytest.mark.parametrize("rows", [1, 2, 40, 41])
@pytest.mark.parametrize("size", [1, 2, 7, 13, 41, 1000, None])
def test_tile_boundaries(rows, size):
    problem = Problem(rows=rows, seed=4)
    problem.labels.clamp_min_(0)
    problem.spans = torch.arange(rows) // 5
    assert_same(problem, (0.1, 0.9), tiles=(size,))


@pytest.mark.parametrize("clip", [(0.1, 0.9), (-INF, 0.95), "net"])
def test_float32(shallow, clip):
    problem = Problem(classes=300, dtype=torch.float32, seed=5)
    if clip != "net":
        assert_same(problem, clip, rtol=1e-5)
        return
    net = network().float()
    assert_same(problem, net, extra=net.parameters(), rtol=1e-5, sharpness=0.02)


def test_terms_against_numpy():
    problem = Problem(rows=23, seed=6)
    got = tiled_objective(*problem.arguments, clip=(0.1, 0.8), sft_mask=problem.truth, tile_size=4)
    want = reference.objective(
        (problem.taught @ problem.teacher.T).numpy(),
        (problem.hidden @ problem.weight.T).detach().numpy(),
        problem.labels.tolist(),
        problem.spans.tolist(),
        0.1,
        0.8,
        problem.truth.tolist(),
    )
    assert [got.sft.item(), got.dac_kl.item(), got.span.item()] == pytest.approx(want, rel=1e-9)
    assert got.total.item() == pytest.approx(sum(want), rel=1e-9)


def test_gradcheck_through_the_tiles():
    problem = Problem(rows=9, classes=11, seed=7, hidden=(3, 3))

    def function(hidden, weight, lower):
        arguments = (hidden, weight, *problem.arguments[2:])
        return tiled_objective(*arguments, clip=(lower, 0.8), sharpness=0.1, tile_size=4).total

    lower = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (*problem.inputs, lower))


@pytest.mark.parametrize("classes", [37, 300])
@pytest.mark.parametrize("target", ["argmax", "label"])
@pytest.mark.parametrize("teacher", ["equal", "two levels", "certain", "absent"])
@pytest.mark.parametrize("student", ["wrong", "equal", "absent"])
def test_ties_and_extreme_logits(shallow, classes, target, teacher, student):
    # a bias makes the logits exactly what the case says, with hidden states of 0
    problem = Problem(rows=12, classes=classes, seed=8)
    problem.taught = torch.zeros_like(problem.taught)
    problem.hidden = torch.zeros_like(problem.hidden).requires_grad_()
    ids = torch.arange(classes)
    teacher_bias = {
        "equal": torch.zeros(classes),
        "two levels": (ids % 2 == 0).double() * 0.5,
        "certain": torch.where(ids == 3, 1e4, -1e4),
        "absent": torch.where(ids % 3 == 0, 0.0, -INF),
    }[teacher].double()
    student_bias = {
        "wrong": torch.where(ids == 4, 1e4, -1e4 + ids),
        "equal": torch.zeros(classes),
        "absent": torch.where(ids % 3 == 1, -INF, 0.1 * (ids % 5)),
    }[student].double()
    problem.labels = torch.where(problem.labels >= 0, problem.labels // 3 * 3, problem.labels)
    student_bias.requires_grad_()
    from mgsr.losses import dac_kl

    keep = problem.labels >= 0
    rows = int(keep.sum())
    logits = (teacher_bias.expand(rows, -1), student_bias.expand(rows, -1))
    chosen = None if target == "argmax" else problem.labels[keep]
    for clip in ((0.1, 0.9), (-INF, 0.4), (INF, 1.0)):
        want = dac_kl(*logits, *clip, target=chosen).loss.mean()
        got = tiled_objective(
            *problem.arguments,
            clip=clip,
            weights=(0, 1, 0),
            teacher_bias=teacher_bias,
            student_bias=student_bias,
            target=target,
            tile_size=5,
        )
        torch.testing.assert_close(got.dac_kl, want, rtol=1e-9, atol=1e-9)
        if not math.isfinite(want.item()):
            continue
        (mine,), (other,) = (torch.autograd.grad(loss, student_bias) for loss in (got.total, want))
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gap", [18.0, 22.0, 30.0])
def test_a_confident_student_in_a_span_keeps_its_gradient(gap):
    """P / Q of the rest bin is huge there: the gradient of the kept classes must not be a difference of such."""
    grads = []
    for dtype in (torch.float32, torch.float64):
        problem = Problem(rows=12, classes=3000, hidden=(64, 64), seed=5, dtype=dtype)
        problem.labels = problem.labels.abs() % 3000
        problem.spans = torch.arange(12) // 4
        best = (problem.taught @ problem.teacher.T).argmax(-1)
        with torch.no_grad():
            raised = problem.weight[best]
            problem.hidden += gap * raised / raised.square().sum(-1, keepdim=True)
        terms = tiled_objective(*problem.arguments, clip=(0.1, 0.9), weights=(0.0, 1.0, 1e-6))
        grads.append(torch.autograd.grad(terms.total, problem.hidden)[0].double())
    assert float((grads[0] - grads[1]).norm() / grads[1].norm()) < 1e-3
