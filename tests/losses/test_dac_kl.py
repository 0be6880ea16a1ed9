from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsr.losses import dac_kl, forward_kl
from tests.losses import reference

INF = math.inf


def random_logits(*shape, scale=2.0, seed=0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def probabilities(logits, temperature=1.0):
    return reference.softmax(logits.detach().numpy(), temperature)


@pytest.mark.parametrize("form", ["normalised", "literal"])
@pytest.mark.parametrize("keep_target", [True, False])
@pytest.mark.parametrize("target", [None, 3])
@pytest.mark.parametrize("quantile", ["mass", "rank"])
@pytest.mark.parametrize("ramp", ["clipped", "sigmoid"])
@pytest.mark.parametrize("sharpness", [0.0, 0.1])
def test_equals_the_list_of_bins(form, keep_target, target, quantile, ramp, sharpness):
    teacher, student = random_logits(4, 9), random_logits(4, 9, seed=1)
    options = {"sharpness": sharpness, "quantile": quantile, "form": form, "keep_target": keep_target}
    ids = None if target is None else torch.full((4,), target)
    lower = torch.tensor([-0.1, 0.2, 0.05, INF], dtype=torch.float64)
    upper = torch.tensor([0.8, 0.7, INF, 1.0], dtype=torch.float64)
    got = dac_kl(teacher, student, lower, upper, temperature=1.5, ramp=ramp, target=ids, **options)
    p, q = probabilities(teacher, 1.5), probabilities(student, 1.5)
    for n in range(4):
        want = reference.dac_kl(p[n], q[n], lower[n].item(), upper[n].item(), kind=ramp, target=target, **options)
        assert got.loss[n].item() == pytest.approx(want[0], rel=1e-9, abs=1e-12)
        assert got.retained_mass[n].item() == pytest.approx(want[1], rel=1e-9, abs=1e-12)


def test_bins_by_hand():
    teacher, student = (torch.tensor(v, dtype=torch.float64).log() for v in ([0.5, 0.3, 0.15, 0.05], [0.25] * 4))
    # c = 0, 0.5, 0.8, 0.95; the hard mask [0.5, 0.9) keeps the second and third class, the first is the target
    got = dac_kl(teacher, student, 0.4, 0.9, sharpness=0.0)
    want = 0.5 * math.log(2) + 0.3 * math.log(1.2) + 0.15 * math.log(0.6) + 0.05 * math.log(0.2)
    assert got.loss.item() == pytest.approx(want)
    assert got.retained_mass.item() == pytest.approx(0.95)
    # without its own bin the first class joins the last in the rest
    got = dac_kl(teacher, student, 0.4, 0.9, sharpness=0.0, keep_target=False)
    want = 0.3 * math.log(1.2) + 0.15 * math.log(0.6) + 0.55 * math.log(0.55 / 0.5)
    assert got.loss.item() == pytest.approx(want)
    assert got.retained_mass.item() == pytest.approx(0.45)
    # literal: the target is added to the sum over the mask, which may already hold it
    got = dac_kl(teacher, student, -INF, 0.4, sharpness=0.0, form="literal")
    assert got.loss.item() == pytest.approx(2 * 0.5 * math.log(2))


def test_the_hard_mask_holds_its_lower_bound_and_not_its_upper():
    teacher = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64).log()
    got = dac_kl(teacher, teacher, 0.5, 0.75, sharpness=0.0, keep_target=False)
    assert got.retained_mass.item() == pytest.approx(0.25)


def test_the_clipped_ramp_by_hand():
    # one class at c = 0 and lower = 0: half of it is kept, whatever the sharpness
    teacher = torch.tensor([0.6, 0.4], dtype=torch.float64).log()
    got = dac_kl(teacher, teacher, 0.0, 0.3, sharpness=0.02, keep_target=False)
    assert got.retained_mass.item() == pytest.approx(0.3)
    # further than 4 s from a bound nothing is left of the ramp
    assert dac_kl(teacher, teacher, -0.08, 0.3, sharpness=0.02).retained_mass.item() == pytest.approx(
        0.6, abs=1e-15
    )


