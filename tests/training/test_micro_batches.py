"""Batches that are collated ahead are those that were asked for, in whatever order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgsr.data.collate import StepCounts, collate
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
