"""The two halves of a model give its own logits."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from mgsr.generation import LanguageModel
from mgsr.models.output_layer import OutputLayer, check_output_head, last_hidden, output_head
from mgsr.runtime.errors import UserError
from tests.host_reads import HostReads
from tests.scrg.tiny import FAMILIES, next_logits, prompts, tiny

SMALL = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def special(name):
    """Models that do something to their logits, or have a bias, or a head by another name."""
    gqa = {"num_key_value_heads": 1, **SMALL}
    model = {
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(head_dim=8, final_logit_softcapping=0.5, **gqa)),
        "cohere": lambda: CohereForCausalLM(CohereConfig(logit_scale=0.25, **gqa)),
        "granite": lambda: GraniteForCausalLM(GraniteConfig(logits_scaling=3.0, **gqa)),
        "phi": lambda: PhiForCausalLM(PhiConfig(**SMALL)),
        "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)),
    }[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return model.double().eval()


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite", "phi", "neox"])
def test_logits_of_special_heads(name):
    torch.manual_seed(0)
    model = special(name)
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    expected = model(input_ids=ids).logits
    head = output_head(model)
    assert torch.allclose(head.project(last_hidden(model, ids)), expected, atol=1e-12)
    plain = OutputLayer(head.weight).project(last_hidden(model, ids))
    assert torch.allclose(plain, expected, atol=1e-3) == (name == "neox")
    check_output_head(model)


@pytest.mark.parametrize("name", ["gemma2", "cohere"])
def test_text_of_special_heads(name):
    """Sampled from the capped and scaled logits, and from no others."""
    from tests.scrg import reference

    torch.manual_seed(0)
    # Gemma's eager attention casts its float64 mask to float32 and gets NaN where a padded row sees nothing.
    model = special(name).to(torch.float32 if name == "gemma2" else torch.float64)
    written = LanguageModel(model, eos_token_id=2, max_new_tokens=6).write(prompts(6), seed=0, round=0)
    for (example, prompt), response in zip(prompts(6), written, strict=True):
        s = reference.Settings(6, 2, 0)
        assert response == reference.write(next_logits(model), prompt, [], example, 0, s)


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_needs_mask_and_positions(family):
    model = tiny(family, 1)
    ids = torch.tensor([[2, 2, 4, 5], [6, 7, 8, 9]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    positions = torch.tensor([[0, 0, 0, 1], [0, 1, 2, 3]])
    hidden = last_hidden(model, ids, mask, positions)
    alone = last_hidden(model, ids[:1, 2:])
    assert torch.allclose(hidden[0, 2:], alone[0], atol=1e-12)
    check_output_head(model)


def test_projection_is_wide_and_cut():
    head = OutputLayer(torch.randn(7, 4).bfloat16(), torch.randn(7).bfloat16())
    hidden = torch.randn(3, 4).bfloat16()
    assert head.project(hidden).dtype == torch.float32
    assert torch.equal(head.project(hidden, 5), head.project(hidden)[:, :5])


def test_unknown_heads_are_refused():
    model = tiny("llama", 1)
    original = type(model).forward
    trunk_only = model.model
    with pytest.raises(UserError, match="LlamaModel"):
        last_hidden(trunk_only, torch.tensor([[1]]))

    class Doubling(type(model)):
        def forward(self, *arguments, **options):
            output = original(self, *arguments, **options)
            output.logits = output.logits * 2
            return output

    model.__class__ = Doubling
    with pytest.raises(UserError, match="Doubling"):
        check_output_head(model)
    wrapped = tiny("llama", 1)
    wrapped.lm_head = torch.nn.Sequential(wrapped.lm_head)
    with pytest.raises(UserError, match="Sequential"):
        output_head(wrapped)


@pytest.mark.parametrize("family", [*FAMILIES, "qwen3", "mistral", "windows"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_right_padding_needs_no_mask_and_no_look(family: str, dtype: torch.dtype) -> None:
    """States of the texts have the same bits as under a mask, gradients the same digits; nothing is read."""
    extra = {"sliding_window": 4} if family == "windows" else {}
    model = tiny("mistral" if family == "windows" else family, 3, dtype=dtype, **extra)
    # of the four with a padding id, GPT-2 looks for it in what it is given
    model.config.pad_token_id = None
    lengths = torch.tensor([11, 4, 7, 1])
    ids, real = torch.randint(0, 11, (4, 11)), torch.arange(11) < lengths[:, None]
    found = []
    for mask in (None, real.long()):
        reads = HostReads()
        model.zero_grad()
        with reads:
            states = last_hidden(model, ids, mask)
        assert mask is not None or reads.found == []
        states[real].sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((states[real].detach(), gradients))
    assert torch.equal(found[0][0], found[1][0])
    exact = 1e-12 if dtype == torch.float64 else 1e-4
    assert torch.allclose(found[0][1], found[1][1], rtol=exact, atol=exact * float(found[1][1].abs().max()))


def test_a_checkpointed_forward_needs_neither() -> None:
    model = tiny("llama", 3).train()
    ids = torch.randint(0, 11, (2, 6))
    plain = last_hidden(model, ids)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again = last_hidden(model, ids)
    assert torch.equal(plain, again)
    again.sum().backward()
    assert model.get_input_embeddings().weight.grad is not None