def test_ties_go_to_the_smaller_id():
    teacher = torch.zeros(4, dtype=torch.float64)
    student = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    # classes 0 and 1 are kept, 2 and 3 are the rest
    want = 0.25 * (math.log(0.25 / 0.4) + math.log(0.25 / 0.3)) + 0.5 * math.log(0.5 / 0.3)
    assert dac_kl(teacher, student, -INF, 0.5, sharpness=0.0).loss.item() == pytest.approx(want)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.floats(0.1, 10.0),
    width=st.integers(1, 12),
    lower=st.floats(-0.1, 1.1),
    upper=st.floats(-0.1, 1.1),
    sharpness=st.sampled_from([0.0, 0.005, 0.1]),
    options=st.fixed_dictionaries(
        {
            "ramp": st.sampled_from(["clipped", "sigmoid"]),
            "quantile": st.sampled_from(["mass", "rank"]),
            "keep_target": st.booleans(),
        }
    ),
)
def test_properties_of_the_normalised_form(seed, scale, width, lower, upper, sharpness, options):
    teacher, student = random_logits(width, scale=scale, seed=seed), random_logits(width, seed=seed + 1)
    options = {**options, "sharpness": sharpness}
    full = forward_kl(teacher, student).item()
    loss, retained = dac_kl(teacher, student, lower, upper, **options)
    assert -1e-10 <= loss.item() <= full + 1e-10
    assert -1e-12 <= retained.item() <= 1 + 1e-12
    assert dac_kl(teacher, teacher, lower, upper, **options).loss.item() == pytest.approx(0.0, abs=1e-10)
    # non-increasing in lower, non-decreasing in upper
    assert dac_kl(teacher, student, lower + 0.05, upper, **options).loss.item() <= loss.item() + 1e-10
    assert dac_kl(teacher, student, lower, upper + 0.05, **options).loss.item() >= loss.item() - 1e-10
    order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
    moved = dac_kl(teacher[order], student[order], lower, upper, **options)
    torch.testing.assert_close(moved.loss, loss, rtol=1e-7, atol=1e-10)
    everything = dac_kl(teacher, student, -INF, INF, **options)
    assert everything.loss.item() == pytest.approx(full, rel=1e-9, abs=1e-12)
    assert everything.retained_mass.item() == pytest.approx(1.0)


@pytest.mark.parametrize("target", [None, 2])
def test_an_empty_mask_leaves_two_classes(target):
    teacher, student = random_logits(6), random_logits(6, seed=1)
    t = int(teacher.argmax()) if target is None else target
    p, q = probabilities(teacher)[t], probabilities(student)[t]
    want = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    got = dac_kl(teacher, student, INF, 1.0, target=None if target is None else torch.tensor(target))
    assert got.loss.item() == pytest.approx(want)
    assert got.retained_mass.item() == pytest.approx(p)


@pytest.mark.parametrize("form", ["normalised", "literal"])
@pytest.mark.parametrize("keep_target", [True, False])
@pytest.mark.parametrize("ramp", ["clipped", "sigmoid"])
@pytest.mark.parametrize("quantile", ["mass", "rank"])
def test_gradients(form, keep_target, ramp, quantile):
    teacher = random_logits(3, 7, scale=1.0).requires_grad_()
    student = random_logits(3, 7, seed=1).requires_grad_()
    lower = torch.tensor([0.1, 0.2, 0.05], dtype=torch.float64, requires_grad=True)
    upper = torch.tensor([0.8, 0.9, 0.7], dtype=torch.float64, requires_grad=True)

    def function(z, low, high):
        options = {"sharpness": 0.15, "ramp": ramp, "quantile": quantile, "form": form, "keep_target": keep_target}
        return tuple(dac_kl(teacher, z, low, high, **options))

    assert torch.autograd.gradcheck(function, (student, lower, upper))
    sum(x.sum() for x in function(student, lower, upper)).backward()
    assert teacher.grad is None
    assert (lower.grad.abs() > 1e-4).any() and (upper.grad.abs() > 1e-4).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bounds", [(INF, 1.0), (-INF, INF), (0.1, 0.9), (0.0, -INF)])
