from __future__ import annotations

import sys

import pytest
import torch

from mgsr.losses import DIVERGENCES, forward_kl
from mgsr.losses.divergences.check import check_divergence


@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_one_of_ours_passes(name):
    check_divergence(DIVERGENCES[name], {})


def double(teacher, student, *, temperature=1.0, by=2.0, sign="plus"):
    if by > 3:
        raise ValueError(f"by must be at most 3, got {by}")
    return by * forward_kl(teacher, student, temperature=temperature)


def test_options_are_tried_at_both_ends_of_a_schedule():
    check_divergence(double, {"by": [1.0, 3.0]})
    for schedule in ([4.0, 1.0], [1.0, 4.0]):
        with pytest.raises(ValueError, match="by must be at most 3, got 4"):
            check_divergence(double, {"by": schedule})


def _spoilt(student):
    kept = student.exp()
    loss = kept.log().sum(-1)
    kept.zero_()
    return loss


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (3, {}, "is no function but int"),
        (double, {"bye": 1.0}, "has no option 'bye'; it has by, sign; did you mean `by`?"),
        (forward_kl, {"by": 1.0}, "has no option 'by'; it has none"),
        (
            lambda t, s, temperature: (t - s).sum(),
            {},
            r"one value per token: of logits \[2, 1024\] \[2\], not \[\]",
        ),
        (lambda t, s, temperature: 1.0, {}, "not float"),
        (lambda t, s, temperature: (t - s.detach()).sum(-1), {}, "no gradient to the student's logits"),
        (lambda t, s, temperature: (t - s).sum(-1) * float("nan"), {}, "infinite or no number"),
        (lambda t, s, temperature: (s - s).sum(-1).sqrt(), {}, "infinite or no number"),
        (lambda t, s, temperature: sys.exit(7), {}, "fails on logits .2, 1024.: SystemExit"),
        (lambda t, s: (t - s).sum(-1), {}, "fails on logits .2, 1024.: TypeError"),
        (lambda t, s, temperature: (t - s).sum(-1) * 1j, {}, "real numbers, not torch.complex64"),
        (lambda t, s, temperature: (t - s).sum(-1).long(), {}, "real numbers, not torch.int64"),
        (lambda t, s, temperature: _spoilt(s), {}, "no gradient on logits .2, 1024.: RuntimeError"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(function, options, message):
    with pytest.raises(ValueError, match=message):
        check_divergence(function, options)


def test_a_schedule_is_tried_in_its_middle_too():
    with pytest.raises(ValueError, match="must be finite and not 0, got 0"):
        check_divergence(DIVERGENCES["alpha_beta"], {"alpha": [-0.5, 0.5]})


def test_one_of_many_classes_is_tried_on_many():
    def top(teacher, student, *, temperature=1.0, k=50):
        found, ids = teacher.topk(k, dim=-1)
        return (found.softmax(-1) * (found - student.gather(-1, ids))).sum(-1)

    check_divergence(top, {"k": 500})


def test_the_width_may_be_given():
    seen = []

    def weighted(teacher, student, *, temperature=1.0):
        seen.append(student.shape)
        return (torch.ones(500) * (teacher - student)).sum(-1)

    check_divergence(weighted, {}, 500)
    assert seen == [(2, 500)]
    with pytest.raises(ValueError, match=r"fails on logits \[2, 1024\]: RuntimeError"):
        check_divergence(weighted, {})


def test_what_takes_any_option_is_given_it():
    seen = {}

    def takes_any(teacher, student, *, temperature=1.0, **options):
        seen.update(options)
        return forward_kl(teacher, student)

    check_divergence(takes_any, {"anything": "goes"})
    assert seen == {"anything": "goes"}
