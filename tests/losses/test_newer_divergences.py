from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsr.losses import (
    adaptive_kl,
    alpha_beta,
    alpha_mixture,
    concrete_score,
    entropy_aware,
    forward_kl,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    todi,
    veto,
)
from mgsr.losses.divergences import NEWER
from tests.losses import reference
from tests.losses.dense import Problem, assert_same

INF = math.inf
TOKEN = (0.0, 1.0, 0.0)
# every option off its default, one case for every branch
CASES = {
    "todi": [{}],
    "alpha_beta": [{}, {"alpha": 0.5, "beta": -0.2}, {"alpha": -0.4, "beta": 1.2}],
    "adaptive_kl": [{}, {"mu": 0.9}, {"mu": 0.0}],
    "alpha_mixture": [
        {},
        {"alpha": 1.0, "lam": 0.3},
        {"alpha": -1.0, "of": "forward_kl"},
        {"alpha": -3.0, "lam": 0.8},
    ],
    "concrete_score": [{}, {"tau": 0.7, "second": "teacher"}, {"first": "teacher", "second": "teacher"}],
    "entropy_aware": [{}, {"threshold": 1.2, "alpha": 0.4}],
    "veto": [{}, {"beta": 0.0}, {"beta": 0.3}],
}
EVERY = [(name, options) for name, cases in CASES.items() for options in cases]


