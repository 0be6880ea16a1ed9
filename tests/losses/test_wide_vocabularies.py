"""What is done otherwise where the vocabulary is wide: segments of span pairs, and masses outside a selection."""

from __future__ import annotations

import math

import pytest
import torch

from mgsr.losses import ranking, tiled_objective
from mgsr.losses.fused import selection
from mgsr.losses.fused import span_correlation as span_tile
from mgsr.losses.fused.workspace import Workspace
from tests.losses.dense import CLIP, Problem, dense_objective


def grads_of(problem, **options):
    terms = tiled_objective(*problem.arguments, clip=CLIP, **options)
    return terms, torch.autograd.grad(terms.total, problem.inputs)


@pytest.mark.parametrize("elements", [1, 37 * 4, 37 * 9])
def test_segments_change_no_bit(monkeypatch, elements):
    problem = Problem(rows=120, dtype=torch.float32, seed=5)
    # rows behind the last pair of a tile too
    problem.labels[44:50], problem.spans[44:50] = 1, -1
    want, expected = grads_of(problem, tile_size=50)
    monkeypatch.setattr(span_tile, "SEGMENT_ELEMENTS", elements)
    take = Workspace.take
    # memory that a tile finds may hold anything
    monkeypatch.setattr(Workspace, "take", lambda *arguments: take(*arguments).fill_(math.nan))
    got, grads = grads_of(problem, tile_size=50)
    assert got.span == want.span and got.span > 0
    assert all(torch.equal(mine, other) for mine, other in zip(grads, expected, strict=True))


def test_a_segment_holds_whole_runs_of_pairs_and_few_rows_between(monkeypatch):
    monkeypatch.setattr(span_tile, "SEGMENT_ELEMENTS", 40)
    # pairs 0-1, 1-2; 4-5; 9-10, 10-11, 11-12, 12-13, 13-14
    left = torch.tensor([0, 1, 4, 9, 10, 11, 12, 13])
    assert span_tile._segments(left, 20, 10) == [(0, 3), (4, 6), (9, 15)]
    monkeypatch.setattr(span_tile, "SEGMENT_ELEMENTS", 60)
    assert span_tile._segments(left, 20, 10) == [(0, 6), (9, 15)]
    assert span_tile._segments(left, 6, 10) == [(0, 6)]


def test_a_broken_row_within_a_segment_does_not_reach_its_neighbours(monkeypatch):
    monkeypatch.setattr(span_tile, "SEGMENT_ELEMENTS", 37 * 5)
    problem = Problem(rows=9)
    problem.labels = torch.arange(9)
    problem.spans = torch.tensor([0, 0, -1, 1, 1, -1, -1, -1, -1])
    weights = (0.0, 0.0, 1.0)
    want = torch.autograd.grad(
        tiled_objective(*problem.arguments, clip=CLIP, weights=weights).total, problem.hidden
    )[0]
    with torch.no_grad():
        problem.hidden[2] = math.nan
    got = torch.autograd.grad(
        tiled_objective(*problem.arguments, clip=CLIP, weights=weights).total, problem.hidden
    )[0]
    kept = torch.tensor([0, 1, 3, 4])
    assert bool((want[kept] != 0).any())
    torch.testing.assert_close(got[kept], want[kept])
    assert bool(torch.isnan(got[2]).all())


def deep_problem():
    """The teacher's 60 first classes hold nearly all mass; the student's mass lies at the 20th to 30th class.

    Outside 64 classes the student has 1e-10 of what it has outside 16.
    """
    problem = Problem(rows=6, classes=200, hidden=(6, 6))
    problem.labels, problem.spans = torch.arange(6), torch.full((6,), -1)
    taught, own = torch.zeros(6, 6, dtype=torch.float64), torch.zeros(6, 6, dtype=torch.float64)
    taught[:, 0] = own[:, 0] = torch.linspace(0.9, 1.1, 6)
    teacher, student = torch.zeros(200, 6, dtype=torch.float64), torch.zeros(200, 6, dtype=torch.float64)
    places = torch.arange(200.0)
    teacher[:, 0] = -places / 12
    student[:, 0] = torch.where((places > 20) & (places < 30), 0.0, -25.0)
    problem.taught, problem.teacher = taught, teacher
    problem.hidden, problem.weight = own.requires_grad_(), student.requires_grad_()
    return problem


def test_a_mass_is_not_a_difference_where_nothing_would_be_left(monkeypatch):
    monkeypatch.setattr(ranking, "SORT_WIDTH", 20)
    monkeypatch.setattr(selection, "DEPTHS", (16, 64))
    problem, clip = deep_problem(), (-math.inf, 0.97)
    weights = (0.0, 1.0, 0.0)
    want, _, _ = dense_objective(problem, clip, weights=weights)
    expected = torch.autograd.grad(want, problem.inputs)
    got = tiled_objective(*problem.arguments, clip=clip, weights=weights)
    torch.testing.assert_close(got.total, want, rtol=1e-12, atol=0.0)
    for mine, other in zip(torch.autograd.grad(got.total, problem.inputs), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-13)


def test_deeper_selections_read_no_row_twice(monkeypatch):
    """The mass outside comes from the shallower selection: no pass over all classes for the rows that go on."""
    monkeypatch.setattr(ranking, "SORT_WIDTH", 20)
    monkeypatch.setattr(selection, "DEPTHS", (16, 64))
    seen = []
    original = selection.mass_afresh
    monkeypatch.setattr(
        selection,
        "mass_afresh",
        lambda probs, ids, *rest: seen.append(ids.shape) or original(probs, ids, *rest),
    )
    problem = Problem(rows=40, classes=200, seed=2)
    got = tiled_objective(*problem.arguments, clip=(0.1, 0.8), weights=(0.0, 1.0, 0.0))
    want, _, _ = dense_objective(problem, (0.1, 0.8), weights=(0.0, 1.0, 0.0))
    torch.testing.assert_close(got.total, want, rtol=1e-12, atol=0.0)
    assert {shape[1] for shape in seen} == {16}
