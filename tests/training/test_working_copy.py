"""Copies that compute in another type than the weights, a teacher cast in place, and who computes in what."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from mgsr.models.building import build_causal_lm
from mgsr.models.from_config import frozen
from mgsr.models.lora import add_lora
from mgsr.runtime import devices
from mgsr.runtime.devices import computing_dtype, move, product_dtype
from mgsr.training.fsdp import working

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16, F32 = torch.bfloat16, torch.float32


def tiny_model() -> Any:
    return build_causal_lm(
        "llama",
        vocab_size=30,
        hidden_size=8,
        num_layers=2,
        num_heads=2,
        max_position_embeddings=32,
        eos_token_id=1,
        seed=0,
    )


def test_a_working_copy_is_narrow_tied_and_freed() -> None:
    model = tiny_model().eval()
    model.register_buffer("scale", torch.ones(2))
    master = {name: p.clone() for name, p in model.named_parameters()}
    with working(model, None) as same, working(model, F32) as also:
        assert same is model and also is model
    with working(model, BF16) as copied:
        assert copied is not model and {p.dtype for p in copied.parameters()} == {BF16}
        assert copied.lm_head.weight is copied.get_input_embeddings().weight
        assert copied.model.rotary_emb.inv_freq.dtype == F32 and copied.scale.dtype == BF16
        assert not copied.training and copied(torch.ones(1, 3, dtype=torch.long)).logits.dtype == BF16
        held = [weakref.ref(p) for p in copied.parameters()]
    gc.collect()
    assert not any(reference() is not None for reference in held)
    assert all(torch.equal(master[name], p) and p.dtype == F32 for name, p in model.named_parameters())


def test_adapters_are_copied_with_what_they_stand_on() -> None:
    model = add_lora(tiny_model(), r=2, alpha=4.0, dropout=0.0, target_modules=["q_proj"]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    ids = torch.arange(1, 6)[None]
    with working(model, BF16) as copied, torch.no_grad():
        near = copied(ids).logits.float()
        plain = model.get_base_model()(ids).logits
    torch.testing.assert_close(near, model(ids).logits, rtol=0.05, atol=0.05)
    assert plain.shape == near.shape


def test_a_frozen_model_is_cast_where_it_computes() -> None:
    model = tiny_model()
    embedding = model.get_input_embeddings().weight
    assert frozen(model, None) is model and embedding.dtype == F32
    assert frozen(model, BF16) is model and embedding.dtype == F32
    assert move(model, CPU) is model and model.get_input_embeddings().weight is embedding
    assert model.lm_head.weight is embedding and embedding.dtype == BF16
    assert model.model.rotary_emb.inv_freq.dtype == F32


def test_what_is_computed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert computing_dtype("bf16-mixed", CPU) == computing_dtype("bf16-true", CUDA) == BF16
    assert computing_dtype("32-true", CUDA) is computing_dtype("64-true", CPU) is None
    assert computing_dtype("16-mixed", CUDA) == torch.float16 and computing_dtype("16-mixed", CPU) is None
    for units, products in ((True, BF16), (False, None)):
        monkeypatch.setattr(devices, "has_bf16_units", lambda units=units: units)
        assert product_dtype("bf16-mixed", CPU) == product_dtype("bf16-true", CPU) == products
        assert product_dtype("32-true", CPU) is product_dtype("bf16-mixed", CUDA) is None
