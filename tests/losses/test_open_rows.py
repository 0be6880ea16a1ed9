"""Where a GPU would be waited for: open rows come again with all classes, and nothing else is looked at."""

from __future__ import annotations

import math

import pytest
import torch

from mgsr.losses.fused import tile
from mgsr.losses.teacher_topk import CachedRows, top_of_logits
from tests.losses.dense import Problem, network
from tests.losses.gpu import answers_of, reads_of, results, shallow_gpu

FIXED = {
    "some rows open": {"clip": (0.1, 0.8)},
    "an upper bound of 1": {"clip": (0.1, 1.0)},
    "nothing kept": {"clip": (2.0, 2.0)},
    "label": {"clip": (0.05, 0.6), "target": "label"},
    "no target": {"clip": (0.05, 0.6), "keep_target": False},
    "literal": {"clip": (0.05, 0.6), "form": "literal"},
    "rank": {"clip": (0.0, 0.05), "quantile": "rank"},
    "sigmoid": {"clip": (0.1, 0.8), "ramp": "sigmoid"},
    "hard": {"clip": (0.1, 0.8), "sharpness": 0.0},
    "temperature": {"clip": (0.1, 0.8), "temperature": 2.5},
    "cosine": {"clip": (0.1, 0.8), "span_relation": "cosine"},
    "no weight": {"clip": (0.1, 0.8), "weights": (1.0, 0.0, 1.0)},
    "soft cap": {"clip": (0.1, 0.8), "student_softcap": 3.0, "teacher_softcap": 5.0},
    "every class": {"clip": (-math.inf, math.inf)},
}


def same(monkeypatch, problem, parameters=(), tolerance=1e-9, **options):
    """The way of a GPU gives what the ordinary one does."""
    want = results(problem, parameters, **options)
    shallow_gpu(monkeypatch)
    got = results(problem, parameters, **options)
    assert got.keys() == want.keys()
    for name, value in want.items():
        size = float(value.double().abs().max())
        torch.testing.assert_close(
            got[name], value, rtol=tolerance, atol=tolerance * size + 1e-15, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("tile_size", [None, 7])
@pytest.mark.parametrize("case", FIXED)
def test_fixed_bounds(monkeypatch, case, tile_size):
    problem = Problem(classes=300, scale=0.9)
    same(monkeypatch, problem, **FIXED[case], sft_mask=problem.truth, collect_rows=True, tile_size=tile_size)


@pytest.mark.parametrize("upper_max", [0.97, 1.0])
@pytest.mark.parametrize("target", ["argmax", "label"])
def test_a_clip_network(monkeypatch, target, upper_max):
    net = network(objective="priced", upper_max=upper_max)
    problem = Problem(classes=300)
    same(monkeypatch, problem, list(net.parameters()), clip=net, target=target, collect_rows=True, tile_size=9)


def test_learned_tensors(monkeypatch):
    lower = torch.linspace(0.05, 0.3, 41, dtype=torch.float64).requires_grad_()
    upper = torch.linspace(0.7, 1.0, 41, dtype=torch.float64).requires_grad_()
    same(monkeypatch, Problem(classes=300), [lower, upper], clip=(lower, upper), sharpness=0.05)


def test_float32(monkeypatch):
    problem = Problem(classes=5000, dtype=torch.float32)
    same(monkeypatch, problem, tolerance=2e-5, clip=(0.1, 0.8), collect_rows=True)


@pytest.mark.parametrize("scale", [0.0, 0.01, 6.0])
def test_flat_and_certain_teachers(monkeypatch, scale):
    """All rows tie, all are open, or none is."""
    same(monkeypatch, Problem(classes=300, scale=scale), clip=(0.0, 0.5), tile_size=10)


@pytest.mark.parametrize("kept", [8, 100])
def test_cached_rows(monkeypatch, kept):
    problem = Problem(classes=300)
    chosen = torch.arange(0, 41, 2)
    cached = CachedRows(chosen, *top_of_logits(problem.taught[chosen] @ problem.teacher.T, kept))
    same(monkeypatch, problem, clip=(0.1, 0.9), cached=cached, tile_size=8, collect_rows=True)


def test_parts_of_a_tile(monkeypatch):
    monkeypatch.setitem(tile.PART_ELEMENTS, "cpu", 2000)
    same(monkeypatch, Problem(classes=300, rows=60), clip=(0.1, 0.8), collect_rows=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_without_numbers_harms_no_other(monkeypatch, bad):
    shallow_gpu(monkeypatch)
    problem = Problem(classes=300)
    problem.spans[:] = -1
    problem.labels[:] = problem.labels.abs()
    clean = results(problem, clip=(0.1, 0.8), collect_rows=True)
    problem.taught[5] = bad
    spoiled = results(problem, clip=(0.1, 0.8), collect_rows=True)
    assert not torch.isfinite(spoiled["total"]) and torch.isfinite(spoiled["sft"])
    others = torch.arange(41) != 5
    for name in ("row dac_kl", "gradient 0"):
        torch.testing.assert_close(clean[name][others], spoiled[name][others])


CALLS = {
    "fixed": {"clip": (0.1, 0.8)},
    "nothing open": {"clip": (0.1, 0.2)},
    "all open": {"clip": (0.1, 1.0)},
    "label": {"clip": (0.1, 0.8), "target": "label"},
    "network": {"clip": "network"},
    "temperature": {"clip": (0.1, 0.8), "temperature": 2.0},
    "one tile": {"clip": (0.1, 0.8), "tile_size": None},
}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CALLS)
def test_reads_of_a_call(monkeypatch, case, dtype, cached):
    """One where all rows are known and the teacher has no cache, whatever the tiles; four at most."""
    shallow_gpu(monkeypatch)
    problem = Problem(classes=5000, dtype=dtype)
    options = {"tile_size": 6, "collect_rows": True} | CALLS[case]
    if options["clip"] == "network":
        options["clip"] = network(objective="priced").to(dtype)
    if cached:
        chosen = torch.arange(0, 41, 3)
        options["cached"] = CachedRows(chosen, *top_of_logits(problem.taught[chosen] @ problem.teacher.T, 50))
    assert len(reads_of(problem, **options)) == 3 + cached
    known = {"answers": answers_of(problem), "counts": (30, 30, 10)}
    assert reads_of(problem, **options, **known) == ["tolist"] * (1 + cached)


def test_a_small_vocabulary_is_never_looked_at(monkeypatch):
    shallow_gpu(monkeypatch)
    problem = Problem()
    assert reads_of(problem, clip=(0.1, 0.8), answers=answers_of(problem), counts=(30, 30, 10)) == []
