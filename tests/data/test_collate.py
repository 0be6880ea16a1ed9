"""Collating all rows at once gives what one number after the other gives, and refuses rows that do not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsr.data.collate import StepCounts, TrainingSequence, collate
from mgsr.losses import IGNORED, span_pairs
from mgsr.losses.objective import flat_targets

IDS = st.integers(0, 2**31 - 1)


@st.composite
def sequences(draw: st.DrawFn) -> TrainingSequence:
    response = draw(st.lists(IDS, max_size=9))
    spans = draw(st.lists(st.integers(-1, 8), min_size=len(response), max_size=len(response)))
    drawn_from = draw(st.booleans())
    behaviour = draw(st.lists(st.floats(-40, 0), min_size=len(response), max_size=len(response)))
    return TrainingSequence(
        draw(IDS),
        tuple(draw(st.lists(IDS, min_size=1, max_size=9))),
        tuple(response),
        tuple(spans),
        draw(st.booleans()),
        tuple(behaviour) if drawn_from else (),
    )


def slow(rows: list[TrainingSequence], pad: int) -> dict[str, list[list[float]]]:
    """What each place of the batch holds, by asking for it alone."""
    length = max(len(row.prompt_ids) + len(row.response_ids) for row in rows)
    table: dict[str, list[list[float]]] = {}
    for b, row in enumerate(rows):
        for place in range(length):
            t = place - len(row.prompt_ids)
            answered = 0 <= t < len(row.response_ids)
            token = row.response_ids[t] if answered else row.prompt_ids[place] if t < 0 else pad
            span = row.span_ids[t] if answered else -1
            values = {
                "input_ids": token,
                "labels": token if answered else IGNORED,
                "span_ids": span + b * length if span >= 0 else -1,
                "behaviour_log_probs": row.behaviour_log_probs[t] if answered and row.behaviour_log_probs else 0.0,
            }
            for name, value in values.items():
                if place == 0:
                    table.setdefault(name, []).append([])
                table[name][b].append(value)
    return table


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(sequences(), min_size=1, max_size=6), pad=IDS)
def test_every_place_holds_what_it_should(rows: list[TrainingSequence], pad: int) -> None:
    counts = StepCounts.of(rows)
    batch, expected = collate(rows, counts, pad), slow(rows, pad)
    for name in ("input_ids", "labels", "span_ids"):
        got = getattr(batch, name)
        assert got.dtype == torch.int64 and got.is_contiguous() and got.tolist() == expected[name], name
    if any(row.behaviour_log_probs for row in rows):
        assert batch.behaviour_log_probs is not None
        assert torch.equal(batch.behaviour_log_probs, torch.tensor(expected["behaviour_log_probs"]))
    else:
        assert batch.behaviour_log_probs is None
    assert batch.is_ground_truth.tolist() == [row.is_ground_truth for row in rows]
    assert batch.example_ids == tuple(row.example_id for row in rows)
    assert batch.counts is counts
    assert batch.tokens == sum(map(len, rows)) and batch.written == tuple(not row.is_ground_truth for row in rows)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(sequences(), max_size=6), pad=IDS)
def test_what_is_known_of_the_answers_is_what_one_could_read(rows: list[TrainingSequence], pad: int) -> None:
    batch = collate(rows, StepCounts.of(rows), pad)
    labels, spans, truth = flat_targets(batch.targets)
    known, response = batch.answers, labels != IGNORED
    pairs = torch.zeros_like(response)
    pairs[:-1] = span_pairs(spans, response)
    assert known.place.tolist() == response.nonzero().squeeze(1).tolist()
    assert known.labels.tolist() == labels[response].tolist() and known.truth.tolist() == truth[response].tolist()
    assert known.truth_place.tolist() == (response & truth).nonzero().squeeze(1).tolist()
    assert known.written_place.tolist() == (response & ~truth).nonzero().squeeze(1).tolist()
    assert known.is_pair.tolist() == list(known.pairs) == pairs[response].tolist()
    ends = (int(known.labels.min()), int(known.labels.max())) if len(known.labels) else (0, 0)
    assert known.label_range == ends
    moved = batch.to("meta")
    assert {value.device.type for value in moved.answers if isinstance(value, torch.Tensor)} == {"meta"}
    assert (moved.answers.pairs, moved.lengths, moved.stands_in) == (known.pairs, batch.lengths, not rows)


GOOD = TrainingSequence(3, (1, 2), (5, 6, 7), (0, 0, -1), False, (-0.1, -0.2, -0.3))


@pytest.mark.parametrize(
    "bad",
    [
        {"span_ids": (0, 0)},
        {"span_ids": (0,)},
        {"span_ids": (0, 0, -1, -1)},
        {"behaviour_log_probs": (-0.5,)},
        {"behaviour_log_probs": (-0.1, -0.2, -0.3, -0.4)},
    ],
)
def test_a_row_whose_lengths_differ_is_named(bad: dict[str, tuple[float, ...]]) -> None:
    rows = [GOOD, replace(GOOD, example_id=41, **bad)]
    with pytest.raises(ValueError, match="the row of example 41 has 3 response tokens"):
        collate(rows, StepCounts.of(rows), 0)


def test_a_surplus_does_not_fill_the_gap_of_another_row() -> None:
    rows = [replace(GOOD, span_ids=(0, 0)), replace(GOOD, span_ids=(0, 0, 1, 1))]
    with pytest.raises(ValueError, match="2 span ids"):
        collate(rows, StepCounts.of(rows), 0)
