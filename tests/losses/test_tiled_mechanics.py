from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mgsr.losses import ranking, tiled_objective
from mgsr.losses.fused import dac_kl as dac_kl_tiles
from mgsr.losses.fused import selection, tile
from tests.losses.dense import CLIP, Problem, dense_objective, network

INF = math.inf


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_bias_scale_and_soft_cap(temperature):
    problem = Problem()
    torch.manual_seed(3)
    bias = torch.randn(37, dtype=torch.float64, requires_grad=True)
    taught_bias = torch.randn(37, dtype=torch.float64)
    options = {"clip": CLIP, "temperature": temperature}
    got = tiled_objective(
        *problem.arguments,
        student_bias=bias,
        teacher_bias=taught_bias,
        student_scale=0.5,
        teacher_scale=1.5,
        student_softcap=3.0,
        teacher_softcap=5.0,
        tile_size=6,
        **options,
    )
    student = 3 * torch.tanh(0.5 * (problem.hidden @ problem.weight.T + bias) / 3)
    teacher = 5 * torch.tanh(1.5 * (problem.taught @ problem.teacher.T + taught_bias) / 5)
    # the same logits with an identity for the output layer
    eye = torch.eye(37, dtype=torch.float64)
    want = tiled_objective(student, eye, teacher, eye, problem.labels, problem.spans, **options)
    torch.testing.assert_close(got.total, want.total)
    inputs = [*problem.inputs, bias]
    for mine, other in zip(
        torch.autograd.grad(got.total, inputs), torch.autograd.grad(want.total, inputs), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_padded_vocabularies_are_cut_to_the_shared_classes():
    problem = Problem()
    garbage = torch.full((3, 8), 50.0, dtype=torch.float64)
    wide = torch.cat([problem.weight.detach(), garbage]).requires_grad_()
    taught = torch.cat([problem.teacher, torch.full((11, 6), 70.0, dtype=torch.float64)])
    bias = torch.zeros(40, dtype=torch.float64, requires_grad=True)
    rest = (problem.labels, problem.spans)
    got = tiled_objective(
        problem.hidden, wide, problem.taught, taught, *rest, clip=CLIP, vocab_size=37, student_bias=bias
    )
    want = tiled_objective(*problem.arguments, clip=CLIP)
    torch.testing.assert_close(got.total, want.total)
    grad, by_bias = torch.autograd.grad(got.total, (wide, bias))
    torch.testing.assert_close(grad[:37], torch.autograd.grad(want.total, problem.weight)[0])
    assert grad[37:].abs().max() == 0 and by_bias[37:].abs().max() == 0
    with pytest.raises(ValueError, match="40 and 48"):
        tiled_objective(problem.hidden, wide, problem.taught, taught, *rest, clip=CLIP)


def test_backward_may_run_again_and_scales_with_the_incoming_gradient():
    problem = Problem()
    got = tiled_objective(*problem.arguments, clip=CLIP)
    first = torch.autograd.grad(got.total, problem.inputs, retain_graph=True)
    copy = [grad.clone() for grad in first]
    for grad in first:
        grad.zero_()
    second = torch.autograd.grad(-3 * got.total, problem.inputs, retain_graph=True)
    for mine, other in zip(second, copy, strict=True):
        torch.testing.assert_close(mine, -3 * other)


def test_tied_embeddings_and_a_weight_without_storage_of_its_own():
    problem = Problem()
    table = problem.weight.detach().clone().requires_grad_()
    tokens = torch.arange(41) % 37

    def loss(weight_of):
        hidden = torch.tanh(table[tokens])
        return tiled_objective(hidden, weight_of(table), *problem.arguments[2:], clip=CLIP).total

    tied = torch.autograd.grad(loss(lambda weight: weight), table)[0]
    apart = torch.autograd.grad(loss(lambda weight: weight.detach()), table)[0]
    hidden = torch.tanh(table[tokens])
    logits = (problem.taught, problem.teacher, problem.labels, problem.spans)
    layer = torch.autograd.grad(tiled_objective(hidden.detach(), table, *logits, clip=CLIP).total, table)[0]
    torch.testing.assert_close(tied, apart + layer)
    row = torch.randn(1, 8, dtype=torch.float64, requires_grad=True)
    got = tiled_objective(problem.hidden, row.expand(37, 8), *logits, clip=CLIP).total
    # all classes alike: whatever the row is, q is uniform
    assert torch.autograd.grad(got, row)[0].abs().max() < 1e-12
    turned = problem.weight.detach().T.contiguous().requires_grad_()
    (mine,) = torch.autograd.grad(tiled_objective(problem.hidden, turned.T, *logits, clip=CLIP).total, turned)
    (other,) = torch.autograd.grad(tiled_objective(*problem.arguments, clip=CLIP).total, problem.weight)
    torch.testing.assert_close(mine, other.T)


def test_without_gradients_nothing_is_attached():
    problem, net = Problem(), network()
    want = tiled_objective(*problem.arguments, clip=net)
    with torch.no_grad():
        got = tiled_objective(*problem.arguments, clip=net)
    assert not got.total.requires_grad and want.total.requires_grad
    torch.testing.assert_close(got.total, want.total.detach())
    plain = tiled_objective(problem.hidden.detach(), problem.weight.detach(), *problem.arguments[2:], clip=CLIP)
    assert not plain.total.requires_grad
    frozen = tiled_objective(problem.hidden.detach(), problem.weight.detach(), *problem.arguments[2:], clip=net)
    parameters = list(net.parameters())
    for mine, other in zip(
        torch.autograd.grad(frozen.total, parameters), torch.autograd.grad(want.total, parameters), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_bfloat16_inputs_are_computed_in_float32():
    problem = Problem(dtype=torch.float32)
    narrow = [tensor.detach().bfloat16() for tensor in problem.arguments[:4]]
    for tensor in narrow[:2]:
        tensor.requires_grad_()
    wide = [tensor.detach().float() for tensor in narrow]
    for tensor in wide[:2]:
        tensor.requires_grad_()
    rest = problem.arguments[4:]
    got = tiled_objective(*narrow, *rest, clip=CLIP)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = tiled_objective(*wide, *rest, clip=CLIP)
    want = tiled_objective(*wide, *rest, clip=CLIP)
    assert got.total.dtype == torch.float32
    torch.testing.assert_close(got.total, want.total)
    torch.testing.assert_close(cast.total, want.total)
    for mine, other in zip(
        torch.autograd.grad(got.total, narrow[:2]), torch.autograd.grad(want.total, wide[:2]), strict=True
    ):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine, other.bfloat16())


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return out


@pytest.mark.parametrize("clip", [CLIP, (-INF, INF), "net"])
def test_no_tensor_is_larger_than_a_tile(monkeypatch, clip):
    monkeypatch.setattr(ranking, "SORT_WIDTH", 20)
    monkeypatch.setattr(selection, "DEPTHS", (32, 96))
    problem, rows = Problem(rows=64, classes=500), 5
    chosen = network(objective="priced") if clip == "net" else clip
    with Largest() as seen:
        got = tiled_objective(*problem.arguments, clip=chosen, tile_size=rows, collect_rows=True)
        (got.total + got.clip_penalty).backward()
    assert 500 * 8 <= seen.numel <= 500 * 8 * (rows + 1) // 5 < 64 * 500


def test_each_depth_of_selection_is_used(monkeypatch):
    monkeypatch.setattr(ranking, "SORT_WIDTH", 20)
    monkeypatch.setattr(selection, "DEPTHS", (16, 64))
    seen = []

    def spy(part, *arguments, **options):
        seen.append(tuple(part.c.shape))
        return original(part, *arguments, **options)

    original = dac_kl_tiles.clipped_rows
    monkeypatch.setattr(dac_kl_tiles, "clipped_rows", spy)
    problem = Problem(rows=8, classes=200, scale=0.0)
    problem.labels = torch.arange(8)
    # two certain rows, three that need a few dozen classes, three flat ones
    taught = torch.zeros(8, 6, dtype=torch.float64)
    taught[:2, 0], taught[2:5, 0] = 3.0, 0.1
    teacher = torch.zeros(200, 6, dtype=torch.float64)
    teacher[:, 0] = -torch.arange(200.0)
    problem.taught, problem.teacher = taught, teacher
    got = tiled_objective(*problem.arguments, clip=(0.05, 0.9))
    # a row that needs more is computed at the first depth as well, which is cheaper than to sort it out
    assert seen == [(5, 16), (3, 64), (3, 200)]
    want, _, _ = dense_objective(problem, (0.05, 0.9))
    torch.testing.assert_close(got.total, want)


def test_the_teacher_gets_no_gradient():
    problem = Problem()
    problem.taught.requires_grad_(), problem.teacher.requires_grad_()
    tiled_objective(*problem.arguments, clip=CLIP).total.backward()
    assert problem.taught.grad is None and problem.teacher.grad is None


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("part", [37, 150, 400, 5000])
def test_tiles_in_parts_equal_one_tile(monkeypatch, part, softcap):
    """Spans cross the ends of parts and tiles; the gradient replaces logits that nothing reads again."""
    monkeypatch.setitem(tile.PART_ELEMENTS, "cpu", part)
    monkeypatch.setitem(tile.TILE_ELEMENTS, "cpu", 1)
    problem, net = Problem(rows=200, seed=4), network(objective="priced")
    options = {"clip": net, "sft_mask": problem.truth, "student_softcap": softcap, "collect_rows": True}
    variables = [*problem.inputs, *net.parameters()]
    got = tiled_objective(*problem.arguments, **options)
    assert tile.rows_per_part(None, 64, 37, "cpu") == max(1, math.ceil(64 / max(1, round(64 * 37 / part))))
    want = tiled_objective(*problem.arguments, tile_size=1000, **options)
    for name in ("total", "sft", "dac_kl", "span", "clip_penalty"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got.rows.retained_mass, want.rows.retained_mass, rtol=1e-9, atol=1e-12)
    both = [torch.autograd.grad(terms.total + terms.clip_penalty, variables) for terms in (got, want)]
    for mine, other in zip(*both, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_a_broken_row_outside_every_pair_does_not_reach_its_neighbours():
    problem = Problem(rows=4)
    problem.labels, problem.spans = torch.tensor([1, 2, 3, 4]), torch.tensor([0, 0, -1, -1])
    options = {"clip": CLIP, "weights": (0.0, 0.0, 1.0)}
    want = torch.autograd.grad(tiled_objective(*problem.arguments, **options).total, problem.hidden)[0]
    with torch.no_grad():
        problem.hidden[2] = math.nan
    got = torch.autograd.grad(tiled_objective(*problem.arguments, **options).total, problem.hidden)[0]
    torch.testing.assert_close(got[:2], want[:2])
