from __future__ import annotations

import math

import torch

from mgsr.losses import (
    align_predictions,
    global_mean,
    prediction_labels,
    response_mask,
    span_pairs,
    term_counts,
)


def test_aligned_entry_t_is_the_state_at_t_minus_1():
    states = torch.arange(1.0, 13.0).view(2, 3, 2)
    got = align_predictions(states)
    assert got.shape == states.shape
    assert got[:, 0].abs().max() == 0
    torch.testing.assert_close(got[:, 1:], states[:, :-1])


def test_the_mask_is_by_position():
    # the last response token has the padding's id and still counts
    got = response_mask(torch.tensor([2, 0, 3]), torch.tensor([4, 1, 3]), 5)
    assert got.int().tolist() == [[0, 0, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]


def test_rows_pair_the_state_with_the_next_token():
    tokens = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 0]])
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0]]).bool()
    spans = torch.tensor([[-1, 0, 0, 1], [-1, -1, 1, -1]])
    hidden = torch.arange(8.0).view(2, 4, 1)
    labels, ids = prediction_labels(tokens, mask, spans)
    assert hidden[:, :-1].flatten(0, 1).flatten().tolist() == [0, 1, 2, 4, 5, 6]
    assert labels.tolist() == [6, 7, 8, -100, 3, -100]
    first, second = ids[:3].tolist(), ids[3:].tolist()
    assert first == [0, 0, 1] and second[0] == second[2] == -1 and second[1] not in (-1, 0, 1)


def test_spans_of_neighbouring_sequences_are_no_pair():
    spans = torch.zeros(3, 3, dtype=torch.long)
    labels, ids = prediction_labels(torch.ones(3, 3, dtype=torch.long), torch.ones(3, 3).bool(), spans)
    assert span_pairs(ids).int().tolist() == [1, 0, 1, 0, 1]
    assert term_counts(labels, ids) == (6, 6, 3)


def test_no_spans_at_all():
    labels, ids = prediction_labels(
        torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3).bool(), torch.full((2, 3), -1)
    )
    assert ids.tolist() == [-1] * 4
    assert term_counts(labels, ids) == term_counts(labels, None) == (4, 4, 0)


def test_counts_leave_out_masked_rows():
    labels = torch.tensor([1, -100, 2, 3, 4, 5])
    spans = torch.tensor([0, 0, 0, 0, 1, 1])
    truth = torch.tensor([1, 1, 0, 1, 0, 0]).bool()
    assert term_counts(labels, spans, truth) == (2, 5, 2)


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
