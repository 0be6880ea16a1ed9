"""The compiled loops of a CPU in float32 against the whole logits in float64, and on rows that are awkward."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mgsr.losses import ranking, tiled_objective
from mgsr.losses.fused import rows as rows_module
from mgsr.losses.fused import selection
from mgsr.losses.fused.rows import RowPair, rows_by
from mgsr.losses.fused.span_correlation import span_tile
from mgsr.losses.ranking import top_classes
from mgsr.losses.teacher_topk import CachedRows, top_of_logits
from tests.losses.dense import Problem, dense_objective, network


@pytest.fixture
def by_loops(monkeypatch):
    """Loops whatever the width, and every depth of selection."""
    monkeypatch.setattr(rows_module, "LEAST_WIDTH", 1)
    monkeypatch.setattr(ranking, "SORT_WIDTH", 20)
    monkeypatch.setattr(selection, "DEPTHS", (16, 64, 256))


def in_both(classes=900, seed=3, scale=1.5, **options):
    """The same problem in float32 and float64."""
    narrow = Problem(classes=classes, dtype=torch.float32, seed=seed, scale=scale, **options)
    wide = Problem(classes=classes, dtype=torch.float64, seed=seed, scale=scale, **options)
    with torch.no_grad():
        wide.hidden.copy_(narrow.hidden)
        wide.weight.copy_(narrow.weight)
    wide.taught, wide.teacher = narrow.taught.double(), narrow.teacher.double()
    return narrow, wide


def compared(narrow, wide, clip, dense=None, *, tolerance=2e-5, **options):
    """Terms and gradients by loops, and by the definitions on whole logits."""
    got = tiled_objective(*narrow.arguments, clip=clip, **options)
    options.pop("tile_size", None)
    total, terms, _ = dense_objective(wide, clip if dense is None else dense, **options)
    for mine, other in zip((got.sft, got.dac_kl, got.span), terms, strict=True):
        assert mine.item() == pytest.approx(other.item(), rel=tolerance, abs=1e-7)
    grads = torch.autograd.grad(got.total, narrow.inputs)
    for mine, other in zip(grads, torch.autograd.grad(total, wide.inputs), strict=True):
        assert float((mine.double() - other).norm() / other.norm()) < tolerance


def loops_only(monkeypatch):
    """Refuse passes over a tile in float32."""

    def passes(p, *args, **options):
        return pytest.fail("passes over the tile") if p.dtype == torch.float32 else span_tile(p, *args, **options)

    monkeypatch.setattr("mgsr.losses.fused.tile.span_tile", passes)


@pytest.mark.parametrize("tile_size", [None, 1, 7])
@pytest.mark.parametrize("clip", [(0.1, 0.8), (-1.0, 0.99), (0.3, 0.5), (0.999, 2.0)])
def test_fixed_bounds(by_loops, monkeypatch, clip, tile_size):
    loops_only(monkeypatch)
    compared(*in_both(), clip, weights=(1.0, 0.7, 1.3), tile_size=tile_size)


@pytest.mark.parametrize(
    "options",
    [
        {"target": "label"},
        {"keep_target": False},
        {"form": "literal"},
        {"quantile": "rank"},
        {"temperature": 2.5},
        {"sharpness": 0.0},
        {"weights": (1.0, 0.0, 1.0)},
        {"weights": (0.0, 1.0, 0.0)},
    ],
    ids=str,
)
def test_options(by_loops, monkeypatch, options):
    loops_only(monkeypatch)
    compared(*in_both(), (0.05, 0.6), **options)


def test_a_clip_network(by_loops, monkeypatch):
    loops_only(monkeypatch)
    narrow, wide = in_both()
    compared(narrow, wide, network().float(), network(), sharpness=0.02)
    nets = network().float(), network()
    grads = []
    for net, problem in zip(nets, (narrow, wide), strict=True):
        terms = tiled_objective(*problem.arguments, clip=net, sharpness=0.02)
        grads.append(torch.autograd.grad(terms.total, list(net.parameters())))
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kept", [8, 40])
def test_cached_rows_tie_outside_their_classes(by_loops, monkeypatch, kept):
    loops_only(monkeypatch)
    results = []
    for problem in in_both():
        chosen = torch.arange(0, 41, 2)
        cached = CachedRows(chosen, *top_of_logits(problem.taught[chosen] @ problem.teacher.T, kept))
        terms = tiled_objective(*problem.arguments, clip=(0.1, 0.9), cached=cached)
        results.append((terms.total, *torch.autograd.grad(terms.total, problem.inputs)))
    for mine, other in zip(*results, strict=True):
        assert float((mine.double() - other).norm() / other.norm()) < 2e-5


def test_collected_rows(by_loops):
    narrow, wide = in_both()
    stats = [tiled_objective(*p.arguments, clip=(0.1, 0.8), collect_rows=True).rows for p in (narrow, wide)]
    for name in ("teacher_log_prob", "teacher_entropy", "dac_kl", "retained_mass", "clipped"):
        mine, other = (getattr(rows, name) for rows in stats)
        torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=1e-6)


def test_results_do_not_depend_on_how_many_threads_share_the_rows(by_loops):
    narrow, _ = in_both(classes=9000)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            terms = tiled_objective(*narrow.arguments, clip=(0.1, 0.8))
            results.append((terms.total, *torch.autograd.grad(terms.total, narrow.inputs)))
    finally:
        torch.set_num_threads(before)
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_without_numbers_is_told_and_harms_no_other(by_loops, bad):
    narrow, _ = in_both()
    narrow.spans = torch.full_like(narrow.spans, -1)
    narrow.labels[:] = narrow.labels.abs() % 900
    clean = tiled_objective(*narrow.arguments, clip=(0.1, 0.8), collect_rows=True)
    narrow.taught[5] = bad
    spoiled = tiled_objective(*narrow.arguments, clip=(0.1, 0.8), collect_rows=True)
    assert not torch.isfinite(spoiled.total)
    others = torch.arange(41) != 5
    torch.testing.assert_close(clean.rows.dac_kl[others], spoiled.rows.dac_kl[others])


def _pair(teacher: torch.Tensor, student: torch.Tensor, depth: int) -> RowPair:
    return RowPair(
        teacher, student, top_classes(teacher, depth), torch.zeros(len(teacher), dtype=torch.bool), None
    )


def test_classes_that_are_ruled_out():
    logits = 3 * torch.randn(2, 5, 7000, generator=torch.Generator().manual_seed(0))
    logits[..., 3000:] = -math.inf
    pair = _pair(*logits, 256)
    for softmax, own in zip((pair.teacher, pair.student), logits, strict=True):
        want = torch.log_softmax(own.double(), -1)
        assert torch.isneginf(softmax.log_probs()[:, 3000:]).all()
        torch.testing.assert_close(softmax.log_probs()[:, :3000].double(), want[:, :3000], rtol=1e-5, atol=1e-5)
        entropy = -(want[:, :3000].exp() * want[:, :3000]).sum(-1)
        torch.testing.assert_close(softmax.entropy().double(), entropy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [200, 256], ids=["as ranked", "of other classes"])
def test_the_mass_outside_is_summed_and_no_difference(depth):
    generator = torch.Generator().manual_seed(1)
    teacher, student = (torch.randn(6, 6000, generator=generator) for _ in range(2))
    teacher[:, 17], student[:, 17] = 30.0, 30.0
    # ties at the last class inside, and fewer classes than are inside
    teacher[0, 100:400], teacher[1], teacher[2, 100:] = 2.0, 0.0, -math.inf
    pair = _pair(teacher, student, depth)
    ids = top_classes(teacher, 200)[1]
    none = torch.full((6,), -1)
    apart = torch.tensor([-1, -1, 5999, int(ids[3, -1]) + 1, 0, 350])
    apart = torch.where((ids == apart[:, None]).any(1), -1, apart)
    for one_more in (none, apart):
        got = pair.outside(ids[:, -1], one_more, None)
        for mine, logits in zip(got, (teacher, student), strict=True):
            probs = torch.softmax(logits.double(), -1).scatter(1, ids, 0.0)
            left_out = one_more >= 0
            probs[left_out] = probs[left_out].scatter(1, one_more[left_out, None], 0.0)
            torch.testing.assert_close(mine.double(), probs.sum(-1), rtol=2e-6, atol=0.0)
        some = torch.tensor([4, 2])
        torch.testing.assert_close(pair.outside(ids[some, -1], one_more[some], some)[0], got[0][some])


@pytest.mark.parametrize("k", [5, 300, 2500])
def test_the_largest_classes_are_those_of_a_full_sort(k):
    generator = torch.Generator().manual_seed(k)
    rows = 4 * torch.randn(9, 5003, generator=generator)
    rows[1] = rows[1].round()
    rows[2, 1000:] = -7.0
    rows[3] = 0.0
    rows[4, 7:] = -math.inf
    rows[5] = torch.arange(5003) / 1e6
    rows[6, :2] = torch.tensor([0.0, -0.0])
    rows[7, 5002] = 1e30
    want = rows.sort(dim=-1, descending=True, stable=True)
    values, ids = top_classes(rows, k)
    assert ids.equal(want.indices[:, :k]) and values.equal(want.values[:, :k])
    some = torch.tensor([7, 1, 1])
    assert top_classes(rows, k, some)[1].equal(ids[some])


def test_a_row_with_nan_has_some_order():
    rows = torch.randn(3, 5003)
    rows[1, ::3] = math.nan
    _, ids = top_classes(rows, 300)
    assert all(len(set(row.tolist())) == 300 and int(row.min()) >= 0 and int(row.max()) < 5003 for row in ids)
    assert ids[[0, 2]].equal(rows[[0, 2]].sort(dim=-1, descending=True, stable=True).indices[:, :300])


def test_the_polynomial_of_exp_is_as_exact_as_float32():
    from mgsr.losses.row_loops import _probs

    x = np.linspace(-86.9, 0, 200_001, dtype=np.float32)
    out = np.empty_like(x)
    _probs(x, np.float32(0.0), np.float32(1.0), out)
    assert np.abs(out / np.exp(x.astype(np.float64)) - 1).max() < 3e-7
    below = np.array([-87.5, -1e30, -np.inf], np.float32)
    _probs(below, np.float32(0.0), np.float32(1.0), below)
    assert (below == 0).all()


def test_where_loops_serve():
    cpu, wide = torch.device("cpu"), rows_module.LEAST_WIDTH
    closed = "l2_squared", "hadamard"
    assert rows_by(cpu, torch.float32, wide, 256, *closed) is rows_module
    assert rows_by(cpu, torch.float64, wide, 256, *closed) is None
    assert rows_by(cpu, torch.float32, wide - 1, 256, *closed) is None
    assert rows_by(cpu, torch.float32, wide, 0, *closed) is None
    assert rows_by(cpu, torch.float32, wide, 256, "l2", "hadamard") is None
    assert rows_by(torch.device("meta"), torch.float32, wide, 256, *closed) is None
