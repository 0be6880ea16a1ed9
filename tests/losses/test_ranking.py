from __future__ import annotations

import math

import pytest
import torch

from mgsr.losses import dac_kl, ranking, tiled_objective
from mgsr.losses.clip_bounds import ramp_value
from mgsr.losses.fused import selection
from mgsr.losses.fused.dac_kl import ramp_slope
from mgsr.losses.log_probs import entropy
from mgsr.losses.ranking import sort_classes, top_classes
from tests.host_reads import HostReads, as_on_a_gpu


def levels(rows, width, count, seed=0, dtype=torch.float32):
    """Log-probabilities with many ties: `count` different values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(torch.randint(0, count, (rows, width), generator=generator).to(dtype), dim=-1)


@pytest.mark.parametrize("width", [1, 2, 7, 40, 300, 3000])
@pytest.mark.parametrize("count", [1, 5, 100, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sorting_puts_ties_in_the_order_of_their_ids(width, count, dtype):
    rows = levels(6, width, count, dtype=dtype)
    values, ids = sort_classes(rows)
    want = rows.sort(dim=-1, descending=True, stable=True)
    assert values.equal(want.values) and ids.equal(want.indices)


@pytest.mark.parametrize("k", [1, 2, 10, 63, 2999, 3000, 5000])
@pytest.mark.parametrize("count", [1, 5, 300, 3000, 10**6])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_the_top_is_the_beginning_of_the_full_order(monkeypatch, k, count, on_gpu):
    if on_gpu:
        as_on_a_gpu(monkeypatch)
    rows = levels(20, 3000, count, seed=k)
    values, ids = top_classes(rows, k)
    want = rows.sort(dim=-1, descending=True, stable=True)
    assert ids.equal(want.indices[:, :k]) and values.equal(want.values[:, :k])


def test_both_zeros_are_one_value():
    rows = torch.tensor([[-0.0, 0.0, -1.0, 0.0, -0.0]]).repeat(1, 1000)
    want = [i for i in range(5000) if i % 5 != 2]
    assert top_classes(rows, 30)[1][0].tolist() == want[:30]
    assert sort_classes(rows)[1][0, :4000].tolist() == want


def test_ties_inside_the_top_but_not_at_its_end():
    # 0, 0, 1, 1, 2, 2, ... with the larger id first among equals in memory order of the partition
    rows = -(torch.arange(3000.0) // 2).flip(0).expand(4, -1).contiguous()
    ids = top_classes(rows, 8)[1]
    assert ids[0].tolist() == [2998, 2999, 2996, 2997, 2994, 2995, 2992, 2993]


def test_on_a_gpu_nothing_is_looked_at(monkeypatch):
    as_on_a_gpu(monkeypatch)
    rows = levels(6, 3000, 5)
    rows[2, 5] = math.nan
    with HostReads() as reads:
        _, ids = top_classes(rows, 50)
    assert reads.found == [] and int(ids.min()) >= 0 and int(ids.max()) < 3000


def test_absent_classes_and_nan_do_not_break_the_order():
    rows = torch.tensor([[-math.inf, 0.0, -math.inf, -1.0], [0.0, math.nan, 1.0, 2.0]])
    assert sort_classes(rows)[1][0].tolist() == [1, 3, 0, 2]
    assert sorted(sort_classes(rows)[1][1].tolist()) == [0, 1, 2, 3]
    log_p = rows[:1].log_softmax(-1)
    want = -sum(x * math.log(x) for x in log_p.exp()[0].tolist() if x > 0)
    assert entropy(log_p, log_p.exp()).item() == pytest.approx(want)


@pytest.mark.parametrize("kind", ["clipped", "sigmoid"])
def test_the_ramp_and_its_slope(kind):
    x = torch.linspace(-6, 6, 241, dtype=torch.float64).requires_grad_()
    value = ramp_value(x, kind)
    (want,) = torch.autograd.grad(value.sum(), x)
    inner = (x.detach().abs() - 4).abs() > 1e-3
    torch.testing.assert_close(ramp_slope(value.detach(), kind)[inner], want[inner])
    overwritten = x.detach().clone()
    assert ramp_value(overwritten, kind, out=overwritten) is overwritten
    torch.testing.assert_close(overwritten, value.detach())
    assert value[120].item() == pytest.approx(0.5)
    if kind == "clipped":
        assert (value[x < -4.001] == 0).all() and (value[x > 4.001] == 1).all()
        assert ((value > 0) & (value < 1))[(x.abs() < 3.999)].all()


@pytest.mark.parametrize("target", ["argmax", "label"])
def test_a_rest_bin_far_below_rounding_keeps_its_precision(monkeypatch, target):
    """A certain student leaves about 1e-6 to the rest; in float32 most digits of that are lost in 1 - sum."""
    monkeypatch.setattr(ranking, "SORT_WIDTH", 20)
    monkeypatch.setattr(selection, "DEPTHS", (16,))
    width, rows = 200, 4
    generator = torch.Generator().manual_seed(0)
    teacher = torch.where(torch.arange(width) < 4, 6.0, 0.0) + 0.1 * torch.randn(rows, width, generator=generator)
    student = torch.where(torch.arange(width) < 4, 18.0, 0.0) + torch.randn(rows, width, generator=generator)
    labels, eye = torch.tensor([1, 9, 50, 199]), torch.eye(width)
    got_by_dtype = []
    for dtype in (torch.float32, torch.float64):
        hidden = student.to(dtype).requires_grad_()
        weight = eye.to(dtype)
        arguments = (hidden, weight, teacher.to(dtype), weight, labels, None)
        got = tiled_objective(*arguments, clip=(-math.inf, 0.8), weights=(0, 1, 0), target=target)
        got_by_dtype.append((got.total, *torch.autograd.grad(got.total, hidden)))
    ids = None if target == "argmax" else labels
    want = dac_kl(teacher.double(), student.double(), -math.inf, 0.8, target=ids).loss.mean()
    for total, grad in got_by_dtype:
        assert total.item() == pytest.approx(want.item(), rel=1e-5)
        torch.testing.assert_close(grad.double(), got_by_dtype[1][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kept", [1, 16, 63, 64, 200])
def test_an_even_rest_is_ranked_by_its_first_ids(dtype, kept, monkeypatch):
    rows = restored(kept).to(dtype)
    want = rows.sort(dim=-1, descending=True, stable=True).indices[:, :64]
    assert top_classes(rows, 64)[1].equal(want)
    # without a look at all classes, where the first ones suffice
    whole = [ranking._pack, ranking.sort_classes]
    monkeypatch.setattr(ranking, "_pack", lambda v, i: whole[0](v, i) if v.shape[1] < 5000 else pytest.fail("all"))
    monkeypatch.setattr(
        ranking, "sort_classes", lambda v: whole[1](v) if v.shape[1] < 5000 else pytest.fail("all")
    )
    assert top_classes(rows, 64)[1].equal(want)


def restored(kept, width=5000):
    """Rows whose classes are alike but for `kept` of them; of the last row some of these are alike as well."""
    draw = torch.Generator().manual_seed(kept)
    rows = torch.full((5, width), -9.0)
    for row in rows:
        row[torch.randperm(width, generator=draw)[:kept]] = torch.rand(kept, generator=draw)
    rows[4, :kept] = -9.0
    return rows
