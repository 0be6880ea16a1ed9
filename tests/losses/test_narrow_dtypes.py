"""The objective in bfloat16 and float16: what is rounded, what is not, and logits at their extremes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mgsr.losses import tiled_objective
from mgsr.losses.projection import factor_dtype
from mgsr.models.clip_network import ClipNetwork
from mgsr.runtime.processor import has_bf16_units
from tests.losses.dense import CLIP, Problem

BF16 = torch.bfloat16


def gradients(problem, arguments=None, inputs=None, tile_size=7, **options):
    arguments, inputs = arguments or problem.arguments, inputs or problem.inputs
    terms = tiled_objective(*arguments, sft_mask=problem.truth, tile_size=tile_size, **options)
    return terms, torch.autograd.grad(terms.total, inputs)


def relative(mine, other):
    mine, other = mine.detach().double(), other.detach().double()
    return float((mine - other).norm() / other.norm())


@pytest.mark.parametrize("clip", [CLIP, None, "network"])
@pytest.mark.parametrize("extra", [{}, {"student_softcap": 4.0, "teacher_scale": 0.5, "vocab_size": 30}])
def test_bfloat16_factors_are_all_that_is_rounded(clip, extra):
    """Of inputs that bfloat16 holds exactly, the terms are float32's; gradients are rounded once."""
    problem = Problem(dtype=torch.float32)
    problem.labels = problem.labels.clamp_max(29)
    for name in ("hidden", "weight", "taught", "teacher"):
        tensor = getattr(problem, name).detach().to(BF16).float()
        setattr(problem, name, tensor.requires_grad_(name in ("hidden", "weight")))
    bias = torch.linspace(-1, 1, 37).requires_grad_()
    if clip == "network":
        torch.manual_seed(0)
        clip = ClipNetwork(features=8, hidden=8)
    options = {
        "clip": clip,
        "student_bias": bias,
        "divergence": "jensen_shannon" if clip is None else "dac_kl",
        **extra,
    }
    inputs = [*problem.inputs, bias]
    want, exact = gradients(problem, inputs=inputs, **options)
    got, rounded = gradients(problem, inputs=inputs, product_dtype=BF16, **options)
    for mine, other in zip(got[:4], want[:4], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    for mine, other in zip(rounded[:2], exact[:2], strict=True):
        assert mine.dtype == torch.float32
        assert 1e-4 < relative(mine, other) < 2**-8
    assert relative(rounded[2], exact[2]) < 1e-5


def test_bfloat16_factors_round_the_inputs():
    problem = Problem(dtype=torch.float32)
    want, exact = gradients(problem, clip=CLIP)
    got, rounded = gradients(problem, clip=CLIP, product_dtype=BF16)
    assert 1e-5 < relative(got.total, want.total) < 2e-2
    assert all(1e-4 < relative(mine, other) < 3e-2 for mine, other in zip(rounded, exact, strict=True))


def test_other_factors_are_refused():
    with pytest.raises(ValueError, match=r"product_dtype must be torch\.bfloat16 or None, got torch\.float16"):
        tiled_objective(*Problem().arguments, clip=CLIP, product_dtype=torch.float16)


@pytest.mark.parametrize(
    ("device", "weight", "autocast", "expected"),
    [
        ("cuda", torch.bfloat16, None, BF16),
        ("cuda", torch.float32, None, None),
        ("cuda", torch.float32, torch.bfloat16, BF16),
        # gradients would underflow
        ("cuda", torch.float16, None, None),
        ("cuda", torch.float32, torch.float16, None),
        ("cpu", torch.bfloat16, None, None),
    ],
)
def test_a_gpu_takes_what_autocast_or_the_weights_have(monkeypatch, device, weight, autocast, expected):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: autocast is not None)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: autocast)
    layer = SimpleNamespace(device=torch.device(device), dtype=weight)
    assert factor_dtype(layer, None) is expected
    assert factor_dtype(layer, BF16) is BF16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_give_float32_terms(dtype):
    problem = Problem(dtype=torch.float32)
    narrow = [tensor.detach().to(dtype) for tensor in problem.arguments[:4]]
    wide = [tensor.float() for tensor in narrow]
    results = []
    for tensors in (narrow, wide):
        inputs = [tensor.requires_grad_() for tensor in tensors[:2]]
        results.append(gradients(problem, [*tensors, *problem.arguments[4:]], inputs, clip=CLIP))
    (got, mine), (want, other) = results
    assert got.total.dtype == torch.float32 and mine[0].dtype == dtype
    torch.testing.assert_close(got.total, want.total)
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("student", ["equal", "certain", "wrong"])
@pytest.mark.parametrize("teacher", ["equal", "certain"])
@pytest.mark.parametrize("clip", [(0.1, 0.95), (-1.0, 2.0), "network"])
def test_extreme_logits_in_narrow_dtypes(dtype, student, teacher, clip):
    """All three terms and a clip network at logits of +-1e4, against float64."""
    problem, ids = Problem(rows=20, classes=300, seed=4), torch.arange(300)
    levels = {
        "equal": torch.zeros(300),
        "certain": torch.where(ids == 3, 1e4, -1e4),
        "wrong": torch.where(ids == 4, 1e4, -1e4 + 8 * ids),
    }
    problem.labels = torch.where(problem.labels >= 0, torch.full_like(problem.labels, 3), problem.labels)
    results = []
    for kind in (dtype, torch.float64):
        states = torch.zeros(20, 8, dtype=kind), torch.zeros(20, 6, dtype=kind)
        layers = problem.weight.detach().to(kind), problem.teacher.to(kind)
        # 1e4 and the steps of 8 between are exact in float16; bfloat16 rounds them, and so must its reference
        own, theirs = (levels[name].to(dtype).to(kind) for name in (student, teacher))
        own.requires_grad_()
        torch.manual_seed(0)
        net = ClipNetwork().to(torch.float64 if kind == torch.float64 else torch.float32)
        terms = tiled_objective(
            states[0],
            layers[0],
            states[1],
            layers[1],
            problem.labels,
            problem.spans,
            clip=net if clip == "network" else clip,
            student_bias=own,
            teacher_bias=theirs,
            tile_size=6,
        )
        trained = [own, *net.parameters()] if clip == "network" else [own]
        results.append((terms, torch.autograd.grad(terms.total, trained)))
    (got, mine), (want, other) = results
    for a, b in zip(got[:4], want[:4], strict=True):
        assert torch.isfinite(b)
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-6)
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-2, atol=1e-5)


def test_units_round_as_the_program_does(monkeypatch):
    """Large enough for the processor's own units, where it has them."""
    problem = Problem(rows=120, classes=3000, hidden=(64, 64), dtype=torch.float32)
    results = []
    for units in (True, False):
        monkeypatch.setattr(
            "mgsr.losses.projection.has_bf16_units", lambda units=units: units and has_bf16_units()
        )
        results.append(gradients(problem, clip=CLIP, product_dtype=BF16, tile_size=40))
    (quick, quick_grads), (slow, slow_grads) = results
    assert relative(quick.total, slow.total) < 1e-5
    assert all(relative(mine, other) < 5e-4 for mine, other in zip(quick_grads, slow_grads, strict=True))
    exact, _ = gradients(problem, clip=CLIP, tile_size=40)
    assert relative(exact.total, slow.total) > 1e-5