def random_logits(*shape: int, scale: float = 2.0, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def wanted(name: str, teacher: np.ndarray, student: np.ndarray, temperature: float, options: dict) -> float:
    p, q = (reference.softmax(z, temperature) for z in (teacher, student))
    if name == "todi":
        return reference.todi(p, q)
    if name == "alpha_beta":
        return reference.alpha_beta(p, q, options.get("alpha", 0.2), options.get("beta", 0.7))
    if name == "adaptive_kl":
        return reference.adaptive_kl(p, q, options.get("mu", 0.5))
    if name == "alpha_mixture":
        given = options.get("alpha", 0.5), options.get("lam", 0.5), options.get("of", "alpha_beta")
        return reference.alpha_mixture(p, q, *given)
    if name == "concrete_score":
        words = options.get("first", "student"), options.get("second", "student")
        weights = [
            p if word == "teacher" else reference.softmax(student, options.get("tau", 1.5)) for word in words
        ]
        return reference.concrete_score(student - teacher, *weights)
    if name == "entropy_aware":
        return reference.entropy_aware(p, q, options.get("threshold", 0.8), options.get("alpha", 1.0))
    return reference.veto(p, q, options.get("beta", 0.8))


def test_every_one_has_its_cases():
    assert set(CASES) == set(NEWER)


@pytest.mark.parametrize(("name", "options"), EVERY)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_equals_the_definition(name, options, temperature):
    teacher, student = random_logits(2, 3, 7), random_logits(2, 3, 7, seed=1)
    got = NEWER[name](teacher, student, temperature=temperature, **options)
    assert got.shape == (2, 3)
    for b in range(2):
        for t in range(3):
            want = wanted(name, teacher[b, t].numpy(), student[b, t].numpy(), temperature, options)
            assert got[b, t].item() == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_trains_in_tiles_as_under_autograd(name, options):
    for temperature in (1.0, 2.0):
        given = {"divergence": name, "divergence_kwargs": options, "temperature": temperature}
        assert_same(Problem(), None, **given)
        assert_same(Problem(), None, weights=TOKEN, **given)


STOPPED = ("todi", "adaptive_kl", "concrete_score", "veto")
"""Their gradient is not that of their value."""


@pytest.mark.parametrize(("name", "options"), [case for case in EVERY if case[0] not in STOPPED])
def test_gradient_is_that_of_the_value(name, options):
    teacher, student = random_logits(3, 5), random_logits(3, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: NEWER[name](teacher, z, temperature=1.3, **options), student)


def gradient(function, student):
    return torch.autograd.grad(function(student).sum(), student)[0]


def test_gradients_stop_where_they_should():
    teacher, student = random_logits(3, 5), random_logits(3, 5, seed=1).requires_grad_()
    p, q = teacher.softmax(-1), student.detach().softmax(-1)
    share = p / (p + q)

    def frozen_todi(z):
        log_ratio = p.log() - z.log_softmax(-1)
        return (share * p * log_ratio - (1 - share) * z.softmax(-1) * log_ratio).sum(-1)

    torch.testing.assert_close(gradient(lambda z: todi(teacher, z), student), gradient(frozen_todi, student))
    r = (p.log() + 0.8 * q.log()).softmax(-1)
    want = gradient(lambda z: -(r * z.log_softmax(-1)).sum(-1), student)
    torch.testing.assert_close(gradient(lambda z: veto(teacher, z), student), want)
    mixed = 0.9 * p + 0.1 * q
    want = gradient(lambda z: (z.softmax(-1) * (z.log_softmax(-1) - mixed.log())).sum(-1), student)
    got = gradient(lambda z: skewed_reverse_kl(teacher, z, detach=True), student)
    torch.testing.assert_close(got, want)
    assert not torch.allclose(got, gradient(lambda z: skewed_reverse_kl(teacher, z), student))


@pytest.mark.parametrize("row", [0, 1, 2])
def test_adaptive_weights_are_constants(row):
    """The gradient is a mixture of both directions', in the shares of the value."""
    taught, own = random_logits(3, 5)[row], random_logits(3, 5, seed=1)[row].requires_grad_()
    forward, backward = forward_kl(taught, own).item(), reverse_kl(taught, own).item()
    head = (adaptive_kl(taught, own).item() - backward) / (forward - backward)
    parts = [gradient(lambda z, f=f: f(taught, z), own) for f in (forward_kl, reverse_kl)]
    want = head * parts[0] + (1 - head) * parts[1]
    torch.testing.assert_close(gradient(lambda z: adaptive_kl(taught, z), own), want)


def test_concrete_score_at_tau_1_has_the_gradient_of_reverse_kl():
    teacher, student = random_logits(4, 6), random_logits(4, 6, seed=1).requires_grad_()
    got = gradient(lambda z: concrete_score(teacher, z, tau=1.0), student)
    torch.testing.assert_close(got, gradient(lambda z: reverse_kl(teacher, z), student))


def test_what_they_become_at_their_ends():
    teacher, student = random_logits(4, 6), random_logits(4, 6, seed=1)
    both = forward_kl(teacher, student) + reverse_kl(teacher, student)
    torch.testing.assert_close(todi(teacher, student), both)
    torch.testing.assert_close(veto(teacher, student, beta=0.0), forward_kl(teacher, student))
    skewed = alpha_mixture(teacher, student, alpha=-1.0, lam=0.1, of="forward_kl")
    torch.testing.assert_close(skewed, skewed_forward_kl(teacher, student, alpha=0.1))
    near = alpha_mixture(teacher, student, alpha=1.0 - 1e-7)
    torch.testing.assert_close(near, alpha_mixture(teacher, student, alpha=1.0), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(alpha_mixture(teacher, student, lam=1.0), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(alpha_mixture(teacher, student, lam=0.0), alpha_beta(teacher, student))
    close = alpha_beta(teacher, student, alpha=1.0, beta=1e-7)
    torch.testing.assert_close(close, forward_kl(teacher, student), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(entropy_aware(teacher, student, threshold=9.0), reverse_kl(teacher, student))
    torch.testing.assert_close(entropy_aware(teacher, student, threshold=-1.0), both)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(EVERY), st.integers(0, 10**6), st.floats(0.1, 8.0))
def test_is_a_divergence(case, seed, scale):
    name, options = case
    teacher, student = random_logits(6, scale=scale, seed=seed), random_logits(6, scale=scale, seed=seed + 1)
    function = NEWER[name]
    value = function(teacher, student, **options).item()
    if name != "veto":
        assert value >= -1e-9 * max(1.0, abs(value))
        assert function(teacher, teacher, **options).item() == pytest.approx(0.0, abs=1e-12)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    got = function(teacher[order], student[order], **options).item()
    assert got == pytest.approx(value, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_a_class_absent_from_both_changes_nothing(name, options):
    teacher, student = random_logits(4), random_logits(4, seed=1)
    absent = torch.full((1,), -INF, dtype=torch.float64)
    padded = torch.cat([student, absent]).requires_grad_()
    loss = NEWER[name](torch.cat([teacher, absent]), padded, **options)
    plain = student.clone().requires_grad_()
    expected = NEWER[name](teacher, plain, **options)
    torch.testing.assert_close(loss, expected)
    (got,), (want,) = torch.autograd.grad(loss, padded), torch.autograd.grad(expected, plain)
    torch.testing.assert_close(got, torch.cat([want, torch.zeros(1, dtype=torch.float64)]))


@pytest.mark.parametrize("name", NEWER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_extreme_logits_stay_finite(name, dtype):
    teacher = torch.tensor([[1e4, -1e4, 0.0], [1.0, 1.0, 1.0]], dtype=dtype)
    student = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    loss = NEWER[name](teacher, student)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.isfinite(loss).all()
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("alpha_beta", {"alpha": 0.0}),
        ("alpha_beta", {"beta": 0.0}),
        ("alpha_beta", {"alpha": 0.5, "beta": -0.5}),
        ("alpha_beta", {"alpha": math.nan}),
        ("adaptive_kl", {"mu": 1.2}),
        ("alpha_mixture", {"alpha": 1.1}),
        ("alpha_mixture", {"lam": -0.1}),
        ("alpha_mixture", {"of": "reverse_kl"}),
        ("concrete_score", {"tau": 0.0}),
        ("concrete_score", {"first": "both"}),
        ("veto", {"beta": 1.0}),
        ("veto", {"beta": -0.1}),
    ],
)
def test_an_option_out_of_range_is_refused(name, options):
    (key, value), *_ = options.items()
    with pytest.raises(ValueError, match=f"{key}.*{value}"):
        NEWER[name](torch.zeros(2), torch.zeros(2), **options)


@pytest.mark.parametrize("name", NEWER)
def test_the_teacher_gets_no_gradient(name):
    teacher, student = random_logits(3, 5).requires_grad_(), random_logits(3, 5, seed=1).requires_grad_()
    NEWER[name](teacher, student).sum().backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
