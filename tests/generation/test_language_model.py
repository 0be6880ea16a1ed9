"""Batched text of transformers models against one fresh forward per token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mgsr.generation import LanguageModel, evaluating, sample
from mgsr.runtime.errors import UserError
from mgsr.runtime.rng import Stream, uniform
from mgsr.scrg import Prefix
from tests.scrg import reference
from tests.scrg.reference import Settings, assert_same, draw
from tests.scrg.tiny import BUDGET, EOS, FAMILIES, language_model, next_logits, prompts, revised, tiny


@pytest.mark.parametrize("family", [*FAMILIES, "qwen3"])
def test_revise_equals_the_slow_reference(family):
    """Token for token, and record for record: left padding, cache, compaction and continuation change nothing."""
    student, teacher = tiny(family, 2), tiny(family, 4)
    given_prompts = prompts(10, seed=4)
    got = revised(language_model(student, batch_size=4), language_model(teacher), given_prompts, round=2)
    s = Settings(BUDGET, EOS, 5, 2, passes=3)
    corrections = 0
    for sequence, (example, prompt) in zip(got, given_prompts, strict=True):
        assert_same(sequence, reference.revise(next_logits(student), next_logits(teacher), example, prompt, s))
        corrections += len(sequence.corrections)
    assert corrections > 10 and len({len(sequence.rollout_ids) for sequence in got}) > 2


@pytest.mark.parametrize("options", [{"teacher_token": "argmax"}, {"error_position": "random"}])
def test_options_with_real_models(options):
    student, teacher = tiny("gpt2", 1), tiny("llama", 2)
    got = revised(language_model(student), language_model(teacher), prompts(6), **options)
    s = Settings(BUDGET, EOS, 5, passes=3, **options)
    for sequence, (example, prompt) in zip(got, prompts(6), strict=True):
        assert_same(sequence, reference.revise(next_logits(student), next_logits(teacher), example, prompt, s))


def test_different_widths_are_cut():
    """A teacher padded to 16 ids and a student padded to 13 share 11."""
    student, teacher = tiny("llama", 1, vocab=13), tiny("gpt2", 2, vocab=16)
    both = language_model(student, vocab_size=11), language_model(teacher, vocab_size=11)
    s = Settings(BUDGET, EOS, 5, passes=2, vocab_size=11)
    plain = LanguageModel(teacher, eos_token_id=EOS, max_new_tokens=BUDGET)
    for scorer in (both[1], plain):
        got = revised(both[0], scorer, prompts(6), passes=2, vocab_size=11)
        for sequence, (example, prompt) in zip(got, prompts(6), strict=True):
            expected = reference.revise(next_logits(student), next_logits(teacher), example, prompt, s)
            assert_same(sequence, expected)
    with pytest.raises(ValueError, match="16 and 11"):
        revised(both[0], plain, prompts(6))


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_unpadded_forwards(family):
    model = tiny(family, 6)
    given_prompts = prompts(5, seed=2)
    responses = [[3, EOS], [4], [EOS, EOS, 5], [7, 8, 9, 1], []]
    scores = language_model(model, batch_size=2).score(given_prompts, responses)
    expected = [
        next_logits(model)([*prompt, *response[:i]])
        for (_, prompt), response in zip(given_prompts, responses, strict=True)
        for i in range(len(response))
    ]
    assert len(scores) == 10 and np.abs(scores[0:10].numpy() - np.stack(expected)).max() < 1e-10
    assert torch.allclose(scores[3:5], scores[0:10][3:5], atol=1e-12) and not scores[0:1].requires_grad


def test_text_depends_on_nothing_but_its_key():
    model, given_prompts = tiny("llama", 7), prompts(13, seed=3)
    whole = dict(zip(given_prompts_ids(given_prompts), write(model, given_prompts, batch_size=13), strict=True))
    mixed = [given_prompts[i] for i in np.random.default_rng(0).permutation(13)]
    for batch_size in (1, 4, 64):
        again = dict(zip(given_prompts_ids(mixed), write(model, mixed, batch_size=batch_size), strict=True))
        assert again == whole
    assert write(model, given_prompts, seed=1) != list(whole.values())
    assert write(model, given_prompts, round=1) != list(whole.values())
    renamed = [(example + 1000, prompt) for example, prompt in given_prompts]
    assert write(model, renamed) != list(whole.values())


def given_prompts_ids(given_prompts):
    return [example for example, _ in given_prompts]


def write(model, given_prompts, seed=0, round=0, **options):
    return language_model(model, **options).write(given_prompts, seed=seed, round=round)


def test_continue_from_leaves_finished_prefixes():
    writer = language_model(tiny("llama", 9))
    full, ended = Prefix(1, (3,), (4,) * BUDGET), Prefix(2, (3,), (4, EOS))
    assert writer.continue_from([full, ended], seed=0, round=0, pass_=1) == [[4] * BUDGET, [4, EOS]]
    last = writer.continue_from([Prefix(1, (3,), (4,) * (BUDGET - 1))], seed=0, round=0, pass_=1)
    assert len(last[0]) == BUDGET
    with pytest.raises(ValueError, match="example 1"):
        writer.continue_from([Prefix(1, (3,), ())], seed=0, round=0, pass_=1)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_dropout_is_off_and_the_mode_restored(family):
    model, given_prompts = tiny(family, 2), prompts(4)
    calm = write(model, given_prompts)
    model.train()
    frozen = next(module for module in model.modules() if isinstance(module, torch.nn.LayerNorm))
    frozen.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    teacher = language_model(model)
    assert write(model, given_prompts) == calm
    revised(language_model(model), teacher, given_prompts)
    assert {name: module.training for name, module in model.named_modules()} == modes
    with pytest.raises(RuntimeError), evaluating(model):
        assert not model.training and not torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        raise RuntimeError
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.is_grad_enabled()


def test_pad_may_be_any_id():
    """Prompts full of end-of-sequence ids; padding with it, with another id, or by default."""
    model = tiny("gpt2", 3)
    given_prompts = [(1, [EOS]), (2, [EOS, EOS, EOS]), (3, [4, EOS, 5, EOS]), (4, [6])]
    texts = [write(model, given_prompts, pad_token_id=pad) for pad in (None, EOS, 0, 10)]
    assert all(text == texts[0] for text in texts)
    s = Settings(BUDGET, EOS, 0)
    for (example, prompt), response in zip(given_prompts, texts[0], strict=True):
        assert response == reference.write(next_logits(model), prompt, [], example, 0, s)


def test_several_end_ids():
    model = tiny("llama", 4)
    written = write(model, prompts(12), eos_token_id=[EOS, 5])
    assert {response[-1] for response in written} >= {EOS, 5}
    for response in written:
        assert not {EOS, 5} & set(response[:-1]) and (response[-1] in (EOS, 5) or len(response) == BUDGET)
    got = revised(
        language_model(model, eos_token_id=[EOS, 5]),
        language_model(tiny("llama", 5)),
        prompts(12),
        eos_token_id=[EOS, 5],
    )
    assert any(r.corrections and r.corrections[-1].teacher_token == 5 and r.response_ids[-1] == 5 for r in got)


def test_streams_do_not_share_draws():
    model = tiny("llama", 5)
    rollout, evaluation = write(model, prompts(8)), write(model, prompts(8), stream=Stream.EVALUATION)
    assert rollout != evaluation
    assert sample(model, prompts(8), seed=0, eos_token_id=EOS, max_new_tokens=BUDGET) == evaluation
    example, prompt = prompts(8)[0]
    u = uniform(0, Stream.EVALUATION, 0, example, 0, 0)
    assert evaluation[0][0] == draw(next_logits(model)(prompt), float(u))


def test_greedy():
    model = tiny("qwen2", 6)
    texts = [
        sample(model, prompts(5), seed=seed, eos_token_id=EOS, max_new_tokens=BUDGET, greedy=True)
        for seed in (0, 1)
    ]
    assert texts[0] == texts[1]
    for (_, prompt), response in zip(prompts(5), texts[0], strict=True):
        expected: list[int] = []
        while len(expected) < BUDGET and EOS not in expected:
            expected.append(int(np.argmax(next_logits(model)([*prompt, *expected]))))
        assert response == expected


def test_sampling_options():
    """The nucleus and the top k of every written token, by sorting in plain Python."""
    model = tiny("llama", 7)
    for options in ({"top_k": 3}, {"top_p": 0.6}, {"top_k": 4, "top_p": 0.7, "temperature": 0.8}):
        written = write(model, prompts(6), **options)
        for (example, prompt), response in zip(prompts(6), written, strict=True):
            for i, token in enumerate(response):
                logits = next_logits(model)([*prompt, *response[:i]]) / options.get("temperature", 1.0)
                order = sorted(range(len(logits)), key=lambda k: (-logits[k], k))[: options.get("top_k") or None]
                weights = np.exp(logits[order]) / np.exp(logits[order]).sum()
                size = 1
                while weights[:size].sum() < options.get("top_p", 1.0) - 1e-12 and size < len(order):
                    size += 1
                kept = np.full(len(logits), -np.inf)
                kept[order[:size]] = logits[order[:size]]
                assert token == draw(kept, float(uniform(0, 0, 0, example, 0, i)))


def test_progress_counts_prompts():
    seen: list[int] = []
    write(tiny("llama", 1), prompts(7), batch_size=3, progress=seen.append)
    assert seen == [3, 3, 1]
    assert write(tiny("llama", 1), []) == []
    assert len(language_model(tiny("llama", 1)).score([], [])) == 0


def test_refusals():
    model = tiny("gpt2", 1)
    with pytest.raises(ValueError, match="example 4"):
        write(model, [(4, [])])
    with pytest.raises(ValueError, match="example 4"):
        language_model(model).score([(4, [])], [[3]])
    assert len(write(model, [(1, [3] * 31)], eos_token_id=99, pad_token_id=0)[0]) == BUDGET
    with pytest.raises(UserError, match="40 positions"):
        write(model, [(1, [3] * 32)])
    with pytest.raises(UserError, match="40 positions"):
        language_model(model).score([(1, [3] * 32)], [[3] * 9])
    for bad in ({"max_new_tokens": 0}, {"batch_size": 0}, {"temperature": 0.0}, {"top_p": 0.0}, {"top_k": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            language_model(model, **bad)
    with pytest.raises(ValueError, match="8 here and 9"):
        revised(language_model(model), language_model(model), prompts(2), max_new_tokens=8)
    with pytest.raises(ValueError, match="pad_token_id"):
        language_model(model, pad_token_id=11)
