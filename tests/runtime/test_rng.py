"""Keyed uniforms and the draws made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsr.runtime.rng import Stream, draw_bits, inverse_cdf, seed_dropout, uniform
from tests.scrg.reference import draw

MASK = (1 << 64) - 1


def python_uniform(*words: int) -> float:
    """The same hash in Python's unbounded integers."""

    def finalise(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    state = 0
    for word in words:
        state = finalise(((state + 0x9E3779B97F4A7C15) & MASK) ^ (word & MASK))
    return (finalise((state + 0x9E3779B97F4A7C15) & MASK) >> 11) * 2.0**-53


def test_golden_values():
    """Written text must stay what it was: these numbers may never change."""
    assert uniform(0, Stream.ROLLOUT, 0, 7, 0, [0, 1, 2]).tolist() == [
        0.9266305235044875,
        0.39250690258424936,
        0.8037265494621368,
    ]
    assert float(uniform(12345, Stream.TEACHER, 3, -2, 5, 1000)) == 0.36379761632146634
    assert float(uniform(2**63 + 5, Stream.EVALUATION, 0, 10**12, 0, 0)) == 0.9546054864807602


word = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**64 - 1), st.sampled_from(list(Stream)), word, word, word, word)
def test_equals_plain_integers(seed, stream, round_, example, pass_, position):
    expected = python_uniform(seed, int(stream), round_, example, pass_, position)
    value = uniform(seed, stream, round_, example, pass_, position)
    assert value.shape == () and float(value) == expected and 0 <= expected < 1
    assert draw_bits(seed, stream, round_, example, pass_, position) == int(float(value) * 2**53)


def test_broadcasts_and_takes_any_integer_type():
    ids, positions = np.array([[3], [9]], dtype=np.uint8), np.arange(4, dtype=np.int32)
    table = uniform(1, Stream.TEACHER, 2, ids, 3, positions)
    assert table.shape == (2, 4) and table.dtype == np.float64
    for row, example in enumerate([3, 9]):
        for position in range(4):
            assert table[row, position] == uniform(1, Stream.TEACHER, 2, example, 3, position)
    assert uniform(1, 0, 0, [], 0, 0).shape == (0,)


@pytest.mark.parametrize("axis", range(6))
def test_uniform_along_every_part_of_the_key(axis):
    """Moments, a chi-square over 64 cells, and no correlation between neighbouring keys."""
    count = {0: 500, 1: 4, 2: 500}.get(axis, 4000)
    values = []
    for offset in range(8):
        for n in range(count) if axis in (0, 1, 2) else [None]:
            key = [offset, 0, offset + 1, 17 + offset, 1, 40 * offset]
            key[axis] = np.arange(count) if n is None else n
            values.append(np.atleast_1d(uniform(*key)))
    x = np.concatenate(values)
    size = len(x)
    assert abs(x.mean() - 0.5) < 5 * (1 / 12 / size) ** 0.5
    if size > 1000:
        assert abs(x.var() - 1 / 12) < 5 * (1 / 180 / size) ** 0.5
        cells = np.bincount((x * 64).astype(int), minlength=64)
        chi_square = ((cells - size / 64) ** 2 / (size / 64)).sum()
        assert chi_square < 63 + 5 * (2 * 63) ** 0.5
        assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 5 / size**0.5


def test_streams_rounds_and_passes_are_independent():
    ids, positions = np.arange(300)[:, None], np.arange(50)
    tables = [uniform(5, stream, 0, ids, 0, positions).ravel() for stream in Stream]
    tables += [uniform(5, Stream.ROLLOUT, 1, ids, 0, positions).ravel()]
    tables += [uniform(5, Stream.ROLLOUT, 0, ids, 1, positions).ravel()]
    tables += [uniform(6, Stream.ROLLOUT, 0, ids, 0, positions).ravel()]
    correlations = np.corrcoef(tables) - np.eye(len(tables))
    assert np.abs(correlations).max() < 5 / 15000**0.5
    assert len(np.unique(np.concatenate(tables))) == len(tables) * 15000


