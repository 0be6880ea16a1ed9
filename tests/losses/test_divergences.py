from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsr.losses import forward_kl, jensen_shannon, reverse_kl, symmetric_kl, total_variation
from mgsr.losses.divergences import CLASSIC as DIVERGENCES
from tests.losses import reference

PARAMETER = {
    "symmetric_kl": ("weight", 0.3),
    "jensen_shannon": ("beta", 0.3),
    "skewed_forward_kl": ("alpha", 0.2),
    "skewed_reverse_kl": ("alpha", 0.2),
}
INF = math.inf


def call(name, teacher, student, value=None, **kwargs):
    if name in PARAMETER:
        key, default = PARAMETER[name]
        kwargs[key] = default if value is None else value
    return DIVERGENCES[name](teacher, student, **kwargs)


def random_logits(*shape, scale=2.0, seed=0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_registry_holds_the_seven_divergences():
    assert set(DIVERGENCES) == {
        "forward_kl",
        "reverse_kl",
        "symmetric_kl",
        "jensen_shannon",
        "skewed_forward_kl",
        "skewed_reverse_kl",
        "total_variation",
    }


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_equals_the_definition(name, temperature):
    teacher, student = random_logits(2, 3, 7), random_logits(2, 3, 7, seed=1)
    got = call(name, teacher, student, temperature=temperature)
    assert got.shape == (2, 3)
    p, q = (reference.softmax(z.numpy(), temperature) for z in (teacher, student))
    for b in range(2):
        for t in range(3):
            want = reference.divergence(name, p[b, t], q[b, t], PARAMETER.get(name, ("", 0.0))[1])
            assert got[b, t].item() == pytest.approx(want, rel=1e-11)


def test_constants_by_hand():
    # p = (1/2, 1/2), q = (1/4, 3/4)
    teacher, student = torch.zeros(2, dtype=torch.float64), torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    assert forward_kl(teacher, student).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert reverse_kl(teacher, student).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert total_variation(teacher, student).item() == pytest.approx(0.25)
    one, other = torch.tensor([0.0, -INF]), torch.tensor([-INF, 0.0])
    assert jensen_shannon(one, other).item() == pytest.approx(math.log(2))


def test_the_temperature_divides_the_logits_and_nothing_else():
    teacher, student = random_logits(4, 6), random_logits(4, 6, seed=1)
    torch.testing.assert_close(forward_kl(teacher, student, temperature=2.0), forward_kl(teacher / 2, student / 2))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradient_reaches_the_student_alone(name):
    teacher = random_logits(3, 5).requires_grad_()
    student = random_logits(3, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: call(name, teacher, z, temperature=1.3), student)
    call(name, teacher, student).sum().backward()
    assert teacher.grad is None


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(DIVERGENCES)), st.integers(0, 10**6), st.floats(0.1, 8.0), st.floats(0.05, 0.95))
def test_is_a_divergence(name, seed, scale, value):
    teacher, student = random_logits(6, scale=scale, seed=seed), random_logits(6, scale=scale, seed=seed + 1)
    assert call(name, teacher, student, value).item() >= -1e-12
    assert call(name, teacher, teacher, value).item() == pytest.approx(0.0, abs=1e-12)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    got = call(name, teacher[order], student[order], value)
    torch.testing.assert_close(got, call(name, teacher, student, value))


def test_absent_classes():
    teacher = torch.tensor([[0.0, 0.0, -INF], [0.0, -INF, -INF]])
    student = torch.tensor([[0.0, 0.0, -INF], [0.0, 0.0, 0.0]]).requires_grad_()
    loss = forward_kl(teacher, student)
    torch.testing.assert_close(loss, torch.tensor([0.0, math.log(3)]))
    loss.sum().backward()
    torch.testing.assert_close(student.grad, torch.tensor([[0.0, 0.0, 0.0], [-2 / 3, 1 / 3, 1 / 3]]))
    assert forward_kl(student.detach(), teacher)[1].item() == INF
    assert reverse_kl(teacher, student)[1].item() == INF


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_class_absent_from_both_changes_nothing(name):
    teacher, student = random_logits(4), random_logits(4, seed=1)
    absent = torch.full((1,), -INF, dtype=torch.float64)
    padded = torch.cat([student, absent]).requires_grad_()
    loss = call(name, torch.cat([teacher, absent]), padded)
    plain = student.clone().requires_grad_()
    expected = call(name, teacher, plain)
    torch.testing.assert_close(loss, expected)
    (got,), (want,) = torch.autograd.grad(loss, padded), torch.autograd.grad(expected, plain)
    torch.testing.assert_close(got, torch.cat([want, torch.zeros(1, dtype=torch.float64)]))


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_extreme_logits_stay_finite(name, dtype):
    teacher = torch.tensor([[1e4, -1e4, 0.0], [1.0, 1.0, 1.0]], dtype=dtype)
    student = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    loss = call(name, teacher, student)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.isfinite(loss).all()
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon", "total_variation"])
def test_nan_logits_are_not_hidden(name):
    bad = torch.tensor([0.0, math.nan, 1.0])
    assert torch.isnan(call(name, bad, torch.zeros(3)))
    assert torch.isnan(call(name, torch.zeros(3), bad))


def test_ends_of_the_parameters():
    teacher, student = random_logits(3, 5), random_logits(3, 5, seed=1)
    torch.testing.assert_close(symmetric_kl(teacher, student, weight=1.0), forward_kl(teacher, student))
    torch.testing.assert_close(symmetric_kl(teacher, student, weight=0.0), reverse_kl(teacher, student))
    torch.testing.assert_close(call("skewed_forward_kl", teacher, student, 0.0), forward_kl(teacher, student))
    torch.testing.assert_close(call("skewed_reverse_kl", teacher, student, 0.0), reverse_kl(teacher, student))
    zero = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(call("skewed_forward_kl", teacher, student, 1.0), zero)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("symmetric_kl", -0.1),
        ("symmetric_kl", 1.1),
        ("jensen_shannon", 0.0),
        ("jensen_shannon", 1.0),
        ("skewed_forward_kl", -0.1),
        ("skewed_reverse_kl", 1.5),
        ("skewed_reverse_kl", math.nan),
    ],
)
def test_a_parameter_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=str(value)):
        call(name, torch.zeros(2), torch.zeros(2), value)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_different_widths_and_temperatures_are_refused(name):
    with pytest.raises(ValueError, match="4 and 5"):
        call(name, torch.zeros(2, 4), torch.zeros(2, 5))
    with pytest.raises(ValueError, match="temperature"):
        call(name, torch.zeros(4), torch.zeros(4), temperature=0.0)


def test_against_numpy_on_a_long_vocabulary():
    teacher, student = random_logits(1, 5000).float(), random_logits(1, 5000, seed=1).float()
    want = reference.kl(*(reference.softmax(z.numpy().astype(np.float64))[0] for z in (teacher, student)))
    assert forward_kl(teacher, student).item() == pytest.approx(want, rel=1e-5)
