"""Where the teacher takes over, and what is then written, against a loop over unpadded forwards."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mgsr.generation import LanguageModel
from mgsr.rounds.unrevised import SwitchingWriter
from mgsr.runtime.rng import Stream, uniform
from mgsr.scrg.switch import divergences, first_above, first_above_recent
from tests.losses import reference
from tests.scrg.reference import draw, probabilities
from tests.scrg.tiny import EOS, next_logits, prompts, tiny

BUDGET, SEED, ROUND = 8, 3, 1


@pytest.mark.parametrize("measure", ["kl", "jsd"])
def test_divergences_are_those_of_every_position(measure):
    draws = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(9, 5, dtype=torch.float64, generator=draws) for _ in range(2))
    found = divergences(teacher, student, [4, 0, 5], measure, tile_size=2)
    assert [len(each) for each in found] == [4, 0, 5]
    flat = [value for each in found for value in each]
    for row in range(9):
        p, q = (reference.softmax(z[row].numpy()) for z in (teacher, student))
        name, value = ("forward_kl", 0.0) if measure == "kl" else ("jensen_shannon", 0.5)
        assert flat[row] == pytest.approx(reference.divergence(name, p, q, value))
    with pytest.raises(ValueError, match="8 tokens, but scores of 9"):
        divergences(teacher, student, [8], measure)


def test_rules():
    assert first_above([0.3, 0.31], 0.3) == 1 and first_above([], 0.3) is None
    # the window has to be full, and is that of the values before
    assert first_above_recent([0.0, 9.0, 1.0], 3.0, 2) is None
    assert first_above_recent([1.0, 1.0, 2.9, 6.0], 3.0, 2) == 3


def rule(kind, past):
    """Whether the last of the divergences is where the teacher takes over."""
    if kind == "threshold":
        return past[-1] > 0.1
    return len(past) > 2 and past[-1] > 1.2 * np.mean(past[-3:-1])


def slow(student, teacher, example, prompt, kind):
    """The response, and the position of the switch."""
    response, past, switched = [], [], None
    while len(response) < BUDGET and EOS not in response:
        tokens = [*prompt, *response]
        q, p = next_logits(student.model)(tokens)[:11], next_logits(teacher.model)(tokens)[:11]
        both = np.array(probabilities(p)), np.array(probabilities(q))
        if switched is None:
            past.append(
                reference.divergence("jensen_shannon", *both, 0.5) if kind == "threshold" else reference.kl(*both)
            )
            switched = len(response) if rule(kind, past) else None
        key = (SEED, Stream.ROLLOUT, ROUND, example, 0 if switched is None else 1, len(response))
        response.append(draw(q if switched is None else p, float(uniform(*key))))
    return response, switched


@pytest.mark.parametrize("kind", ["threshold", "recent_mean"])
def test_the_teacher_goes_on_from_where_the_two_part(kind):
    options = {"eos_token_id": EOS, "max_new_tokens": BUDGET, "batch_size": 4, "vocab_size": 11}
    student, teacher = (LanguageModel(tiny(family, 2, 11), **options) for family in ("llama", "gpt2"))
    scrg = SimpleNamespace(switch=kind, switch_threshold=0.1, switch_factor=1.2, switch_window=2)
    writer = object.__new__(SwitchingWriter)
    writer.config, writer.models = SimpleNamespace(scrg=scrg, seed=SEED), SimpleNamespace(in_turn=lambda w, _: w)
    writer.student, writer.teacher, writer.device, writer.vocab_size = student, teacher, None, 11
    texts, extra, _ = writer.unrevised(prompts(12), ROUND)
    places = []
    for text, more, (example, prompt) in zip(texts, extra, prompts(12), strict=True):
        response, switched = slow(student, teacher, example, prompt, kind)
        assert text == response
        wanted = {} if switched is None else {"replaced": tuple(range(switched, len(response)))}
        assert more == wanted
        places.append(switched)
    # some at once or never, some in between
    assert {None, 0} & {*places} and any(place for place in places)
