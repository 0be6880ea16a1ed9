"""Ragged rows read in several passes: the cheapest cut, and the same text."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mgsr.generation import batching, evaluating
from mgsr.generation import language_model as language_models
from mgsr.generation.batching import SHORT, price_of_pass, similar_lengths
from mgsr.generation.decoding import Reader
from mgsr.models.output_layer import output_head, trunk
from tests.scrg.reference import Settings, assert_same
from tests.scrg.reference import revise as slow_revise
from tests.scrg.tiny import BUDGET, EOS, FAMILIES, language_model, next_logits, prompts, revised, tiny


def reader_of(model: nn.Module, texts: list[list[int]]) -> Reader:
    return Reader(trunk(model), output_head(model), texts, room=2, pad_id=0)


def cost(groups: list[list[int]], lengths: list[int], price: int) -> int:
    return sum(len(rows) * max(lengths[row] for row in rows) + price for rows in groups)


def cheapest(lengths: list[int], price: int) -> int:
    """Every way to cut the sorted rows."""
    rows = sorted(range(len(lengths)), key=lambda row: lengths[row])
    cuts = [c for n in range(len(rows)) for c in combinations(range(1, len(rows)), n)]
    every = [[rows[a:b] for a, b in zip((0, *cut), (*cut, len(rows)), strict=True)] for cut in cuts]
    return min(cost(groups, lengths, price) for groups in every)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 60))
def test_no_cut_is_cheaper(lengths: list[int], price: int) -> None:
    groups = similar_lengths(lengths, price)
    assert sorted(row for rows in groups for row in rows) == list(range(len(lengths)))
    assert all(rows == sorted(rows) for rows in groups)
    assert cost(groups, lengths, price) == cheapest(lengths, price)


def test_few_short_rows_are_not_worth_a_pass() -> None:
    assert similar_lengths([], 512) == [] and similar_lengths([7, 3], 512) == [[0, 1]]
    assert similar_lengths([5, 262, 5, 262], 512) == [[0, 2], [1, 3]]
    # both ways cost the same
    assert similar_lengths([5, 261, 5, 261], 512) == [[0, 1, 2, 3]]


def test_a_pass_of_a_small_model_is_dear() -> None:
    with torch.device("meta"):
        assert price_of_pass(nn.Identity(), SHORT - 1) == 10**10
        for size, tokens in {10**8: 512, 10**6: 10**4}.items():
            waits = nn.Linear(1, size, bias=False)
            assert price_of_pass(waits, SHORT) == tokens, "an accelerator waits longer for calls"
    for size, tokens, short in ((10**5, 1000, 10**5), (10**6, 100, 10**4), (10**9, 64, 512)):
        weight = torch.empty(1).expand(size)  # takes no memory
        model = nn.ParameterList([nn.Parameter(weight, requires_grad=False)])
        assert price_of_pass(model, SHORT) == tokens and price_of_pass(model, SHORT - 1) == short
    small = tiny("llama", 3)
    counted: list[tuple[nn.Module, int]] = []
    with pytest.MonkeyPatch.context() as patch, evaluating(small):
        patch.setattr(batching, "price_of_pass", lambda model, longest: counted.append((model, longest)) or 0)
        reader_of(small, [[1], [2, 3]])
    assert counted == [(trunk(small), 2)]


@pytest.fixture
def cut_finely(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Groups at every length; the numbers of groups that were made."""
    made: list[int] = []

    def groups(lengths: list[int], price: int) -> list[list[int]]:
        found = similar_lengths(lengths, 0)
        made.append(len(found))
        return found

    monkeypatch.setattr(batching, "similar_lengths", groups)
    monkeypatch.setattr(language_models, "SHORT", 0)
    return made


@pytest.mark.parametrize("family", [*FAMILIES, "qwen3"])
def test_revised_in_several_passes_equals_the_slow_reference(family: str, cut_finely: list[int]) -> None:
    student, teacher = tiny(family, 2), tiny(family, 4)
    given_prompts = prompts(10, seed=4)
    got = revised(language_model(student, batch_size=16), language_model(teacher), given_prompts, round=2)
    s = Settings(BUDGET, EOS, 5, 2, passes=3)
    for sequence, (example, prompt) in zip(got, given_prompts, strict=True):
        assert_same(sequence, slow_revise(next_logits(student), next_logits(teacher), example, prompt, s))
    assert max(cut_finely) > 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reader_goes_on_behind_lined_up_slots(family: str, cut_finely: list[int]) -> None:
    model = tiny(family, 3)
    texts = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10], [2, 2]]
    with evaluating(model):
        reader = reader_of(model, texts)
        first, states = reader.logits, reader.state
        reader.advance(torch.tensor([3, 4, 5, 6, 7]))
        second = reader.logits
    assert cut_finely == [4]
    for row, (text, new) in enumerate(zip(texts, [3, 4, 5, 6, 7], strict=True)):
        assert np.abs(first[row].numpy() - next_logits(model)(text)).max() < 1e-10
        assert np.abs(second[row].numpy() - next_logits(model)([*text, new])).max() < 1e-10
    assert states.shape == (5, reader.head.weight.shape[1])


def test_sliding_windows_are_read_in_one_pass(cut_finely: list[int]) -> None:
    model = tiny("mistral", 3, sliding_window=4)
    with evaluating(model):
        reader_of(model, [[1, 2, 3], [4], [5, 6, 7, 8, 9]])
    assert cut_finely == []


@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_texts_are_scored_in_several_passes(family: str, cut_finely: list[int]) -> None:
    model = tiny(family, 3)
    given_prompts = [(0, [1, 2, 3]), (1, [4]), (2, [5, 6, 7, 8, 9]), (3, [10]), (4, [2, 2])]
    responses = [[3], [4, 5], [], [6, 7, 8], [1, 2]]
    logits = language_model(model, batch_size=4).score(given_prompts, responses)[0:8]
    # lengths 3, 4, 4, 4 make one batch, the fifth row's 5 another
    assert cut_finely == [2, 1]
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_models, "passes", lambda *a, **b: made.append(batching.passes(*a, **b)) or made[-1])
        patch.setattr(batching, "similar_lengths", similar_lengths)
        patch.setattr(batching, "price_of_pass", lambda *a: 0)
        patch.setattr(language_models, "SHORT", 5)
        language_model(model, batch_size=4).score(given_prompts, responses)
    assert made == [[[0, 1, 2, 3]], [[0]]], "short texts are scored together"
    wanted = [
        next_logits(model)([*prompt, *response[:place]])
        for (_, prompt), response in zip(given_prompts, responses, strict=True)
        for place in range(len(response))
    ]
    assert logits.shape[0] == len(wanted) and np.abs(logits.numpy() - np.stack(wanted)).max() < 1e-10
