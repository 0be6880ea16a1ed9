"""MiniLLM's estimator: its ingredients by hand, its expectation by enumeration of all sequences."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsr.losses import clipped_surrogate, policy_gradient_objective, reward_to_go

# -- ingredients --------------------------------------------------------------------------------------------


def test_reward_to_go_is_the_mean_of_what_follows() -> None:
    # response of four tokens after one of the prompt; one token alone; a whole row
    rewards = torch.tensor([[7.0, -1.0, 2.0, -4.0, 8.0, 5.0], [0.0, 0.0, 3.0, 0, 0, 0], [1.0, 2, 3, 4, 5, 6]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 0], [0, 0, 1, 0, 0, 0], [1] * 6]).bool()
    expected = [[0.0, 2.0, 2.0, 8.0, 0.0, 0.0], [0.0] * 6, [4.0, 4.5, 5.0, 5.5, 6.0, 0.0]]
    assert torch.equal(reward_to_go(rewards, mask), torch.tensor(expected))


def test_reward_to_go_reads_nothing_outside_the_mask() -> None:
    rewards = torch.tensor([[math.nan, 1.0, 2.0, math.inf]])
    assert reward_to_go(rewards, torch.tensor([[False, True, True, False]])).tolist() == [[0.0, 2.0, 0.0, 0.0]]


def test_a_reward_of_minus_infinity_reaches_the_tokens_before_it_alone() -> None:
    rewards = torch.tensor([[1.0, -math.inf, 3.0, 4.0]])
    assert reward_to_go(rewards, torch.ones(1, 4).bool()).tolist() == [[-math.inf, 3.5, 4.0, 0.0]]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.1, 2.0, -2.2, -2.2),  # inside: the plain policy gradient, -rho A
        (1.5, 2.0, -2.4, 0.0),  # good and already likely enough: clipped at 1.2
        (0.5, 2.0, -1.0, -1.0),  # good and unlikely: not clipped
        (1.5, -2.0, 3.0, 3.0),  # bad and likely: not clipped
        (0.5, -2.0, 1.6, 0.0),  # bad and already unlikely enough: clipped at 0.8
        (0.9, -2.0, 1.8, 1.8),
        (3.0, 0.0, 0.0, 0.0),
    ],
)
def test_surrogate_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    got = clipped_surrogate(torch.tensor(ratio).double(), torch.tensor(advantage).double(), 0.2)
    assert [float(value) for value in got] == pytest.approx([loss, slope], abs=1e-7)


@settings(max_examples=50, deadline=None)
@given(st.floats(-3, 3), st.floats(-5, 5), st.sampled_from([0.0, 0.2, 0.5, 1.5, math.inf]))
def test_surrogate_and_its_slope_agree(log_ratio: float, advantage: float, clip: float) -> None:
    a = torch.tensor([advantage]).double()
    step = 1e-6
    if any(abs(math.exp(log_ratio) - edge) < 1e-4 for edge in (1 - clip, 1 + clip)):
        return  # a kink
    log_rho = torch.tensor([log_ratio]).double()
    low, high = (clipped_surrogate((log_rho + d).exp(), a, clip)[0] for d in (-step, step))
    slope = clipped_surrogate(log_rho.exp(), a, clip)[1]
    assert float(slope) == pytest.approx(float((high - low) / (2 * step)), rel=1e-6, abs=1e-7)


def test_a_negative_clip_is_refused() -> None:
    with pytest.raises(ValueError, match=r"-0\.1"):
        clipped_surrogate(torch.ones(1), torch.ones(1), -0.1)


# -- the estimator's expectation, by enumeration of all sequences -------------------------------------------


def tabular(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[3 tokens, 4 prefixes]` of two tabular models; prefixes: none, then the first token."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(3, 4)), rng.normal(size=(3, 4))


def table_probs(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probs = np.exp(table - table.max(0)) / np.exp(table - table.max(0)).sum(0)
    return probs[:, 0], probs[:, 1:].T  # of the first token; of the second, [first, second]


def expected_gradient(student: np.ndarray, teacher: np.ndarray, alpha: float, clip: float) -> np.ndarray:
    """Expectation over p~ of the gradient of `policy_gradient_objective`, over all nine sequences."""
    (q1, q2), (p1, p2) = table_probs(student), table_probs(teacher)
    m1, m2 = alpha * p1 + (1 - alpha) * q1, alpha * p2 + (1 - alpha) * q2
    weight = torch.tensor(student, requires_grad=True)
    total = torch.zeros_like(weight)
    for y1, y2 in itertools.product(range(3), repeat=2):
        states = torch.eye(4, dtype=torch.float64)[[0, 1 + y1]].unsqueeze(0)
        terms = policy_gradient_objective(
            states,
            weight,
            states,
            torch.tensor(teacher),
            torch.tensor([[y1, y2]]),
            torch.tensor([[math.log(m1[y1]), math.log(m2[y1, y2])]]),
            torch.tensor([False]),
            counts=(0, 1),
            importance_clip=clip,
        )
        total += m1[y1] * m2[y1, y2] * torch.autograd.grad(terms.total, weight)[0]
    return total.numpy()


def numeric_gradient(function: Any, table: np.ndarray) -> np.ndarray:
    out = np.zeros_like(table)
    for place in np.ndindex(table.shape):
        moved = [table.copy(), table.copy()]
        moved[0][place] += 1e-6
        moved[1][place] -= 1e-6
        out[place] = (function(moved[0]) - function(moved[1])) / 2e-6
    return out


def sequence_kl(student: np.ndarray, teacher: np.ndarray) -> float:
    """KL(q || p) between the distributions of whole sequences."""
    (q1, q2), (p1, p2) = table_probs(student), table_probs(teacher)
    joint_q, joint_p = q1[:, None] * q2, p1[:, None] * p2
    return float((joint_q * np.log(joint_q / joint_p)).sum())


@pytest.mark.parametrize("seed", [0, 1])
def test_on_the_students_own_text_the_estimator_is_the_gradient_of_the_sequence_kl(seed: int) -> None:
    # two tokens: length normalisation divides by one, and no ratio leaves 1
    student, teacher = tabular(seed)
    exact = numeric_gradient(lambda table: sequence_kl(table, teacher), student)
    np.testing.assert_allclose(expected_gradient(student, teacher, 0.0, 0.2), exact, atol=1e-8)


@pytest.mark.parametrize("alpha", [0.2, 0.6])
def test_on_mixed_text_the_expectation_is_that_of_the_formula(alpha: float) -> None:
    """Unclipped, with one-step weights:  E = grad of  KL_1 + sum over y_1 of p~(y_1) KL_2(y_1)
    - sum over y_1 of q(y_1) * [sum over y_2 of p~(y_2 | y_1) r_2], the weights of a step averaging to 1."""
    student, teacher = tabular(5)
    (q1, q2), (p1, p2) = table_probs(student), table_probs(teacher)
    m1, m2 = alpha * p1 + (1 - alpha) * q1, alpha * p2 + (1 - alpha) * q2
    r2 = (m2 * np.log(p2 / q2)).sum(1)

    def objective(table: np.ndarray) -> float:
        own1, own2 = table_probs(table)
        single = (own1 * np.log(own1 / p1)).sum() + (m1 * (own2 * np.log(own2 / p2)).sum(1)).sum()
        return float(single - (own1 * r2).sum())

    expected = numeric_gradient(objective, student)
    np.testing.assert_allclose(expected_gradient(student, teacher, alpha, math.inf), expected, atol=1e-8)
    # with the sampled text's p~ at the second step the long part differs from the sequence KL's
    exact = numeric_gradient(lambda table: sequence_kl(table, teacher), student)
    assert np.abs(expected - exact).max() > 1e-3


def test_descent_along_the_expected_gradient_reaches_the_teacher() -> None:
    student, teacher = tabular(7)
    before = sequence_kl(student, teacher)
    for _ in range(50):
        student = student - 3.0 * expected_gradient(student, teacher, 0.2, 0.2)
    assert before > 0.3 and sequence_kl(student, teacher) < 1e-3
