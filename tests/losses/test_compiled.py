"""`torch.compile(fullgraph=True)` takes the definitions: one graph, eager's values and gradients."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mgsr.losses import DIVERGENCES, dac_kl, span_correlation
from tests.host_reads import HostReads, as_on_a_gpu

INF = math.inf
SPANS = torch.tensor([[0, 0, 0, -1, -1, 1, 2], [-1, 4, 4, 5, 5, 5, -1]])
TARGET = torch.tensor([[3, 0, 1, 2, 4, 5, 8], [8, 7, 6, 5, 0, 1, 2]])
Function = Callable[..., Any]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """A function is compiled so often only; every case here is one more."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def logits() -> tuple[Tensor, Tensor]:
    """Teacher and student `[2, 7, 9]` with ties, certain rows, and classes that one or both lack."""
    draw = torch.Generator().manual_seed(0)
    teacher, student = (2.0 * torch.randn(2, 7, 9, generator=draw) for _ in range(2))
    teacher[0, 0, 2:6] = 1.0
    teacher[0, 1, 3] = student[0, 1, 3] = -INF
    teacher[0, 2, 4] = -INF
    teacher[1, 1, 0], student[1, 1, 1] = 300.0, 300.0
    return teacher, student.requires_grad_()


def assert_compiles(function: Function, backend: str, *given: Tensor) -> None:
    """Value and gradient of the sum of all it returns, compiled and not; `given` are the logits and the bounds."""
    results = []
    for run in (torch.compile(function, fullgraph=True, backend=backend), function):
        leaves = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in given]
        out = run(*leaves)
        tensors = [out] if isinstance(out, Tensor) else list(out)
        sum(tensor[torch.isfinite(tensor)].sum() for tensor in tensors).backward()
        results.append([*tensors, *(leaf.grad for leaf in leaves if leaf.requires_grad)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6, equal_nan=True)


def backends(*names: str) -> Any:
    """Every case under a backend that runs the graph as it was captured; `names` under the real one as well."""
    if shutil.which("g++") is None:
        names = ()
    return [("aot_eager", name) for name in CASES] + [
        pytest.param("inductor", name, marks=pytest.mark.long) for name in names
    ]


def dac_kl_case(form: str, target: str, sharpness: float) -> tuple[Function, list[Tensor]]:
    ids = TARGET if target == "label" else None
    bounds = [torch.linspace(*ends, 14).view(2, 7).requires_grad_() for ends in ((0.02, 0.2), (0.6, 0.97))]
    return partial(dac_kl, form=form, target=ids, sharpness=sharpness, temperature=1.5), bounds


CASES: dict[str, tuple[Function, list[Tensor]]] = {
    **{name: (function, []) for name, function in DIVERGENCES.items()},
    **{
        f"dac_kl {form} {target} {sharpness}": dac_kl_case(form, target, sharpness)
        for form in ("normalised", "literal")
        for target in ("argmax", "label")
        for sharpness in (0.0, 0.05)
    },
    **{
        f"span {norm} {relation}": (partial(span_correlation, span_ids=SPANS, norm=norm, relation=relation), [])
        for norm in ("l2_squared", "l2")
        for relation in ("hadamard", "cosine", "trace")
    },
}


@pytest.mark.parametrize(
    ("backend", "name"),
    backends("jensen_shannon", "dac_kl normalised label 0.05", "span l2_squared hadamard"),
)
def test_one_graph_gives_what_eager_gives(backend: str, name: str) -> None:
    function, bounds = CASES[name]
    assert_compiles(function, backend, *logits(), *bounds)


@pytest.mark.parametrize("function", [DIVERGENCES["forward_kl"], partial(dac_kl, lower=0.1, upper=0.9)])
def test_another_shape_and_temperature_are_taken_as_well(function: Function) -> None:
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    teacher, student = (tensor.detach() for tensor in logits())
    for rows, temperature in ((7, 1.0), (5, 2.0)):
        given = teacher[:, :rows], student[:, :rows]
        got, want = (f(*given, temperature=temperature) for f in (compiled, function))
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("norm", "relation"), [("l2", "cosine"), ("l2_squared", "hadamard")])
def test_positions_outside_pairs_reach_no_compiled_gradient(norm: str, relation: str) -> None:
    teacher, student = logits()
    student = student.detach()
    teacher[0, 4], student[0, 4], student[1, 0] = math.nan, INF, -INF
    function = CASES[f"span {norm} {relation}"][0]
    assert_compiles(function, "aot_eager", teacher, student.requires_grad_())


@pytest.mark.parametrize("name", [*DIVERGENCES, "dac_kl normalised label 0.05", "dac_kl literal argmax 0.0"])
def test_a_gpu_is_not_waited_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, bounds = CASES[name]
    given = [*logits(), *bounds]
    want = function(*given)
    as_on_a_gpu(monkeypatch)
    with HostReads() as reads:
        got = function(*given)
    assert reads.found == []
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7, equal_nan=True)