@pytest.mark.parametrize(
    ("key", "seed"),
    [
        ((0, 0, 0, 0), 342421626587948),
        ((7, 1234, 3, 1), 3736708124511542),
        ((2**63 + 5, 599, 0, 7), 4488112443754661),
        ((-1, 0, 1, 0), 6144849102779441),
    ],
)
def test_dropout_keeps_its_seeds(key, seed):
    """Recorded as int(uniform(run, ROLLOUT, step, micro-batch, rank, 0) * 2^53): they may never change."""
    state = torch.get_rng_state()
    seed_dropout(key, torch.device("cpu"))
    assert torch.initial_seed() == seed
    torch.set_rng_state(state)


def test_refuses_what_is_no_key():
    with pytest.raises(TypeError):
        draw_bits(0, Stream.ROLLOUT, 0, 0, 0, 0.5)
    with pytest.raises(ValueError, match="9"):
        uniform(0, 9, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="position"):
        uniform(0, Stream.ROLLOUT, 0, 0, 0, [0.5])


@pytest.mark.parametrize("wide", [2**64, 2**64 + 7, -(2**63) - 1])
def test_a_seed_of_more_than_64_bits_is_refused_and_not_cut(wide):
    """2^64 would draw what 0 draws."""
    with pytest.raises(ValueError, match="seed must lie between"):
        uniform(wide, Stream.ROLLOUT, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="example_id must lie between"):
        uniform(0, Stream.ROLLOUT, 0, wide, 0, 0)
    with pytest.raises(ValueError, match="must lie between"):
        draw_bits(0, Stream.ROLLOUT, wide, 0, 0, 0)
    with pytest.raises(ValueError, match="must lie between"):
        seed_dropout((wide, 0, 0, 0), torch.device("cpu"))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.sampled_from([0.1, 1.0, 2.5]))
def test_inverse_cdf_equals_a_loop(seed, classes, temperature):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (5, classes))
    logits[rng.random(logits.shape) < 0.3] = -np.inf
    logits[:, rng.integers(classes)] = 0.0
    u = rng.random(5)
    drawn = inverse_cdf(torch.from_numpy(logits), torch.from_numpy(u), temperature=temperature)
    assert drawn.tolist() == [draw(row / temperature, x) for row, x in zip(logits, u, strict=True)]


def test_inverse_cdf_at_the_edges():
    inf = float("inf")
    logits = torch.tensor([[-inf, 0.0, -inf, 0.0, -inf]]).repeat(4, 1)
    edge = torch.tensor([0.0, 0.5, 0.5 - 2**-54, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(logits, edge).tolist() == [1, 3, 1, 3]
    # Ten tenths sum to just below 1: a uniform above must give the last class of positive probability.
    tenths = torch.cat([torch.zeros(1, 10), torch.full((1, 3), -inf)], dim=1).double()
    assert float(torch.softmax(tenths, -1).cumsum(-1)[0, -1]) < 1
    assert inverse_cdf(tenths, torch.tensor([1 - 2**-53], dtype=torch.float64)).tolist() == [9]
    assert inverse_cdf(torch.zeros(0, 5), torch.zeros(0)).tolist() == []


def test_a_sum_that_wobbles_never_gives_an_impossible_class(monkeypatch):
    """Parallel sums may be off in the last bits, upwards at a class of zero probability too."""
    exact = torch.Tensor.cumsum
    wobble = torch.tensor([0.0, 1e-15, 0.0], dtype=torch.float64)
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda self, dim: exact(self, dim) + wobble)
    logits = torch.tensor([[0.0, -float("inf"), 0.0]], dtype=torch.float64)
    assert inverse_cdf(logits, torch.tensor([0.5], dtype=torch.float64)).tolist() == [2]


def test_inverse_cdf_follows_the_distribution():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    u = torch.from_numpy(uniform(3, Stream.ROLLOUT, 0, np.arange(20_000), 0, 0))
    share = inverse_cdf(logits.expand(len(u), 4), u).bincount(minlength=4) / len(u)
    assert torch.allclose(share, logits.softmax(0), atol=0.015)


@pytest.mark.parametrize("bad", [[float("nan"), 0.0], [float("inf"), 0.0], [-float("inf"), -float("inf")]])
def test_inverse_cdf_refuses_no_distribution(bad):
    with pytest.raises(ValueError, match="NaN"):
        inverse_cdf(torch.tensor([[0.0, 0.0], bad]), torch.tensor([0.1, 0.1]))


def test_inverse_cdf_refuses_misuse():
    with pytest.raises(ValueError, match="uniforms"):
        inverse_cdf(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="temperature"):
        inverse_cdf(torch.zeros(1, 3), torch.zeros(1), temperature=0.0)
