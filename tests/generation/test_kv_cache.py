"""Continuing from a kept cache, and rows that leave the batch, change no token."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from mgsr.generation import sample
from mgsr.generation.decoding import Reader
from mgsr.generation.kv_cache import KeptText
from mgsr.scrg import Prefix
from tests.scrg import reference
from tests.scrg.reference import Settings, assert_same
from tests.scrg.tiny import BUDGET, EOS, FAMILIES, language_model, next_logits, prompts, revised, tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_continuation_equals_a_fresh_prefill(family, monkeypatch):
    """float64: the same tokens. And the cache is really used: no second prefill takes place."""
    student, teacher = tiny(family, 3), language_model(tiny(family, 4))
    reads: list[int] = []
    read = Reader.__init__

    def spy(self, body, head, texts, *, cache, **options):
        if cache is None:
            reads.append(len(texts))
        read(self, body, head, texts, cache=cache, **options)

    monkeypatch.setattr(Reader, "__init__", spy)
    cached = revised(language_model(student), teacher, prompts(8))
    assert reads == [8]
    reads.clear()
    fresh = revised(language_model(student, max_cache_slots=0), teacher, prompts(8))
    assert len(reads) == 4
    assert [r.response_ids for r in cached] == [r.response_ids for r in fresh]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_after_a_cached_prefix(family, dtype, monkeypatch):
    """The logits that every continuation token is drawn from: 1e-4 of an unpadded forward in float32."""
    model = tiny(family, 5, dtype=dtype)
    writer = language_model(model)
    given_prompts = prompts(8, seed=1)
    rollouts = writer.write(given_prompts, seed=0, round=0)
    advance, logits = Reader.advance, []
    prefixes = [
        Prefix(example, tuple(prompt), (*rollout[: len(rollout) // 2], 4))
        for (example, prompt), rollout in zip(given_prompts, rollouts, strict=True)
    ]

    def spy(self, *arguments):
        advance(self, *arguments)
        logits.append(self.logits)

    monkeypatch.setattr(Reader, "advance", spy)
    writer.continue_from(prefixes, seed=0, round=0, pass_=1)
    ordered = sorted(prefixes, key=lambda prefix: len(prefix.prompt_ids) + len(prefix.response_ids))
    slow = [next_logits(model)([*prefix.prompt_ids, *prefix.response_ids]) for prefix in ordered]
    error = np.abs(logits[0].double().numpy() - np.stack(slow)).max()
    assert error < (1e-4 if dtype == torch.float32 else 1e-10)


def test_rows_leave_as_they_end(monkeypatch):
    """Compaction happens, several times, and every row is still what it is alone."""
    selections: list[int] = []
    select = Reader.select
    monkeypatch.setattr(
        Reader, "select", lambda self, rows, *more: selections.append(len(rows)) or select(self, rows, *more)
    )
    model, given_prompts = tiny("gpt2", 2), prompts(24, seed=4)
    together = language_model(model, batch_size=24, max_new_tokens=20)
    written = together.write(given_prompts, seed=0, round=0)
    assert len(selections) >= 2 and selections == sorted(selections, reverse=True)
    s = Settings(20, EOS, 0)
    for (example, prompt), response in zip(given_prompts, written, strict=True):
        assert response == reference.write(next_logits(model), prompt, [], example, 0, s)
    # Continue rows from every segment of the kept cache, cut anywhere.
    rng = np.random.default_rng(1)
    prefixes = [
        Prefix(example, tuple(prompt), (*response[: rng.integers(len(response))], 5))
        for (example, prompt), response in zip(given_prompts, written, strict=True)
    ]
    assert len(together._kept.segments) >= 3
    chosen = [prefixes[i] for i in rng.permutation(24)[:17]]
    continued = together.continue_from(chosen, seed=0, round=0, pass_=1)
    for prefix, response in zip(chosen, continued, strict=True):
        expected = reference.write(
            next_logits(model), prefix.prompt_ids, prefix.response_ids, prefix.example_id, 1, s
        )
        assert response == expected


def test_stale_caches_are_not_used():
    """Another text under the same id, a rewritten model and a repeated id must all be read afresh."""
    model, given_prompts = tiny("llama", 9), prompts(4, seed=5)
    writer, s = language_model(model), Settings(BUDGET, EOS, 0)
    writer.write(given_prompts, seed=0, round=0)
    other = [Prefix(example, (5, 5, *prompt), (6, 7)) for example, prompt in given_prompts]
    twice = [Prefix(1, (3, 4), (5,)), Prefix(1, (8, 9, 10), (5,))]
    for prefixes in (other, twice, twice):
        for prefix, response in zip(
            prefixes, writer.continue_from(prefixes, seed=0, round=0, pass_=1), strict=True
        ):
            expected = reference.write(
                next_logits(model), prefix.prompt_ids, prefix.response_ids, prefix.example_id, 1, s
            )
            assert response == expected
    before = writer.write(given_prompts, seed=0, round=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.7)
    after = writer.write(given_prompts, seed=0, round=0)
    assert after != before
    assert after == language_model(model).write(given_prompts, seed=0, round=0)


def test_a_kept_cache_ends_before_the_last_token():
    """The last token of a response was written but never read: going on behind it takes a fresh prefill."""
    model, given_prompts = tiny("gpt2", 2), prompts(12, seed=4)
    writer, s = language_model(model, batch_size=12), Settings(BUDGET, EOS, 0)
    written = writer.write(given_prompts, seed=0, round=0)
    longer = [
        Prefix(example, tuple(prompt), (*response, 5))
        for (example, prompt), response in zip(given_prompts, written, strict=True)
        if len(response) < BUDGET - 1
    ]
    assert len(longer) > 4
    continued = writer.continue_from(longer, seed=0, round=0, pass_=1)
    for prefix, response in zip(longer, continued, strict=True):
        assert response == reference.write(
            next_logits(model), prefix.prompt_ids, prefix.response_ids, prefix.example_id, 1, s
        )


def test_two_texts_of_one_id_are_not_mixed_up():
    """Which of the two a kept row belongs to would depend on which ended first."""
    model, s = tiny("gpt2", 2), Settings(BUDGET, EOS, 0)
    for seed in range(12):
        writer = language_model(model)
        (_, one), (_, two) = prompts(2, seed)
        pair = [(1, one), (1, [*two, *one])]
        written = writer.write(pair, seed=seed, round=0)
        prefix = Prefix(1, tuple(pair[1][1]), (*written[1][:-1], 5))
        (response,) = writer.continue_from([prefix], seed=0, round=0, pass_=1)
        assert response == reference.write(next_logits(model), prefix.prompt_ids, prefix.response_ids, 1, 1, s)


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_sliding_windows_prefill_anew_and_say_so_once(family, caplog):
    extra = {"sliding_window": 4}
    if family == "qwen2":
        extra |= {"use_sliding_window": True, "max_window_layers": 1}
    student, teacher = tiny(family, 1, **extra), tiny("llama", 2)
    writer = language_model(student, batch_size=3)
    with caplog.at_level(logging.WARNING, logger="mgsr.generation.language_model"):
        got = revised(writer, language_model(teacher), prompts(7))
    assert writer._kept == KeptText()
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert "sliding window" in caplog.records[0].message and len(caplog.records) == 1
    s = Settings(BUDGET, EOS, 5, passes=3)
    for sequence, (example, prompt) in zip(got, prompts(7), strict=True):
        assert_same(sequence, reference.revise(next_logits(student), next_logits(teacher), example, prompt, s))


def test_max_cache_slots(caplog):
    """Prompts have up to 8 tokens, responses up to 9: rows of up to 17 slots."""
    student, teacher = tiny("llama", 1), language_model(tiny("llama", 2))
    for slots, messages in ((17, 0), (16, 1)):
        caplog.clear()
        writer = language_model(student, max_cache_slots=slots)
        long = [(example, [*prompt, *[3] * (8 - len(prompt))]) for example, prompt in prompts(8)]
        revised(writer, teacher, long)
        assert len(caplog.records) == messages
        assert all("max_cache_slots=16" in record.message for record in caplog.records)


def test_nothing_is_said_where_nothing_is_continued(caplog):
    sample(tiny("mistral", 1, sliding_window=4), prompts(3), seed=0, eos_token_id=EOS, max_new_tokens=4)
    assert not caplog.records


def test_ended_rows_do_not_run_past_the_last_position():
    """One row ends at position 40 of 40 while another, with a shorter prompt, goes on."""
    model = tiny("gpt2", 2)
    writer = language_model(model, max_new_tokens=20, eos_token_id=99, pad_token_id=0)
    prefixes = [
        Prefix(1, (3,) * 20, (4,) * 19),
        Prefix(2, (3,) * 2, (4,)),
        Prefix(3, (5, 3), (4, 4)),
    ]
    continued = writer.continue_from(prefixes, seed=0, round=0, pass_=1)
    s = Settings(20, 99, 0)
    for prefix, response in zip(prefixes, continued, strict=True):
        assert response == reference.write(
            next_logits(model), prefix.prompt_ids, prefix.response_ids, prefix.example_id, 1, s
        )
