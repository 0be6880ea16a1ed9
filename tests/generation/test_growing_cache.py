"""A cache that grows by chunks holds what transformers' own does, and at no time do two of them stand."""

from __future__ import annotations

import gc

import pytest
import torch
from transformers import DynamicCache

from mgsr.generation import kv_cache
from mgsr.generation.decoding import Reader
from mgsr.generation.kv_cache import GrowingLayer, KeptText, growing_cache, keeps_every_slot
from mgsr.models.output_layer import cache_argument, trunk
from mgsr.scrg import Prefix
from tests.scrg.tiny import FAMILIES, language_model, tiny

LAYERS = 6


@pytest.mark.parametrize("family", [*FAMILIES, "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_same_bits_as_transformers_own(family, dtype, monkeypatch):
    monkeypatch.setattr(kv_cache, "CHUNK", 5)
    body = trunk(tiny(family, 1, dtype=dtype))
    opened, name = [], cache_argument(body)
    original = GrowingLayer.open
    monkeypatch.setattr(GrowingLayer, "open", lambda self, *a: opened.append(a[3]) or original(self, *a))
    ours, theirs = growing_cache(body.config, 26), DynamicCache(config=body.config)
    assert keeps_every_slot(ours)
    tokens = torch.randint(0, 11, (6, 26), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for start, stop in [(0, 7), *((i, i + 1) for i in range(7, 26))]:
            if stop == 15:
                for cache in (ours, theirs):
                    cache.batch_select_indices(torch.tensor([4, 0, 3]))
                tokens = tokens[[4, 0, 3]]
            positions = torch.arange(start, stop).expand(len(tokens), -1)
            got, expected = (
                body(input_ids=tokens[:, start:stop], position_ids=positions, use_cache=True, **{name: cache})
                for cache in (ours, theirs)
            )
            assert torch.equal(got.last_hidden_state, expected.last_hidden_state)
    for mine, own in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(mine.keys, own.keys) and torch.equal(mine.values, own.values)
        # no more room than the limit
        assert [room.shape[2] for room in mine._room] == [26, 26]
    # 7 slots and room for 5 more, three times
    assert opened == [width for width in (7, 13, 19, 25) for _ in ours.layers]


@pytest.fixture
def only_what_is_new():
    """What stands already is not looked through again and again."""
    gc.collect()
    gc.freeze()


def held() -> int:
    """Numbers in all keys and values that are alive, each counted once; nothing else here has four dimensions."""
    tensors = (found for found in gc.get_objects() if type(found) is torch.Tensor and found.ndim == 4)
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // 8 for t in tensors}.values())


@pytest.mark.parametrize("moment", ["rows leave", "a correction resumes"])
def test_one_cache_stands_while(moment, monkeypatch, only_what_is_new):
    """What stands beside it is a layer at a time."""
    owner, name = {"rows leave": (Reader, "select"), "a correction resumes": (KeptText, "restore")}[moment]
    function, shares, peak = getattr(owner, name), [], [0]

    def within(*arguments):
        start, peak[0] = held(), 0
        result = function(*arguments)
        if start:
            shares.append(peak[0] / max(start, held()))
        return result

    monkeypatch.setattr(owner, name, within)
    for step in ("open", "batch_select_indices"):
        original = getattr(GrowingLayer, step)

        def watched(self, *arguments, original=original):
            result = original(self, *arguments)
            peak[0] = max(peak[0], held())
            return result

        monkeypatch.setattr(GrowingLayer, step, watched)
    model = tiny("llama", 2, num_hidden_layers=LAYERS, num_key_value_heads=2)
    given = [(i, tuple(3 + (i + j) % 7 for j in range(20))) for i in range(8)]
    writer = language_model(model, max_new_tokens=12, eos_token_id=[2, 5, 8])
    written = writer.write(given, seed=0, round=0)
    shares *= moment == "rows leave"
    assert len(writer._kept.segments) > 2
    prefixes = [Prefix(i, prompt, (*text[:-1], 4)) for (i, prompt), text in zip(given, written, strict=True)]
    writer.continue_from(prefixes, seed=0, round=0, pass_=1)
    assert shares and max(shares) < 1 + 1.7 / LAYERS
