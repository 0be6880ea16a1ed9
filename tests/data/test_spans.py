"""Phrases in characters -> span ids, and the spans that know nothing of phrases."""

from __future__ import annotations

from collections import Counter
from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsr.data.spans import (
    Phrase,
    all_adjacent_spans,
    fixed_spans,
    random_spans,
    resolve_overlap,
    span_ids,
)


def pair_count(ids: list[int]) -> int:
    """How many neighbours share a span."""
    return sum(a == b != -1 for a, b in pairwise(ids))


# ---- span_ids


def test_nested_and_crossing_phrases():
    inner, outer, crossing = Phrase(3, 7, "NP"), Phrase(0, 9, "PP"), Phrase(8, 12, "VP")
    assert resolve_overlap([inner, crossing, outer]) == [outer]
    assert resolve_overlap([inner, crossing, outer], "innermost") == [inner, crossing]
    same = [Phrase(4, 6, "VP"), Phrase(2, 5, "NP"), Phrase(4, 7, "VP")]  # of equal lengths the earlier stays
    assert resolve_overlap(same) == [Phrase(2, 5, "NP")]
    assert resolve_overlap([Phrase(0, 3, "NP"), Phrase(3, 5, "VP")]) == [
        Phrase(0, 3, "NP"),
        Phrase(3, 5, "VP"),
    ]
    with pytest.raises(ValueError, match="'outer'"):
        resolve_overlap([], "outer")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8)).map(lambda p: Phrase(p[0], p[0] + p[1], "NP"))),
    st.sampled_from(["outermost", "innermost"]),
)
def test_resolved_phrases_are_disjoint_and_none_is_left_out_without_reason(phrases, overlap):
    kept = resolve_overlap(phrases, overlap)
    assert all(a.end <= b.start for a, b in pairwise(kept))
    for phrase in set(phrases) - set(kept):
        rivals = [k for k in kept if k.start < phrase.end and phrase.start < k.end]
        sizes = [k.end - k.start for k in rivals]
        size = phrase.end - phrase.start
        assert size == 0 or (max(sizes) >= size if overlap == "outermost" else min(sizes) <= size)


def test_spaces_quotes_and_eos_around_a_phrase():
    text = 'He saw "the old 19 dogs" run\n'
    pieces = ["He", " saw", ' "', "the", " old", " ", "19", " d", 'ogs"', " ", "run", "\n", ""]
    offsets, at = [], 0
    for piece in pieces:
        offsets.append((at, at + len(piece)))
        at += len(piece)
    assert at == len(text)
    phrases = [Phrase(0, 2, "NP"), Phrase(3, 6, "VP"), Phrase(8, 23, "NP"), Phrase(25, 28, "VP")]
    assert span_ids(phrases, offsets, text) == [0, 1, -1, 2, 2, 2, 2, 2, 2, -1, 3, -1, -1]


def test_a_token_over_two_phrases_goes_to_the_one_with_more_of_it():
    text = "abcdefgh"
    two = [Phrase(0, 3, "NP"), Phrase(3, 8, "VP")]
    assert span_ids(two, [(0, 2), (2, 5), (5, 8)], text) == [0, 1, 1]
    assert span_ids(two, [(0, 1), (1, 5), (5, 8)], text) == [0, 0, 1]  # two characters each: the first
    three = [Phrase(0, 1, "NP"), Phrase(1, 2, "VP"), Phrase(2, 8, "NP")]
    assert span_ids(three, [(0, 8)], text) == [0]  # ids stay below the number of tokens


# ---- spans that know nothing of phrases


def test_fixed_and_all_adjacent():
    assert fixed_spans(7, 3) == [0, 0, 0, 1, 1, 1, 2]
    assert fixed_spans(0, 3) == []
    assert all_adjacent_spans(4) == [0, 0, 0, 0]
    assert pair_count(fixed_spans(7, 3)) == 4 and pair_count(all_adjacent_spans(4)) == 3
    with pytest.raises(ValueError, match="got 0"):
        fixed_spans(4, 0)


def lengths(ids: list[int]) -> list[int]:
    return sorted(len(list(run)) for span, run in groupby(ids) if span != -1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=8),
    st.integers(0, 3),
    st.text(),
    st.integers(0, 9),
)
def test_random_spans_keep_lengths_and_pairs(runs, after, key, seed):
    ids = [index if inside else -1 for index, (inside, length) in enumerate(runs) for _ in range(length)]
    placeable = len(ids)
    ids += [-1] * after
    placed = random_spans(ids, key=key, seed=seed, placeable=placeable)
    assert len(placed) == len(ids) and placed[placeable:] == [-1] * after
    assert lengths(placed) == lengths(ids) and pair_count(placed) == pair_count(ids)
    assert sorted(set(placed) - {-1}) == list(range(len(lengths(ids))))
    assert placed == random_spans(ids, key=key, seed=seed, placeable=placeable)


def test_random_spans_take_every_place_equally_often():
    """A span of 2 and one of 1 among 5 tokens: 2 blocks and 2 free tokens, 4! / 2! = 12 arrangements."""
    ids = [0, 0, -1, 1, -1]
    seen = Counter(tuple(lengths_in_place(random_spans(ids, key=str(k), seed=3))) for k in range(6000))
    assert len(seen) == 12
    assert all(400 < count < 600 for count in seen.values()), seen  # 500 expected, standard deviation 21
    assert random_spans(ids, key="a", seed=1) != random_spans(ids, key="a", seed=7)


def lengths_in_place(ids: list[int]) -> list[tuple[bool, int]]:
    return [(span != -1, len(list(run))) for span, run in groupby(ids)] if ids else []
