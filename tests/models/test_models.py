"""Students from scratch and from a teacher's layers, and adapters."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2ForCausalLM

from mgsr.config.schema import ExperimentConfig, StudentConfig
from mgsr.models import (
    FAMILIES,
    add_lora,
    build_causal_lm,
    load_causal_lm,
    merge_lora,
    prune_depth,
    save_model_folder,
)
from mgsr.models.from_config import build_student
from mgsr.runtime.errors import UserError

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_layers": 3,
    "num_heads": 4,
    "max_position_embeddings": 32,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


def build(family: str, **changes):
    options = SIZES | {"seed": 7, "dtype": "float64"} | changes
    return build_causal_lm(family, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_step_reaches_every_weight_and_keeps_the_embedding_tied(family):
    model = build(family)
    assert model.training
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(TOKENS, labels=TOKENS).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    optimizer.step()
    assert model(TOKENS, labels=TOKENS).loss < loss
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    # near-uniform at the start: log 40 = 3.689
    assert abs(loss.item() - 3.689) < 0.15


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_reach_the_model(family):
    model = build(family, num_layers=2, tie_word_embeddings=False, intermediate_size=24)
    assert model.get_input_embeddings().weight.shape == (40, 16)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert model.config.num_hidden_layers == 2
    assert model.config.num_attention_heads == 4
    assert any(24 in parameter.shape for parameter in model.parameters())
    ids = model.generation_config
    assert (ids.eos_token_id, ids.pad_token_id, ids.bos_token_id) == (1, 0, None)
    assert model.dtype == torch.float64


def test_grouped_query_attention_and_default_feed_forward():
    model = build("llama", num_kv_heads=2)
    assert model.model.layers[0].self_attn.k_proj.weight.shape == (8, 16)
    assert model.config.intermediate_size == 64  # 8/3 * 16 = 42.7, rounded up to a multiple of 32
    assert build("gpt2").transformer.h[0].mlp.c_fc.weight.shape == (16, 64)


def test_dropout_is_live_in_train_mode_only():
    for family in FAMILIES:
        model = build(family, dropout=0.5)
        torch.manual_seed(0)
        assert not torch.equal(model(TOKENS).logits, model(TOKENS).logits), family
        model.eval()
        assert torch.equal(model(TOKENS).logits, model(TOKENS).logits), family


def test_the_seed_alone_decides_and_the_global_generator_is_left_alone():
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    first = build("gpt2").state_dict()
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)
    again, other = build("gpt2").state_dict(), build("gpt2", seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llma", {}, "did you mean `llama`"),
        ("llama", {"num_heads": 3}, "hidden_size 16 is not a multiple of num_heads 3"),
        ("llama", {"num_heads": 16}, "must be even"),
        ("qwen2", {"num_kv_heads": 3}, "not a multiple of num_kv_heads 3"),
        ("gpt2", {"num_kv_heads": 2}, "leave num_kv_heads out"),
        ("opt", {"num_layers": 0}, "num_layers must be 1 or more, not 0"),
        ("opt", {"dropout": 1.0}, "dropout must be in"),
        ("gpt2", {"eos_token_id": 40}, "eos_token_id 40 is outside the vocabulary of 40"),
        ("gpt2", {"dtype": "float23"}, "did you mean `float32`"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(family, changes, words):
    with pytest.raises(UserError, match=words) as caught:
        build(family, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_pruning_nothing_changes_nothing(family):
    model = build(family).eval()
    copy = prune_depth(model, [0, 1, 2])
    assert torch.equal(copy(TOKENS).logits, model(TOKENS).logits)
    assert copy.get_output_embeddings().weight is copy.get_input_embeddings().weight


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_model_is_the_teacher_without_those_layers(family):
    model = build(family).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = prune_depth(model, [0, 2])
    assert pruned.config.num_hidden_layers == 2
    assert not pruned.training

    # independent reference: the dropped layer replaced by the identity in the original
    layers = {"gpt2": lambda m: m.transformer.h, "opt": lambda m: m.model.decoder.layers}.get(
        family, lambda m: m.model.layers
    )(model)
    dropped = layers[1].forward
    layers[1].forward = lambda hidden, *args, **kwargs: hidden
    with torch.no_grad():
        reference = model(TOKENS, use_cache=False).logits
    layers[1].forward = dropped
    with torch.no_grad():
        assert torch.allclose(pruned(TOKENS).logits, reference, atol=1e-12)
        assert not torch.allclose(model(TOKENS).logits, reference, atol=1e-6)

    # independent: training the copy does not move the original
    for parameter in pruned.parameters():
        parameter.data.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config.num_hidden_layers == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_model_generates_with_its_cache_as_without_and_survives_the_disk(family, tmp_path):
    pruned = prune_depth(build(family).eval(), [1, 2])
    indices = [module.layer_idx for module in pruned.modules() if hasattr(module, "layer_idx")]
    assert set(indices) == {0, 1}
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    mask = torch.ones_like(TOKENS)
    cached = pruned.generate(TOKENS, attention_mask=mask, use_cache=True, **options)
    uncached = pruned.generate(TOKENS, attention_mask=mask, use_cache=False, **options)
    assert torch.equal(cached, uncached)
    cache = pruned(TOKENS, use_cache=True).past_key_values
    assert len(cache) == 2
    assert cache.get_seq_length() == 6

    reloaded = load_causal_lm(save_model_folder(pruned, None, tmp_path / "pruned"), dtype="float64")
    assert torch.equal(reloaded(TOKENS).logits, pruned(TOKENS).logits)


def test_per_layer_settings_follow_their_layers(tmp_path):
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config = Qwen2Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=2,
        layer_types=kinds,
    )
    pruned = prune_depth(Qwen2ForCausalLM(config).eval(), [0, 1, 3])
    assert pruned.config.layer_types == [kinds[0], kinds[1], kinds[3]]
    windows = [layer.self_attn.sliding_window for layer in pruned.model.layers]
    assert windows == [None, 2, 2]
    assert config.layer_types == kinds
    reloaded = load_causal_lm(save_model_folder(pruned, None, tmp_path / "pruned"))
    assert torch.equal(reloaded(TOKENS).logits, pruned(TOKENS).logits)


def test_pruning_keeps_dtype_mode_and_trainability():
    model = build("llama", dtype="bfloat16").eval().requires_grad_(False)
    model.generation_config.top_k = 7
    state = torch.get_rng_state()
    pruned = prune_depth(model.train(), [2])
    assert torch.equal(torch.get_rng_state(), state)
    assert pruned.generation_config.top_k == 7
    assert pruned.training
    assert {parameter.dtype for parameter in pruned.parameters()} == {torch.bfloat16}
    assert all(parameter.requires_grad for parameter in pruned.parameters())
    assert pruned.model.rotary_emb.inv_freq.dtype == model.model.rotary_emb.inv_freq.dtype


@given(keep=st.lists(st.integers(-2, 4), max_size=4))
@settings(max_examples=25, deadline=None)
def test_only_ascending_layers_of_the_model_can_be_kept(keep):
    model = build("gpt2", hidden_size=4, num_heads=1, vocab_size=5)
    if keep and keep == sorted(set(keep)) and keep[0] >= 0 and keep[-1] < 3:
        assert len(prune_depth(model, keep).transformer.h) == len(keep)
    else:
        with pytest.raises(UserError, match="layer"):
            prune_depth(model, keep)


@pytest.mark.parametrize(
    ("family", "targets"), [("llama", ["q_proj", "v_proj"]), ("gpt2", ["c_attn"]), ("opt", "all-linear")]
)
def test_adapters_start_as_the_identity_train_alone_and_merge(family, targets, tmp_path):
    model = build(family).eval()
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = model(TOKENS).logits.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft's, where the layout of the weights is not told
        adapted = add_lora(model, r=2, alpha=4, dropout=0.0, target_modules=targets)
    assert torch.equal(adapted(TOKENS).logits, before)
    trainable = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trainable and all("lora_" in name for name in trainable)

    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # the first step moves B only
        optimizer.zero_grad()
        adapted(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
    trained = adapted(TOKENS).logits.detach()
    assert not torch.allclose(trained, before, atol=1e-5)

    merged = merge_lora(adapted)
    assert torch.allclose(merged(TOKENS).logits, trained, atol=1e-10)
    assert merged.state_dict().keys() == frozen.keys()
    reloaded = load_causal_lm(save_model_folder(merged, None, tmp_path / "merged"), dtype="float64")
    assert torch.equal(reloaded(TOKENS).logits, merged(TOKENS).logits)


def test_the_adapter_scale_is_alpha_over_r():
    adapted = add_lora(build("llama").eval(), r=2, alpha=6, target_modules=["q_proj"])
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    expected = layer.base_layer.weight + 3.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    merged = merge_lora(adapted)
    assert torch.allclose(merged.model.layers[0].self_attn.q_proj.weight, expected, atol=1e-12)


def test_adapters_that_cannot_be_are_refused(monkeypatch):
    with pytest.raises(UserError, match="lora target `q_prj` is no layer of LlamaForCausalLM"):
        add_lora(build("llama"), r=2, alpha=4, target_modules=["q_prj"])
    with pytest.raises(UserError, match="lora r must be 1 or more"):
        add_lora(build("llama"), r=0, alpha=4)
    with pytest.raises(UserError, match="`lm_head` is tied"):
        add_lora(build("llama"), r=2, alpha=4, target_modules=["lm_head"])
    with pytest.raises(ValueError, match="carries no adapters"):
        merge_lora(build("llama"))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"peft: pip install 'peft>="):
        add_lora(build("llama"), r=2, alpha=4)


def test_a_student_cut_out_of_a_teacher_is_of_its_own_type():
    student = StudentConfig(source="teacher", keep_layers=[0, 2], dtype="bfloat16")
    teacher = build("llama")
    built = build_student(ExperimentConfig(), student, teacher, None, seed=0)
    assert {weight.dtype for weight in built.parameters()} == {torch.bfloat16} != {teacher.dtype}
    assert built.config.num_hidden_layers == 2
