"""Teacher-mixed and interleaved sampling against loops over unpadded forwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mgsr.generation import InterleavedWriter, LanguageModel, MixedWriter
from mgsr.runtime.rng import Stream, uniform
from mgsr.scrg import revise
from tests.scrg.reference import draw, probabilities
from tests.scrg.tiny import EOS, next_logits, prompts, tiny

BUDGET = 8


def pair(vocab_size=11, batch_size=4, **widths):
    student, teacher = tiny("llama", 2, widths.get("student", 11)), tiny("gpt2", 2, widths.get("teacher", 11))
    options = {"eos_token_id": EOS, "max_new_tokens": BUDGET, "batch_size": batch_size, "vocab_size": vocab_size}
    return LanguageModel(student, **options), LanguageModel(teacher, **options)


def slow(student, teacher, example, prompt, choose):
    """Tokens and what `choose(q, p, position)` notes about each."""
    response, notes = [], []
    while len(response) < BUDGET and EOS not in response:
        tokens = [*prompt, *response]
        q, p = next_logits(student.model)(tokens)[:11], next_logits(teacher.model)(tokens)[:11]
        token, note = choose(q, p, example, len(response))
        response.append(token)
        notes.append(note)
    return response, notes


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("widths", [{}, {"student": 12, "teacher": 16}])
def test_mixed(alpha, widths):
    student, teacher = pair(**widths)

    def choose(q, p, example, position):
        mixed = np.array(probabilities(p)) * alpha + np.array(probabilities(q)) * (1 - alpha)
        token = draw(np.log(mixed), float(uniform(3, Stream.ROLLOUT, 1, example, 0, position)))
        return token, (np.log(mixed[token]), np.log(probabilities(q)[token]))

    writer = MixedWriter(student, teacher, alpha=alpha)
    texts = writer.write_mixed(prompts(9), seed=3, round=1)
    for text, (example, prompt) in zip(texts, prompts(9), strict=True):
        response, notes = slow(student, teacher, example, prompt, choose)
        assert list(text.response_ids) == response
        assert np.allclose(
            list(zip(text.behaviour_log_probs, text.student_log_probs, strict=True)), notes, atol=1e-9
        )
    assert writer.write(prompts(9), seed=3, round=1) == [list(text.response_ids) for text in texts]
    if alpha == 0.2 and not widths:
        assert len({len(text.response_ids) for text in texts}) > 2


def test_mixture_at_its_ends_is_one_of_the_models():
    student, teacher = pair()
    for alpha, model in ((0.0, student), (1.0, teacher)):
        mixed = MixedWriter(student, teacher, alpha=alpha).write(prompts(6), seed=0, round=0)
        assert mixed == model.write(prompts(6), seed=0, round=0)


@pytest.mark.parametrize("top_k", [1, 3, 25])
def test_interleaved(top_k):
    student, teacher = pair()

    def choose(q, p, example, position):
        token = draw(q, float(uniform(3, Stream.ROLLOUT, 1, example, 0, position)))
        best = sorted(range(len(p)), key=lambda k: (-p[k], k))[:top_k]
        if token in best:
            return token, False
        return draw(p, float(uniform(3, Stream.TEACHER, 1, example, 0, position))), True

    writer = InterleavedWriter(student, teacher, top_k=top_k)
    texts = writer.write_interleaved(prompts(9), seed=3, round=1)
    replaced = 0
    for text, (example, prompt) in zip(texts, prompts(9), strict=True):
        assert (list(text.response_ids), list(text.replaced)) == slow(student, teacher, example, prompt, choose)
        replaced += sum(text.replaced)
    assert (replaced > 0) == (top_k < 11)
    assert writer.write(prompts(9), seed=3, round=1) == [list(text.response_ids) for text in texts]
    if top_k == 25:
        assert writer.write(prompts(9), seed=3, round=1) == student.write(prompts(9), seed=3, round=1)


def test_ties_in_the_top_k_go_to_smaller_ids():
    writer = InterleavedWriter(*pair(), top_k=2)
    teacher = torch.tensor([[1.0, 1.0, 1.0, 0.0]]).repeat(3, 1).double()
    student = torch.full((3, 4), -1e9).double()
    student[range(3), [0, 1, 2]] = 0.0
    tokens, (replaced,) = writer.choose([student, teacher], [torch.zeros(3), torch.tensor([0.0, 0.0, 0.9])])
    assert replaced.tolist() == [False, False, True] and tokens.tolist()[:2] == [0, 1]
    # exp(0) has 0.11 of the mass: a draw from the *whole* of p may well leave the top k.
    assert tokens.tolist()[2] == 3


def test_batches_do_not_matter_and_modes_are_restored():
    texts = []
    for batch_size in (1, 4, 50):
        student, teacher = pair(batch_size=batch_size)
        student.model.train()
        teacher.model.train()
        given_prompts = prompts(9)[:: -1 if batch_size == 4 else 1]
        written = MixedWriter(student, teacher).write(given_prompts, seed=0, round=0)
        ids = [example for example, _ in given_prompts]
        texts.append(sorted(zip(ids, written, strict=True)))
        assert student.model.training and teacher.model.training
    assert texts[0] == texts[1] == texts[2]


def test_stands_in_for_student_text():
    """As the writer of uncorrected text, where `revise` needs no scores."""
    student, teacher = pair()
    writer = InterleavedWriter(student, teacher)
    options = {"passes": 0, "max_new_tokens": BUDGET, "eos_token_id": EOS, "seed": 1}
    got = revise(writer, None, prompts(5), **options)
    assert [list(r.response_ids) for r in got] == writer.write(prompts(5), seed=1, round=0)


def test_refusals():
    student, teacher = pair()
    with pytest.raises(ValueError, match="alpha"):
        MixedWriter(student, teacher, alpha=1.1)
    with pytest.raises(ValueError, match="top_k"):
        InterleavedWriter(student, teacher, top_k=0)
    wide = pair(vocab_size=None, teacher=13)
    for writer in (MixedWriter(*wide), InterleavedWriter(*wide)):
        with pytest.raises(ValueError, match="11 and 13"):
            writer.write(prompts(2), seed=0, round=0)
    with pytest.raises(ValueError, match="empty prompt"):
        MixedWriter(student, teacher).write([(0, [])], seed=0, round=0)
