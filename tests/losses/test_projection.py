"""The product with an output layer: the same sums whichever way around the processor is made to take them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mgsr.losses import projection
from mgsr.losses.projection import CLASSES, LEAST_ROWS, OutputLayer, times_transposed


@pytest.fixture
def turned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """As on a processor of AMD's; the shapes of the products that were made."""
    made: list[tuple[int, ...]] = []
    multiply = torch.mm

    def mm(left: Tensor, right: Tensor, **options: Tensor) -> Tensor:
        made.append((*left.shape, *right.shape))
        return multiply(left, right, **options)

    monkeypatch.setattr(projection, "is_amd", lambda: True)
    monkeypatch.setattr(torch, "mm", mm)
    return made


def factors(rows: int, classes: int, hidden: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(rows)
    return (
        torch.randn(rows, hidden, generator=draw),
        torch.randn(classes, hidden, generator=draw),
        torch.randn(classes, generator=draw),
    )


@pytest.mark.parametrize("rows", [LEAST_ROWS, 33])
@pytest.mark.parametrize("classes", [2 * CLASSES, 2 * CLASSES + 5])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_turned_around_it_is_the_product(
    rows: int, classes: int, biased: bool, given: bool, turned: list[tuple[int, ...]]
) -> None:
    left, weight, bias = factors(rows, classes)
    # a part of a wider tensor, as the workspace hands out
    out = torch.full((rows, classes + 3), 9.0)[:, 1:-2] if given else None
    got = times_transposed(left, weight, bias if biased else None, out)
    wanted = left.double().numpy() @ weight.double().numpy().T + (bias.double().numpy() if biased else 0.0)
    assert np.abs(got.numpy() - wanted).max() < 1e-5 and (out is None or got is out)
    assert len(turned) == -(-classes // CLASSES) and turned[0] == (CLASSES, 24, 24, rows)


def test_few_rows_few_classes_and_other_types_are_left_to_torch(turned: list[tuple[int, ...]]) -> None:
    for rows, classes in ((LEAST_ROWS - 1, 2 * CLASSES), (LEAST_ROWS, 2 * CLASSES - 1)):
        left, weight, bias = factors(rows, classes)
        assert torch.equal(times_transposed(left, weight, bias), torch.nn.functional.linear(left, weight, bias))
        out = torch.empty(rows, classes)
        assert times_transposed(left, weight, bias, out) is out
        torch.testing.assert_close(out, torch.nn.functional.linear(left, weight, bias))
    left, weight, _ = factors(LEAST_ROWS, 2 * CLASSES)
    times_transposed(left.double(), weight.double())
    # states of whole sequences, `[B, T, H]`
    assert times_transposed(left[None], weight).shape == (1, LEAST_ROWS, 2 * CLASSES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert times_transposed(left, weight).dtype == torch.bfloat16
    assert turned == []


def test_gradients_flow_where_they_are_wanted(turned: list[tuple[int, ...]]) -> None:
    left, weight, _ = factors(LEAST_ROWS, 2 * CLASSES)
    weight.requires_grad_()
    times_transposed(left, weight).sum().backward()
    assert weight.grad is not None and torch.allclose(weight.grad, left.sum(0).expand_as(weight), atol=1e-5)
    assert turned == []
    with torch.no_grad():
        times_transposed(left, weight)
    assert len(turned) == 2


def test_other_processors_take_torchs_own(turned: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "is_amd", lambda: False)
    left, weight, _ = factors(LEAST_ROWS, 2 * CLASSES)
    assert torch.equal(times_transposed(left, weight), torch.nn.functional.linear(left, weight))
    assert turned == []


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_logits_with_scale_and_soft_cap_are_those_of_the_formula(softcap: float | None) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()
        for shape in ((2, 3, 4), (5, 4), (5,))
    )

    def project(*factors: Tensor) -> Tensor:
        return OutputLayer(factors[1], factors[2], 0.5, softcap).project(factors[0])

    want = 0.5 * (hidden @ weight.T + bias)
    want = want if softcap is None else softcap * torch.tanh(want / softcap)
    torch.testing.assert_close(project(hidden, weight, bias), want)
    # it works in place where it can
    assert torch.autograd.gradcheck(project, (hidden, weight, bias))
    narrow = OutputLayer(weight, bias, 0.5, softcap).narrowed(4, torch.float64)
    assert not narrow.weight.requires_grad
    out = torch.empty(3, 4, dtype=torch.float64)
    assert narrow.project(hidden[0].detach(), dtype=torch.float64, out=out) is out
    torch.testing.assert_close(out, want[0, :, :4].detach())


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_way_back_is_what_autograd_finds(softcap: float | None) -> None:
    draw = torch.Generator().manual_seed(1)
    hidden, weight, bias, grad = (
        torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((3, 4), (5, 4), (5,), (3, 5))
    )
    inputs = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
    logits = OutputLayer(inputs[1], inputs[2], 0.5, softcap).project(inputs[0])
    want = torch.autograd.grad(logits, inputs, grad)
    # what another tile has left there already
    to_weight, to_bias = torch.ones_like(weight), torch.ones_like(bias)
    to_hidden = OutputLayer(weight, bias, 0.5, softcap).pull(
        grad.clone(),
        logits.detach(),
        hidden,
        dtype=torch.float64,
        to_hidden=True,
        to_weight=to_weight,
        to_bias=to_bias,
        fresh=False,
    )
    assert to_hidden is not None
    for got, expected in zip((to_hidden, to_weight - 1.0, to_bias - 1.0), want, strict=True):
        torch.testing.assert_close(got, expected)
