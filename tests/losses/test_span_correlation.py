from __future__ import annotations

import math

import pytest
import torch

from mgsr.losses import span_correlation, span_pairs
from tests.losses import reference


def random_logits(*shape, scale=2.0, seed=0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SPANS = torch.tensor([[0, 0, 0, -1, -1, 1, 2], [-1, 4, 4, 5, 5, 5, -1]])
PAIRS = [[1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0]]


@pytest.mark.parametrize("norm", ["l2_squared", "l2"])
@pytest.mark.parametrize("relation", ["hadamard", "cosine", "trace"])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_equals_the_definition(norm, relation, temperature):
    teacher, student = random_logits(2, 7, 5), random_logits(2, 7, 5, seed=1)
    got = span_correlation(teacher, student, SPANS, temperature=temperature, norm=norm, relation=relation)
    assert got.is_pair.int().tolist() == PAIRS
    p, q = (reference.softmax(z.numpy(), temperature) for z in (teacher, student))
    for b in range(2):
        for t in range(6):
            want = reference.pair_loss(p[b, t : t + 2], q[b, t : t + 2], norm, relation) if PAIRS[b][t] else 0.0
            assert got.loss[b, t].item() == pytest.approx(want, rel=1e-10, abs=1e-15)


def test_by_hand():
    certain = torch.tensor([[[0.0, -math.inf], [0.0, -math.inf]]], dtype=torch.float64)
    spans = torch.zeros(1, 2, dtype=torch.long)
    # r_T = (1, 0), r_S = (1/4, 1/4)
    expected = {
        ("hadamard", "l2_squared"): 9 / 16 + 1 / 16,
        ("hadamard", "l2"): math.sqrt(10) / 4,
        ("trace", "l2_squared"): 0.25,
        ("trace", "l2"): 0.5,
        ("cosine", "l2_squared"): 0.0,
    }
    for (relation, norm), want in expected.items():
        got = span_correlation(certain, torch.zeros(1, 2, 2), spans, norm=norm, relation=relation)
        assert got.loss.item() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("norm", ["l2_squared", "l2"])
@pytest.mark.parametrize("relation", ["hadamard", "cosine", "trace"])
def test_gradients(norm, relation):
    teacher = random_logits(2, 7, 4).requires_grad_()
    student = random_logits(2, 7, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: span_correlation(teacher, z, SPANS, norm=norm, relation=relation).loss, student
    )
    span_correlation(teacher, student, SPANS).loss.sum().backward()
    assert teacher.grad is None


@pytest.mark.parametrize("norm", ["l2_squared", "l2"])
@pytest.mark.parametrize("relation", ["hadamard", "cosine", "trace"])
def test_the_gradient_is_0_where_student_and_teacher_agree(norm, relation):
    student = random_logits(2, 7, 4).requires_grad_()
    loss = span_correlation(student.detach(), student, SPANS, norm=norm, relation=relation).loss
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert loss.abs().max() < 1e-20 and grad.abs().max() == 0


def test_positions_outside_pairs_reach_neither_loss_nor_gradient():
    teacher, student = random_logits(2, 7, 4), random_logits(2, 7, 4, seed=1)
    teacher[0, 4], student[0, 4], student[1, 0] = math.nan, math.inf, -math.inf
    student.requires_grad_()
    loss = span_correlation(teacher, student, SPANS).loss
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert torch.isfinite(loss).all() and torch.isfinite(grad).all()
    assert grad[0, 3:].abs().max() == 0 and grad[1, 0].abs().max() == 0 and grad[0, :3].abs().min() > 0


def test_the_mask_takes_pairs_away():
    teacher, student = random_logits(2, 7, 4), random_logits(2, 7, 4, seed=1)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 0] = mask[1, 4] = False
    got = span_correlation(teacher, student, SPANS, mask=mask)
    assert got.is_pair.int().tolist() == [[0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]
    assert got.loss[~got.is_pair].abs().max() == 0
    assert span_pairs(SPANS, mask).equal(got.is_pair)


@pytest.mark.parametrize("width", [0, 1])
def test_too_short_for_a_pair(width):
    got = span_correlation(
        torch.zeros(2, width, 3), torch.zeros(2, width, 3), torch.zeros(2, width, dtype=torch.long)
    )
    assert got.loss.shape == got.is_pair.shape == (2, 0)


def test_wrong_arguments_are_refused():
    spans = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="l1"):
        span_correlation(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), spans, norm="l1")
    with pytest.raises(ValueError, match="dot"):
        span_correlation(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), spans, relation="dot")
    with pytest.raises(ValueError, match="3 and 4"):
        span_correlation(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), spans)
