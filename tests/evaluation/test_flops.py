"""The arithmetic of FLOPs against torch's own count of the products a real model makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, DynamicCache, LlamaConfig, LlamaForCausalLM, PretrainedConfig, Qwen3Config

from mgsr import models
from mgsr.evaluation import flops
from mgsr.evaluation.flops import shape_of
from mgsr.generation import LanguageModel, MixedWriter
from mgsr.runtime.errors import UserError
from mgsr.runtime.meter import Work
from mgsr.scrg import Prefix

B, T = 3, 11
ROTARY = ("llama", "qwen2", "qwen3")
FAMILIES = (*ROTARY, "gpt2", "opt")


def tiny(family: str, layers: int = 2, **sizes: Any) -> Any:
    """Eager attention: torch counts every product of it, and nothing else."""
    grouped = {"num_kv_heads": 2} if family in ROTARY else {}
    shape = {"hidden_size": 24, "num_layers": layers, "num_heads": 4, "intermediate_size": 40, **grouped, **sizes}
    return models.build_causal_lm(
        family,
        vocab_size=53,
        eos_token_id=0,
        seed=0,
        max_position_embeddings=64,
        attn_implementation="eager",
        **shape,
    )


def counted(run: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def ids() -> torch.Tensor:
    return torch.randint(0, 53, (B, T), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_and_backward_to_the_last_operation(family: str) -> None:
    model, rows = tiny(family), ids()
    shape = shape_of(model)
    once = flops.forward(shape, B, T, B * T)
    assert counted(lambda: model(input_ids=rows, use_cache=False)) == once.total
    assert once.head == 2 * B * T * 24 * 53

    def both() -> None:
        model(input_ids=rows, labels=rows, use_cache=False).loss.backward()

    assert counted(both) == flops.training(shape, B, T, B * T).total
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert counted(both) == flops.training(shape, B, T, B * T, checkpointing=True).total


def test_heads_wider_than_the_model() -> None:
    """Qwen3's heads are not width / heads wide."""
    sizes = {"vocab_size": 53, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16}
    model = models_from(Qwen3Config(**sizes, **heads, attn_implementation="eager"))
    shape = shape_of(model)
    assert shape.compared == 4 * 16
    expected = flops.forward(shape, B, T, B * T).total
    assert counted(lambda: model(input_ids=ids(), use_cache=False)) == expected


def models_from(config: PretrainedConfig) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_prompts_and_writing_token_by_token(family: str) -> None:
    model, prompts, new = tiny(family).eval(), ids(), 5
    shape = shape_of(model)
    cache = DynamicCache(config=model.config)

    @torch.no_grad()
    def read(tokens: torch.Tensor) -> None:
        model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)

    assert counted(lambda: read(prompts)) == flops.prefill(shape, B, T).total

    def write() -> None:
        for _ in range(new - 1):
            read(prompts[:, :1])

    expected = flops.decoding(shape, B, T, new).total
    assert counted(write) == expected
    assert flops.decoding(shape, B, T, 1).total == flops.decoding(shape, B, T, 0.5).total == 0


@pytest.mark.parametrize(("family", "targets"), [("llama", "all-linear"), ("gpt2", None)])
def test_frozen_weights_have_no_gradient(family: str, targets: str | None) -> None:
    """Backward with adapters: exact but for the first layer, which has nothing to send gradients to."""
    model, rows = tiny(family, layers=4), ids()
    plain = shape_of(model)
    adapted: Any = models.add_lora(model, r=2, alpha=4, target_modules=targets)
    adapters = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    shape = shape_of(model, adapters=adapters)
    once = counted(lambda: adapted(input_ids=rows, use_cache=False))
    assert once == flops.forward(shape, B, T, B * T).total

    def both() -> None:
        adapted(input_ids=rows, labels=rows, use_cache=False).loss.backward()

    found = counted(both)
    expected = flops.training(shape, B, T, B * T).total
    assert found <= expected
    # at most the gradients of the first layer's inputs: its products, its comparisons, its adapters
    spared = 2 * B * T * (shape.layer_weights + adapters / 4) + 4 * B * T * T * 24
    assert expected - found <= spared
    assert expected < flops.training(plain, B, T, B * T).total


