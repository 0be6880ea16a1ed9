"""locate_error against numpy, and its rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsr.scrg import locate_error, splice


def numpy_kl(teacher, student):
    def log_softmax(z):
        z = z - z.max(-1, keepdims=True)
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    lp, lq = log_softmax(teacher), log_softmax(student)
    return (np.exp(lp) * (lp - lq)).sum(-1)


def case(seed, batch=4, length=7, vocab=6):
    rng = np.random.default_rng(seed)
    teacher, student = rng.normal(0, 2, (2, batch, length, vocab))
    tokens, teacher_tokens = rng.integers(0, 3, (2, batch, length))
    mask = np.arange(length) < rng.integers(0, length + 1, batch)[:, None]
    after = rng.integers(-1, length, batch)
    return teacher, student, tokens, teacher_tokens, mask, after


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([torch.float32, torch.float64]), st.booleans())
def test_equals_numpy(seed, dtype, use_after):
    teacher, student, tokens, teacher_tokens, mask, after = case(seed)
    divergence = numpy_kl(teacher, student)
    expected = []
    for b in range(len(tokens)):
        best = -1
        for t in range(tokens.shape[1]):
            if mask[b, t] and tokens[b, t] != teacher_tokens[b, t] and (not use_after or t > after[b]):
                best = t if best < 0 or divergence[b, t] > divergence[b, best] else best
        expected.append(best)
    got = locate_error(
        torch.tensor(teacher, dtype=dtype),
        torch.tensor(student, dtype=dtype),
        *map(torch.tensor, (tokens, teacher_tokens, mask)),
        after=torch.tensor(after) if use_after else None,
    )
    assert got.dtype == torch.int64 and got.tolist() == expected


ONES = torch.ones(1, 4, dtype=torch.bool)
ZEROS = torch.zeros(1, 4, dtype=torch.long)


def rows(*levels):
    """Teacher logits whose KL from a uniform student grows with the level."""
    return torch.tensor([[[0.0, level] for level in levels]], dtype=torch.float64)


def test_direction_is_teacher_to_student():
    """KL(p||q) and KL(q||p) rank these two positions differently (hand-computed)."""
    p = torch.tensor([[[0.5, 0.5], [0.99, 0.01]]]).log()
    q = torch.tensor([[[0.99, 0.01], [0.5, 0.5]]]).log()  # KL(p||q): 1.6145, 0.6371; KL(q||p): 0.6371, 1.6145
    two = torch.ones(1, 2, dtype=torch.bool)
    assert locate_error(p, q, torch.zeros(1, 2), torch.ones(1, 2), two).tolist() == [0]


def test_ties_go_to_the_smallest():
    student = torch.zeros(1, 4, 2, dtype=torch.float64)
    assert locate_error(rows(1, 3, 3, 3), student, ZEROS, ZEROS + 1, ONES).tolist() == [1]
    after = torch.tensor([1])
    assert locate_error(rows(1, 3, 3, 3), student, ZEROS, ZEROS + 1, ONES, after=after).tolist() == [2]


def test_agreement_mask_and_after_exclude():
    student = torch.zeros(1, 4, 2, dtype=torch.float64)
    teacher = rows(9, 8, 7, 6)
    says = torch.tensor([[0, 1, 1, 1]])
    assert locate_error(teacher, student, ZEROS, says, ONES).tolist() == [1]
    assert locate_error(teacher, student, ZEROS, says, torch.tensor([[True, False, True, True]])).tolist() == [2]
    assert locate_error(teacher, student, ZEROS, says, ONES, after=torch.tensor([3])).tolist() == [-1]
    assert locate_error(teacher, student, ZEROS, ZEROS, ONES).tolist() == [-1]
    assert locate_error(teacher, student, ZEROS, says, ~ONES).tolist() == [-1]
    # At equal distributions the KL is 0 and a disagreement still counts.
    assert locate_error(student, student, ZEROS, torch.tensor([[0, 0, 1, 1]]), ONES).tolist() == [2]


def test_infinite_kl_wins_and_zero_probability_adds_nothing():
    inf = float("inf")
    teacher = torch.tensor([[[0.0, 5.0, -inf], [0.0, 0.0, -inf]]])
    student = torch.tensor([[[0.0, 0.0, -inf], [0.0, -inf, 0.0]]])
    two = torch.ones(1, 2, dtype=torch.bool)
    assert locate_error(teacher, student, torch.zeros(1, 2), torch.ones(1, 2), two).tolist() == [1]


def test_other_rules():
    student = torch.zeros(1, 4, 2, dtype=torch.float64)
    teacher = rows(0.5, 0.1, 5, 9)  # KL 0.03, 0.001, 0.65, 0.692
    says = torch.tensor([[1, 0, 1, 1]])

    def find(**options):
        return int(locate_error(teacher, student, ZEROS, says, ONES, **options))

    assert find(error_position="first_disagreement") == 0
    assert find(error_position="first_disagreement", after=torch.tensor([0])) == 2
    assert find(error_position="threshold", kl_threshold=0.5) == 2
    assert find(error_position="threshold", kl_threshold=0.68) == 3
    assert find(error_position="threshold") == -1  # 1.0 nat
    for u, expected in ((0.0, 0), (0.33, 0), (0.34, 2), (0.66, 2), (0.67, 3), (1 - 2**-53, 3)):
        assert find(error_position="random", uniforms=torch.tensor([u], dtype=torch.float64)) == expected
    no_one = locate_error(
        teacher, student, ZEROS, ZEROS, ONES, error_position="random", uniforms=torch.tensor([0.5])
    )
    assert no_one.tolist() == [-1]


def test_refuses_misuse():
    logits = torch.zeros(1, 4, 2)
    with pytest.raises(ValueError, match="shape"):
        locate_error(logits, torch.zeros(1, 4, 3), ZEROS, ZEROS, ONES)
    with pytest.raises(ValueError, match="teacher_tokens"):
        locate_error(logits, logits, ZEROS, ZEROS[:, :2], ONES)
    with pytest.raises(ValueError, match="after"):
        locate_error(logits, logits, ZEROS, ZEROS, ONES, after=torch.zeros(2))
    with pytest.raises(ValueError, match="max_kl"):
        locate_error(logits, logits, ZEROS, ZEROS, ONES, error_position="max")
    with pytest.raises(ValueError, match="uniform"):
        locate_error(logits, logits, ZEROS, ZEROS, ONES, error_position="random")
    with pytest.raises(ValueError, match="NaN"):
        locate_error(logits * float("nan"), logits, ZEROS, ZEROS + 1, ONES)


def test_empty_batches():
    assert locate_error(torch.zeros(2, 0, 3), torch.zeros(2, 0, 3), *[torch.zeros(2, 0)] * 3).tolist() == [-1, -1]
    assert locate_error(torch.zeros(0, 3, 2), torch.zeros(0, 3, 2), *[torch.zeros(0, 3)] * 3).tolist() == []


def test_splice():
    assert splice((4, 5, 6), 0, 9) == [9] and splice([4, 5, 6], 2, 9) == [4, 5, 9]
    for outside in (-1, 3):
        with pytest.raises(ValueError, match="outside"):
            splice([4, 5, 6], outside, 9)
