"""Batches that are collated ahead are those that were asked for, in whatever order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgsr.data.collate import Batch, StepCounts, collate
from mgsr.training.datamodule import AHEAD, MicroBatch, MicroBatches
from tests.training.epochs import made_up_rows

ITEMS = [MicroBatch((row,), StepCounts.of([row])) for row in made_up_rows(20)]


def test_all_in_order() -> None:
    batches = MicroBatches(ITEMS, 0)
    assert [batches[i].example_ids[0] for i in range(20)] == [item.rows[0].example_id for item in ITEMS]


@given(st.lists(st.integers(0, 19)))
def test_any_order_and_again(order: list[int]) -> None:
    batches = MicroBatches(ITEMS, 0)
    for i in order:
        got, expected = batches[i], collate(ITEMS[i].rows, ITEMS[i].counts, 0)
        for name in ("input_ids", "labels", "span_ids"):
            assert torch.equal(getattr(got, name), getattr(expected, name))
        assert (got.counts, got.example_ids) == (expected.counts, expected.example_ids)


def test_none_behind_the_end() -> None:
    batches = MicroBatches(ITEMS, 0)
    assert batches[-1].example_ids[0] == ITEMS[19].rows[0].example_id
    with pytest.raises(IndexError):
        batches[20]


def test_what_a_teacher_computed_is_collated_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(MicroBatches, "_collate", lambda self, index: made.append(index))
    states = {ITEMS[0].rows[0].key: torch.zeros(len(ITEMS[0].rows[0].response_ids), 2)}
    MicroBatches(ITEMS, 0, None, states)[3]
    assert made == [3]
    MicroBatches(ITEMS, 0)[3]
    assert made == [3, *range(3, 3 + AHEAD)]


def test_batches_go_to_a_gpu_from_pinned_memory_while_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next ones are on their way before anything of this step is read."""
    done: list[str] = []
    monkeypatch.setattr(Batch, "pin_memory", lambda self: done.append("pinned") or self)
    monkeypatch.setattr(Batch, "to", lambda self, *a, **k: done.append(f"{a[0]} {k}") or self)
    batches = MicroBatches(ITEMS, 0, device=torch.device("cuda"))
    batches.prefetch()
    assert done == ["pinned", "cuda {'non_blocking': True}"] * AHEAD
    for place in range(AHEAD):
        batches[place]
        batches.prefetch()
        assert len(done) == 2 * AHEAD * (2 if place + 1 == AHEAD else 1)
    assert batches[AHEAD].example_ids == (ITEMS[AHEAD].rows[0].example_id,) and len(done) == 4 * AHEAD
    for place in range(AHEAD + 1, len(ITEMS)):
        batches[place]
    batches.prefetch()
    assert len(done) == 2 * len(ITEMS)


def test_on_a_cpu_nothing_is_made_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(MicroBatches, "_collate", lambda self, index: made.append(index))
    MicroBatches(ITEMS, 0).prefetch()
    assert made == []


def test_other_devices_than_nvidias_take_what_is_not_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batch, "pin_memory", lambda self: pytest.fail("no CUDA, no pinned memory"))
    assert MicroBatches(ITEMS, 0, device=torch.device("meta"))[0].answers.place.device.type == "meta"
