"""The mask of a step made once, against the one that transformers makes anew in every step."""

from __future__ import annotations

import pytest
import torch

from mgsr.generation import decoding
from mgsr.models.output_layer import trunk
from tests.scrg.tiny import FAMILIES, language_model, prompts, tiny


def write(model, given, seen):
    """Text, its states, and the shapes of the masks that single tokens were read with."""
    handle = trunk(model).register_forward_pre_hook(
        lambda module, args, kwargs: (
            seen.append(getattr(kwargs["attention_mask"], "ndim", 0))
            if kwargs["input_ids"].shape[1] == 1
            else None
        ),
        with_kwargs=True,
    )
    writer = language_model(model, batch_size=16)
    text = writer.write(given, seed=3, round=0)
    states = writer.score(given, text).hidden_NH
    handle.remove()
    return text, states


@pytest.mark.parametrize("family", [*FAMILIES, "qwen3", "mistral"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_same_bits_as_transformers_own(family, dtype, monkeypatch):
    model, given = tiny(family, 5, dtype=dtype), prompts(11, seed=6)
    ready, own = [], []
    text, states = write(model, given, ready)
    monkeypatch.setattr(decoding, "READY_MASKS", frozenset())
    expected, expected_states = write(model, given, own)
    assert text == expected and torch.equal(states, expected_states)
    assert set(own) == {2}
    # a family that is not known to take it is given the plain one
    assert set(ready) == ({2} if family == "mistral" else {4})


@pytest.mark.parametrize("family", [*FAMILIES, "qwen3", "mistral"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equally_long_prompts_need_no_mask(family, dtype, monkeypatch):
    """Neither when they are read nor after that; the bits are those of a mask that masks nothing."""
    model, given, seen = tiny(family, 1, dtype=dtype), [(i, (3, 4, 5 + i % 6)) for i in range(8)], []
    text, states = write(model, given, seen)
    assert set(seen) == {0}
    read = decoding.Reader._body

    def with_mask(self, ids, mask, positions, cache):
        assert mask is None
        whole = torch.ones(len(ids), self.width, dtype=torch.int64)
        return read(self, ids, whole, positions, cache)

    monkeypatch.setattr(decoding.Reader, "_body", with_mask)
    expected, expected_states = write(model, given, [])
    assert text == expected and torch.equal(states, expected_states)


def test_eager_attention_wants_another_mask():
    # transformers takes its softmax in float32: in float64 the mask would overflow there
    model = tiny("llama", 1, dtype=torch.float32)
    model.set_attn_implementation("eager")
    seen = []
    write(model, prompts(5, seed=2), seen)
    assert set(seen) == {2}
