"""Scoring from the states of the writing: no forward, and the numbers of a fresh one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mgsr.generation import LanguageModel
from mgsr.models.output_layer import trunk
from mgsr.scrg import Prefix, revise
from tests.scrg.tiny import BUDGET, EOS, FAMILIES, tiny

PROMPTS = [(7, (3, 4, 5)), (8, (6,)), (9, (4, 9, 3, 5, 8))]


class Forwards:
    """Counts the tokens that a model's trunk reads."""

    def __init__(self, model: Any) -> None:
        self.tokens = 0
        trunk(model).register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: Any) -> None:
        self.tokens += kwargs["input_ids"].numel()


def writer(model: Any, **options: Any) -> LanguageModel:
    return LanguageModel(model, eos_token_id=EOS, max_new_tokens=BUDGET, **options)


def logits(scores: Any) -> torch.Tensor:
    return scores[slice(0, len(scores))]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_what_was_written_need_no_forward(family: str) -> None:
    model = tiny(family)
    count, language_model = Forwards(model), writer(model)
    written = language_model.write(PROMPTS, seed=1, round=0)
    before = count.tokens
    recorded = logits(language_model.score(PROMPTS, written))
    assert count.tokens == before
    language_model.release()
    fresh = logits(language_model.score(PROMPTS, written))
    assert count.tokens > before
    torch.testing.assert_close(recorded, fresh, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_after_a_correction_the_states_up_to_it_still_hold(family: str) -> None:
    model = tiny(family)
    count, language_model = Forwards(model), writer(model)
    written = language_model.write(PROMPTS, seed=1, round=0)
    prefixes = [
        Prefix(i, ids, (*text[: min(cut, len(text) - 1)], 5))
        for cut, (i, ids), text in zip((0, 1, 2), PROMPTS, written, strict=True)
    ]
    again = language_model.continue_from(prefixes, seed=1, round=0, pass_=1)
    before = count.tokens
    recorded = logits(language_model.score(PROMPTS, again))
    assert count.tokens == before
    fresh = logits(writer(model).score(PROMPTS, again))
    torch.testing.assert_close(recorded, fresh, rtol=1e-9, atol=1e-9)


def test_other_text_is_read_anew() -> None:
    model = tiny("llama")
    language_model = writer(model)
    written = language_model.write(PROMPTS, seed=1, round=0)
    changed = [[*text[:-1], 3] for text in written]
    got = logits(language_model.score(PROMPTS, changed))
    torch.testing.assert_close(got, logits(writer(model).score(PROMPTS, changed)))
    # a prefix that does not stand in what was written is not mixed up with it
    prefixes = [Prefix(i, ids, (3, 4, 5, 6)) for i, ids in PROMPTS]
    again = language_model.continue_from(prefixes, seed=1, round=0, pass_=1)
    got = logits(language_model.score(PROMPTS, again))
    torch.testing.assert_close(got, logits(writer(model).score(PROMPTS, again)), rtol=1e-9, atol=1e-9)


def test_a_round_reads_the_students_text_only_once() -> None:
    student, teacher = tiny("llama", 0), tiny("llama", 1)
    count = Forwards(student)
    made = revise(
        writer(student), writer(teacher), PROMPTS, passes=2, max_new_tokens=BUDGET, eos_token_id=EOS, seed=3
    )
    assert all(len(sequence.corrections) >= 1 for sequence in made)
    # a token is read when the next one is drawn; padding and rows that have ended cost a few more
    longest = max(len(ids) for _, ids in PROMPTS)
    assert count.tokens <= len(PROMPTS) * (longest + 3 * BUDGET)