def test_known_totals() -> None:
    """A 7B model takes about 2 x 6.6e9 per token forward: all its matrices but the embedding."""
    config = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    with torch.device("meta"):
        shape = shape_of(models_from(config))
    assert shape.layers * shape.layer_weights + shape.head_weights == 6_738_415_616 - 32000 * 4096 - 65 * 4096
    assert flops.forward(shape, 1, 1, 1).total == 2 * 6_607_077_376 + 4 * 32 * 4096


@pytest.mark.parametrize("family", ["gemma2", "phi3", "gpt_neox", "mixtral", "starcoder2"])
def test_families_that_mgsr_does_not_build(family: str) -> None:
    """Every matrix once for a token, but the embedding; and of four experts the two that it is given to."""
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "vocab_size": 40,
        "pad_token_id": 0,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    config = AutoConfig.for_model(family, **sizes, **heads, num_local_experts=4, num_experts_per_tok=2)
    model = models_from(config)
    shape = shape_of(model)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name)
    matrices -= model.get_output_embeddings().weight.numel() if not config.tie_word_embeddings else 0
    experts = sum(p.numel() for p in model.parameters() if p.dim() == 3)
    assert (experts > 0) == (family == "mixtral")
    assert shape.layers * shape.layer_weights == matrices + experts / 2
    assert (shape.compared, shape.head_weights) == (16, 16 * 40)


def test_a_family_that_cannot_be_counted_is_refused() -> None:
    class Other(LlamaForCausalLM):
        def forward(self, *_: Any, **__: Any) -> Any:
            raise NotImplementedError

    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = Other(config)
    with pytest.raises(UserError, match="family `llama` cannot be counted"):
        shape_of(model)
    assert flops.flops_of({}, model, None) is None


def test_sums() -> None:
    assert (flops.Flops(1, 2) + flops.Flops(3, 4)).total == 10


def test_models_count_what_they_compute() -> None:
    """Writing, continuing with and without what is kept, scoring; one text at a time, so that none is padded."""
    model = tiny("llama").eval()
    student = LanguageModel(model, eos_token_id=0, max_new_tokens=9, batch_size=1)
    prompts = [(0, (5, 6, 7)), (1, (8, 9, 10, 11, 12))]

    def run() -> None:
        for prompt in prompts:
            (text,) = student.write([prompt], seed=3, round=0)
            student.score([prompt], [text])
            prefix = Prefix(prompt[0], prompt[1], (*text[:3], 17))
            student.continue_from([prefix], seed=3, round=0, pass_=1)
            student.release()
            student.continue_from([prefix], seed=4, round=0, pass_=2)
            student.score([prompt], [text])

    total = counted(run)
    made = flops.spent(student.work.named("read_student"), shape_of(model), None)
    # logits of what is scored are made by whoever reads them
    scored = sum(2 * 24 * 53 * len(text) * 2 for text in student.write(prompts, seed=3, round=0))
    assert total == made - scored
    assert Work.of(Work(1, 2, 3).named("x"), "x") == Work(1, 2, 3)


def test_two_models_that_write_together_count_each_their_part() -> None:
    models_ = [LanguageModel(tiny("llama", layers).eval(), eos_token_id=0, max_new_tokens=6) for layers in (1, 2)]
    texts = MixedWriter(*models_).write([(0, (5, 6, 7)), (1, (8, 9))], seed=1, round=0)
    expected = Work()
    for length, text in zip((3, 2), texts, strict=True):
        expected.read(length, 1)
        expected.write(length, len(text))
    assert models_[0].work == models_[1].work == expected
