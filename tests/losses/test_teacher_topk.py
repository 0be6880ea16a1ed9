"""The teacher from its k most probable classes: exact where nothing else is read, and its error measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsr.losses import CachedRows, cache_error, restored_logits, tiled_objective, top_of_logits
from mgsr.losses.teacher_topk import StoredRanking
from tests.losses.dense import Problem


def cached(problem: Problem, k: int, rows: torch.Tensor) -> CachedRows:
    return CachedRows(rows, *top_of_logits(problem.taught[rows] @ problem.teacher.T, k))


def run(problem: Problem, clip, **options):
    terms = tiled_objective(*problem.arguments, clip=clip, sft_mask=problem.truth, **options)
    return terms, torch.autograd.grad(terms.total, problem.inputs)


@pytest.mark.parametrize("divergence", ["dac_kl", "forward_kl", "reverse_kl", "jensen_shannon"])
def test_all_classes_cached_is_the_teacher_itself(divergence):
    problem = Problem(rows=41)
    want, want_grads = run(problem, (0.1, 0.8), divergence=divergence)
    rows = torch.arange(0, 41, 3)
    poisoned = problem.taught.clone()
    poisoned[rows] = math.nan
    store = cached(problem, 37, rows)
    problem.taught = poisoned
    for tile_size in (4, 100):
        got, grads = run(problem, (0.1, 0.8), divergence=divergence, cached=store, tile_size=tile_size)
        for name in ("sft", "dac_kl", "span", "total"):
            torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=1e-9, atol=1e-12)
        for mine, other in zip(grads, want_grads, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_clipped_classes_need_no_cache():
    """With everything that DAC-KL keeps among the k classes, its value is exact."""
    problem = Problem(rows=41, scale=2.0)
    clip, store = (0.05, 0.6), cached(problem, 20, torch.arange(41))
    p = (problem.taught @ problem.teacher.T).softmax(-1).sort(-1, descending=True).values
    assert bool((p[:, :20].sum(-1) > 0.6 + 4 * 0.005).all())
    want, want_grads = run(problem, clip, weights=(1.0, 1.0, 0.0))
    got, grads = run(problem, clip, weights=(1.0, 1.0, 0.0), cached=store)
    torch.testing.assert_close(got.dac_kl, want.dac_kl, rtol=1e-9, atol=1e-12)
    for mine, other in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(0, 1000), st.floats(0.1, 8.0))
def test_error_and_tail_against_numpy(k, seed, scale):
    z = np.random.default_rng(seed).normal(size=(3, 9)) * scale
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    logits = torch.from_numpy(z)
    values, ids, log_tail = top_of_logits(logits, k)
    kept = restored_logits(values, ids, log_tail, 9).exp().numpy()
    order = np.argsort(-p, axis=-1)
    for row in range(3):
        top, rest = order[row, :k], order[row, k:]
        expected = p[row].copy()
        if k < 9:
            expected[rest] = p[row, rest].mean()
        np.testing.assert_allclose(kept[row], expected, rtol=1e-9)
        np.testing.assert_allclose(sorted(ids[row].tolist()), sorted(top))
        np.testing.assert_allclose(float(log_tail[row].exp()), p[row, rest].sum(), atol=1e-12)
        kl = (p[row] * np.log(p[row] / expected)).sum()
        np.testing.assert_allclose(float(cache_error(logits, k)[row]), max(kl, 0.0), atol=1e-12)


def test_impossible_classes_and_a_wrong_k():
    logits = torch.tensor([[0.0, -math.inf, 1.0, -math.inf]])
    values, ids, log_tail = top_of_logits(logits, 2)
    assert log_tail.item() == -math.inf and ids.tolist() == [[2, 0]]
    torch.testing.assert_close(restored_logits(values, ids, log_tail, 4).exp(), logits.softmax(-1))
    assert cache_error(logits, 2).item() == 0.0
    for k in (0, 5):
        with pytest.raises(ValueError, match="within 1 and 4"):
            top_of_logits(logits, k)


@pytest.mark.parametrize("k", [3, 8])
def test_classes_outside_lie_in_the_rest_bin(k):
    """Against numpy: bounds that would reach into the tail keep nothing of it, as only its mass is known."""
    problem = Problem(rows=9, scale=0.5)
    clip = (-1.0, 0.9)
    got, _ = run(problem, clip, weights=(0.0, 1.0, 0.0), cached=cached(problem, k, torch.arange(9)))
    p, q = (
        (states @ weight.T).softmax(-1).detach().numpy()
        for states, weight in ((problem.taught, problem.teacher), problem.arguments[:2])
    )
    losses = []
    for taught, own in zip(p[problem.labels.numpy() >= 0], q[problem.labels.numpy() >= 0], strict=True):
        top = np.argsort(-taught, kind="stable")[:k]
        assert taught[top].sum() < 0.9 - 4 * 0.005
        rest = 1 - taught[top].sum(), 1 - own[top].sum()
        losses.append((taught[top] * np.log(taught[top] / own[top])).sum() + rest[0] * np.log(rest[0] / rest[1]))
    assert float(got.dac_kl) == pytest.approx(np.mean(losses), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 1000), st.integers(1, 9))
def test_what_lies_behind_the_stored_classes_comes_by_id(k, seed, depth):
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values, ids, tail = top_of_logits(logits, k)
    ranking = StoredRanking(torch.arange(4), ids, torch.full((4,), k), torch.arange(0))
    want = restored_logits(values, ids, tail, 9).sort(dim=-1, descending=True, stable=True).indices
    assert ranking.ids_to(depth).tolist() == want[:, :depth].tolist()
