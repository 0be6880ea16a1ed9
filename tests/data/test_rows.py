"""Rows are split by a fixed rule, and what is asked in one split is asked in no other."""

from __future__ import annotations

import random

import pytest

from mgsr.data.rows import Message, Row, split_rows
from mgsr.runtime.errors import DataError


def rows(count: int) -> list[Row]:
    return [Row(index, f"Say {index}.", "", (f"{index}",)) for index in range(count)]


def test_split_sizes_order_and_seed() -> None:
    parts = split_rows(rows(100), dev=20, test=10, seed=3)
    ids = {name: [row.id for row in part] for name, part in parts.items()}
    assert {name: len(part) for name, part in ids.items()} == {"train": 70, "dev": 20, "test": 10}
    assert sorted(ids["train"] + ids["dev"] + ids["test"]) == list(range(100))
    assert all(part == sorted(part) for part in ids.values())
    assert parts == split_rows(rows(100), dev=20, test=10, seed=3)
    assert ids["test"] != [row.id for row in split_rows(rows(100), dev=20, test=10, seed=4)["test"]]
    # Frozen: a change here would move rows between the splits of a published run.
    assert split_rows(rows(12), dev=2, test=1, seed=0)["dev"] == [rows(12)[3], rows(12)[7]]


def test_split_is_not_touched_by_the_global_generator() -> None:
    random.seed(1)
    first = split_rows(rows(50), dev=5, test=5)
    random.seed(2)
    assert split_rows(rows(50), dev=5, test=5) == first


def test_split_refuses_to_leave_nothing_to_train_on() -> None:
    assert len(split_rows(rows(4), dev=2, test=1)["train"]) == 1
    with pytest.raises(
        DataError, match="4 rows are too few for 2 dev rows, 2 test rows and one row to train on; "
    ):
        split_rows(rows(4), dev=2, test=2)
    with pytest.raises(DataError, match="1 row is too few for 1 test row and one row to train on; "):
        split_rows(rows(1), dev=0, test=1)
    with pytest.raises(ValueError, match="dev=-1"):
        split_rows(rows(4), dev=-1, test=1)


def test_rows_that_ask_the_same_stay_together() -> None:
    def asks(number: int, topic: int) -> Row:
        return Row(number, f"Say {topic}. ", "", (f"{number}",))

    twice = [asks(number, number % 30) for number in range(60)]
    for seed in range(5):
        parts = split_rows(twice, dev=7, test=6, seed=seed)
        asked = {name: {row.instruction for row in part} for name, part in parts.items()}
        assert not asked["dev"] & asked["train"] and not asked["test"] & (asked["train"] | asked["dev"])
        assert len(parts["dev"]) == 6 and len(parts["test"]) == 6, "half a pair would leak"
    with pytest.raises(DataError, match=r"too many rows ask the same to cut dev rows; give data\.dev=FILE"):
        split_rows([asks(number, 0) for number in range(60)], dev=6, test=6)
    with pytest.raises(DataError, match="too many rows ask the same to cut test rows"):
        split_rows([*(asks(number, 0) for number in range(58)), asks(58, 1), asks(59, 2)], dev=2, test=6)


def test_what_is_asked_is_the_whole_conversation() -> None:
    turns = (Message("system", "Be kind."), Message("user", "Hi"))
    row = Row(0, "Hi", "", ("Hello",), "", "a.jsonl:1", turns)
    assert row.asked != Row(0, "Hi", "", ("Hello",)).asked
    assert Row(0, "Hi ", "", ("Hello",), messages=turns[1:]).asked == Row(1, "Hi", "", ("Oh",)).asked
    assert row.source == "a.jsonl"