@pytest.mark.parametrize("form", ["normalised", "literal"])
def test_extreme_logits_give_finite_values_and_gradients(dtype, bounds, form):
    rows = [[1e4, -1e4, 0.0, 0.0], [0.0] * 4, [-1e4, 1e4, 1.0, -INF], [3.0, -INF, -INF, -INF]]
    teacher = torch.tensor(rows, dtype=dtype)
    student = torch.tensor(
        [[-1e4, 1e4, 0.0, 0.0], [1e4, -1e4, 0.0, 0.0], [1e4, -1e4, 0.0, -INF], [1e4, 0.0, 0.0, -INF]],
        dtype=dtype,
        requires_grad=True,
    )
    lower, upper = (torch.full((4,), b, dtype=dtype, requires_grad=True) for b in bounds)
    loss, retained = dac_kl(teacher, student, lower, upper, form=form)
    assert torch.isfinite(loss).all() and torch.isfinite(retained).all()
    grads = torch.autograd.grad(loss.sum() + retained.sum(), (student, lower, upper))
    assert all(torch.isfinite(grad).all() for grad in grads)
    full = forward_kl(teacher, student)
    if form == "normalised":
        assert (loss <= full * (1 + 1e-6) + 1e-6).all() and (loss >= -1e-6).all()


def test_the_rest_bin_survives_a_certain_student():
    # the student gives the rest e^-300: 1 - q would be 0 and the loss infinite
    teacher = torch.tensor([0.5, 0.25, 0.25]).log()
    student = torch.tensor([0.0, -300.0, -300.0], requires_grad=True)
    loss = dac_kl(teacher, student, INF, 1.0).loss
    assert loss.item() == pytest.approx(0.5 * math.log(0.5) * 2 - 0.5 * (math.log(2) - 300), rel=1e-5)
    (grad,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(grad, torch.tensor([0.5, -0.25, -0.25]))


def test_one_class():
    student = torch.tensor([[2.0]], requires_grad=True)
    for bounds in ((INF, 1.0), (-INF, INF), (0.1, 0.9)):
        loss, retained = dac_kl(torch.zeros(1, 1), student, *bounds)
        assert loss.item() == 0.0 and retained.item() == 1.0
        assert torch.autograd.grad(loss.sum(), student)[0].item() == 0.0


def test_a_student_without_a_class_that_the_teacher_has():
    teacher, student = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.5, -INF, -INF])
    assert dac_kl(teacher, student, -INF, INF).loss.item() == INF
    # clipped, the lost class shares the rest bin: finite as soon as the bin has any mass
    student = torch.tensor([0.5, -INF, 0.5])
    assert math.isfinite(dac_kl(teacher, student, INF, 1.0).loss.item())


def test_nan_is_not_hidden():
    bad, good = torch.tensor([0.0, math.nan]), torch.zeros(2)
    for teacher, student in ((bad, good), (good, bad)):
        assert torch.isnan(dac_kl(teacher, student, 0.1, 0.9).loss)


@pytest.mark.parametrize(
    ("option", "value"), [("ramp", "linear"), ("quantile", "median"), ("form", "normal"), ("sharpness", -0.1)]
)
def test_unknown_options_are_refused(option, value):
    with pytest.raises(ValueError, match=str(value)):
        dac_kl(torch.zeros(3), torch.zeros(3), 0.1, 0.9, **{option: value})


def test_different_widths_are_refused():
    with pytest.raises(ValueError, match="3 and 4"):
        dac_kl(torch.zeros(3), torch.zeros(4), 0.1, 0.9)


def test_float32_in_float32_out_and_bfloat16_is_widened():
    teacher, student = random_logits(4, 50).bfloat16(), random_logits(4, 50, seed=1).bfloat16()
    narrow = dac_kl(teacher, student, 0.1, 0.9).loss
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(
        narrow.double(), dac_kl(teacher.double(), student.double(), 0.1, 0.9).loss, rtol=1e-4, atol=1e-5
    )
