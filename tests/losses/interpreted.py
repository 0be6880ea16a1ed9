"""Triton's kernels in Triton's interpreter, which has to be chosen before Triton is imported.

`test_row_kernels.py` runs this file in a process of its own; pytest does not find it by itself.
"""

from __future__ import annotations

import math

import pytest
import torch

from mgsr.losses import kernel_check, ranking, row_kernels, tiled_objective
from mgsr.losses.fused import rows, tile
from mgsr.losses.projection import OutputLayer
from mgsr.losses.teacher_topk import CachedRows, top_of_logits
from tests.host_reads import HostReads
from tests.losses.dense import Problem, network
from tests.losses.gpu import Passes, answers_of, results, shallow_gpu

CPU = torch.device("cpu")
KERNELS = "softmax_sums", "row_sums", "row_gradient", "first_equal"


def in_blocks(monkeypatch, along, down, chosen):
    for name, size in (("BLOCK", along), ("COLUMNS", down), ("CHOSEN", chosen)):
        monkeypatch.setattr(row_kernels, name, size)


def by_kernels(monkeypatch):
    shallow_gpu(monkeypatch)
    monkeypatch.setattr(rows, "LEAST_WIDTH", 1)
    for module in (ranking, rows):
        monkeypatch.setattr(module, "kernels_do", lambda device, dtype: dtype == torch.float32)
    in_blocks(monkeypatch, 512, 512, 64)
    monkeypatch.setattr(tile, "span_tile", lambda *args, **options: pytest.fail("passes over the tile"))


@pytest.mark.parametrize("width", [300, 1025])
def test_on_rows_with_ties_and_classes_that_are_ruled_out(monkeypatch, width):
    in_blocks(monkeypatch, 256, 128, 32)
    monkeypatch.setattr(kernel_check, "TOLERANCE", 2e-6)
    assert kernel_check.differences(CPU, width, 40) == []


@pytest.mark.parametrize("name", KERNELS)
def test_a_difference_is_noticed(monkeypatch, name):
    kernel = getattr(row_kernels, name)

    def off(*arguments):
        out = kernel(*arguments)
        if name == "row_gradient":
            arguments[6][2, 100] += 0.1
        elif name == "first_equal":
            arguments[3][2, -1] += 1
        else:
            out[1][2] += 0.1
        return out

    monkeypatch.setattr(row_kernels, name, off)
    assert kernel_check.differences(CPU)


def test_rows_without_any_number():
    logits = torch.randn(4, 700)
    logits[0], logits[1, 300], logits[2, :650] = -math.inf, math.nan, -math.inf
    peak, log_prob, entropy = row_kernels.softmax_sums(logits)
    assert bool(torch.isnan((logits[:2] - peak[:2, None] + log_prob[:2, None])[:, 600:]).all())
    want = torch.log_softmax(logits[2:].double(), dim=-1)
    torch.testing.assert_close(log_prob[2:].double(), want.amax(-1), rtol=1e-5, atol=1e-6)
    plain = -(want.exp() * want.clamp_min(-1e9)).sum(-1)
    torch.testing.assert_close(entropy[2:].double(), plain, rtol=1e-5, atol=1e-6)


CASES = {
    "fixed": {"clip": (0.1, 0.8)},
    "one tile": {"clip": (0.1, 0.8), "tile_size": None},
    "all open": {"clip": (0.1, 1.0)},
    "label": {"clip": (0.05, 0.6), "target": "label"},
    "temperature": {"clip": (0.1, 0.8), "temperature": 2.5},
    "no span": {"clip": (0.1, 0.8), "weights": (1.0, 1.0, 0.0)},
    "network": {"clip": "network"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_objective(monkeypatch, case):
    problem = Problem(classes=300, dtype=torch.float32, rows=20)
    options = {"collect_rows": True, "sft_mask": problem.truth, "tile_size": 6} | CASES[case]
    if options["clip"] == "network":
        options["clip"] = network(objective="priced").float()
    want = results(problem, **options)
    by_kernels(monkeypatch)
    got = results(problem, **options)
    for name, value in want.items():
        size = float(value.double().abs().max())
        torch.testing.assert_close(got[name], value, rtol=2e-5, atol=2e-5 * size, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("kept", [8])
def test_cached_rows_tie_outside_their_classes(monkeypatch, kept):
    problem = Problem(classes=300, dtype=torch.float32, rows=20)
    chosen = torch.arange(0, 20, 2)
    cached = CachedRows(chosen, *top_of_logits(problem.taught[chosen] @ problem.teacher.T, kept))
    want = results(problem, clip=(0.1, 0.9), cached=cached, tile_size=8)
    by_kernels(monkeypatch)
    got = results(problem, clip=(0.1, 0.9), cached=cached, tile_size=8)
    for name, value in want.items():
        assert float((got[name] - value).norm() / value.norm().clamp_min(1e-9)) < 2e-5, name


def test_without_any_row(monkeypatch):
    by_kernels(monkeypatch)
    problem = Problem(classes=500, dtype=torch.float32)
    problem.labels[:] = -100
    assert results(problem, clip=network().float(), backward=False)["total"] == 0.0


@pytest.mark.parametrize("k", [5, 90])
def test_the_largest_classes_are_those_of_a_full_sort(monkeypatch, k):
    by_kernels(monkeypatch)
    values = 4 * torch.randn(7, 1003, generator=torch.Generator().manual_seed(k))
    values[1], values[2, 100:], values[3], values[4, 7:] = values[1].round(), -7.0, 0.0, -math.inf
    want = values.sort(dim=-1, descending=True, stable=True)
    found, ids = ranking.top_classes(values, k)
    assert ids.equal(want.indices[:, :k]) and found.equal(want.values[:, :k])


@pytest.mark.parametrize(("network_clip", "target"), [(False, "argmax"), (True, "argmax"), (False, "label")])
def test_passes_over_a_tile(monkeypatch, network_clip, target):
    """Twelve at most, products aside, and one look per call."""
    by_kernels(monkeypatch)
    problem, size = Problem(classes=500, dtype=torch.float32, rows=20), 10
    problem.labels = problem.labels.abs()
    # every row is decided by its first classes
    problem.taught *= 8.0
    passes, reads = Passes(size * 500), HostReads()
    for name in KERNELS:
        monkeypatch.setattr(row_kernels, name, counted(passes, reads, name, getattr(row_kernels, name)))
    # factors of another type, as on a GPU in bfloat16
    pull = OutputLayer.pull
    monkeypatch.setattr(
        OutputLayer, "pull", lambda self, grad, *rest, **named: pull(self, grad.clone(), *rest, **named)
    )
    clip = network(upper_min=0.8, upper_max=0.9).float() if network_clip else (0.1, 0.8)
    answers = answers_of(problem)
    with reads, passes:
        terms = tiled_objective(
            *problem.arguments, clip=clip, tile_size=size, target=target, collect_rows=True, answers=answers,
            counts=(20, 20, 10),
        )  # fmt: skip
    assert math.isfinite(float(terms.total))
    print(len(passes.found), passes.found)
    assert len(passes.found) <= 2 * 12, passes.found
    assert passes.found.count("row_gradient") == 4
    assert reads.found == ["tolist"]


def counted(passes, reads, name, kernel):
    """Each launch of a kernel over the tile is a pass, whatever the interpreter does in its place."""

    def launched(*arguments):
        # the gradient's second kernel adds to the chosen classes
        passes.found += [name] * (2 if name == "row_gradient" else 1)
        with passes.paused(), reads.paused():
            return kernel(*arguments)

    return launched
