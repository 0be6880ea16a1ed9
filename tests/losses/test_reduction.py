from __future__ import annotations

import math

import torch

from mgsr.losses import align_predictions, global_mean, term_counts


def test_aligned_entry_t_is_the_state_at_t_minus_1():
    states = torch.arange(1.0, 13.0).view(2, 3, 2)
    got = align_predictions(states)
    assert got.shape == states.shape
    assert got[:, 0].abs().max() == 0
    torch.testing.assert_close(got[:, 1:], states[:, :-1])


def test_counts_leave_out_masked_rows():
    labels = torch.tensor([1, -100, 2, 3, 4, 5])
    spans = torch.tensor([0, 0, 0, 0, 1, 1])
    truth = torch.tensor([1, 1, 0, 1, 0, 0]).bool()
    assert term_counts(labels, spans, truth) == (2, 5, 2)
    assert term_counts(labels, torch.full_like(spans, -1)) == term_counts(labels, None) == (5, 5, 0)


def test_the_mean_uses_the_given_denominator_and_skips_masked_values():
    values = torch.tensor([[1.0, math.nan], [math.inf, 5.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [False, True]])
    assert global_mean(values, mask).item() == 3.0
    mean = global_mean(values, mask, torch.tensor(12))
    assert mean.item() == 0.5
    (grad,) = torch.autograd.grad(mean, values)
    torch.testing.assert_close(grad, mask / 12.0)
    assert global_mean(torch.tensor([1.0, 2.0]), None).item() == 1.5


def test_a_zero_count_is_a_differentiable_zero():
    values = torch.tensor([1.0, math.inf], requires_grad=True)
    for mask, count in ((torch.tensor([True, True]), 0), (torch.tensor([False, False]), None)):
        mean = global_mean(values, mask, count)
        assert mean.item() == 0.0
        assert torch.autograd.grad(mean, values)[0].tolist() == [0.0, 0.0]
