"""Adapters on every family: what gets gradients, what a checkpoint holds of them, what merging computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mgsr import models
from mgsr.config.load import load_config
from mgsr.config.schema import TrainConfig
from mgsr.data.tokenizer import train_tokenizer
from mgsr.models.clip_network import ClipNetwork
from mgsr.models.from_config import build_initial, with_adapters
from mgsr.models.output_layer import last_hidden, output_head
from mgsr.planning.doctor_memory import look_at_memory
from mgsr.planning.findings import Report
from mgsr.planning.model_size import fake_models, model_size
from mgsr.runtime.errors import DataError, UserError
from mgsr.training.checkpoint import KEPT
from mgsr.training.optim import build_optimizer
from tests.reliability.harness import small_config

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])
# every kind of layer that the family has, and what all linear ones are
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc", "c_proj"],
    "opt": ["q_proj", "fc1", "out_proj"],
    "qwen2": ["q_proj", "o_proj", "gate_proj"],
    "qwen3": ["k_proj", "up_proj"],
}


def tiny(family: str, *, seed: int = 7, tied: bool = True) -> Any:
    return models.build_causal_lm(
        family,
        vocab_size=40,
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        max_position_embeddings=32,
        eos_token_id=1,
        pad_token_id=0,
        seed=seed,
        tie_word_embeddings=tied,
        dtype="float64",
    )


def adapted(family: str, targets: Any, *, tied: bool = True, moved: bool = False) -> Any:
    """A tiny model with adapters; `moved`: away from the identity they start as."""
    torch.manual_seed(0)
    model = models.add_lora(tiny(family, tied=tied), r=2, alpha=4, target_modules=targets)
    if moved:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def step(model: Any) -> dict[str, torch.Tensor]:
    """Gradients of a loss on the two halves that training reads; names of weights without one are left out."""
    hidden = last_hidden(model.train(), TOKENS, torch.ones_like(TOKENS))
    scores = output_head(model).project(hidden)[:, :-1]
    torch.nn.functional.cross_entropy(scores.flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    named = model.named_parameters(remove_duplicate=False)
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", models.FAMILIES)
def test_adapters_alone_get_gradients_and_are_optimised_and_merge(family: str, tied: bool) -> None:
    for targets in (TARGETS[family], "all-linear"):
        model = adapted(family, targets, tied=tied, moved=True)
        lora = {name: p for name, p in model.named_parameters() if "lora_" in name}
        assert step(model).keys() == lora.keys() and lora
        clip = ClipNetwork(features=4, hidden=4)
        optimizer, _ = build_optimizer(model, clip, TrainConfig(weight_decay=0.3), clip_lr=7.0, total_steps=2)
        groups = [
            (g["initial_lr"], g["weight_decay"], {id(p) for p in g["params"]}) for g in optimizer.param_groups
        ]
        assert groups == [
            (TrainConfig().lr, 0.3, {id(p) for p in lora.values()}),
            (7.0, 0.0, {id(p) for p in clip.parameters()}),
        ]
        apart = logits(model)
        assert not torch.allclose(apart, logits(tiny(family, tied=tied)), atol=1e-3)
        merged = models.merge_lora(model)
        torch.testing.assert_close(logits(merged), apart, atol=1e-12, rtol=0)
        assert merged.state_dict().keys() == tiny(family, tied=tied).state_dict().keys()


@pytest.mark.parametrize("family", models.FAMILIES)
def test_checkpointed_activations_give_adapters_the_same_gradients(family: str) -> None:
    plain = step(adapted(family, TARGETS[family], moved=True))
    model = adapted(family, TARGETS[family], moved=True)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    calls = []
    layer = next(m for name, m in model.named_modules() if "lora_A" in name and isinstance(m, torch.nn.Linear))
    layer.register_forward_hook(lambda *_: calls.append(1))
    recomputed = step(model)
    assert len(calls) == 2, "a layer of the base is gone through again in backward"
    assert recomputed.keys() == plain.keys() and all("lora_" in name for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-12, rtol=0)
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_state_without_its_base_is_filled_in_by_a_model_that_has_it(family: str, tied: bool) -> None:
    model = adapted(family, TARGETS[family], tied=tied, moved=True)
    whole = {f"student.{name}": value for name, value in model.state_dict().items()} | {"clip.x": torch.ones(1)}
    kept = models.without_base(whole, model, "student.")
    assert all("lora_" in name for name in kept if name != "clip.x") and "clip.x" in kept
    fresh = adapted(family, TARGETS[family], tied=tied)
    filled = models.with_base(kept, fresh, "student.")
    assert filled.keys() == whole.keys()
    fresh.load_state_dict({k.removeprefix("student."): v for k, v in filled.items() if k != "clip.x"})
    assert torch.equal(logits(fresh), logits(model))


def test_a_state_of_other_adapters_is_refused_and_a_plain_one_left_alone() -> None:
    model = adapted("llama", ["q_proj", "v_proj"])
    kept = models.without_base(model.state_dict(), model)
    name = next(iter(kept))
    with pytest.raises(DataError, match=f"`{name}` is missing, 1 in all"):
        models.with_base({k: v for k, v in kept.items() if k != name}, model)
    with pytest.raises(DataError, match=f"`{name}` does not fit, 1 in all"):
        models.with_base(kept | {name: kept[name][:1]}, model)
    with pytest.raises(DataError, match="does not fit, 4 in all"):
        models.with_base(kept, adapted("llama", ["q_proj"]))
    with pytest.raises(DataError, match=r"embed_tokens\.weight` does not fit"):
        models.with_base(kept | {"base_model.model.model.embed_tokens.weight": torch.zeros(40, 16)}, model)
    plain = tiny("llama").requires_grad_(False)
    state = plain.state_dict()
    assert models.without_base(state, plain).keys() == models.with_base(state, plain).keys() == state.keys()
    assert models.with_base({}, plain) == {}, "a strict load is left to find what is missing"


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_an_embedding_that_input_and_output_share_gets_no_adapter(target: str) -> None:
    with pytest.raises(UserError, match=f"lora target `{target}` is tied"):
        models.add_lora(tiny("llama"), r=2, alpha=4, target_modules=[target])
    untied = adapted("llama", ["embed_tokens"], tied=False)
    torch.nn.init.normal_(untied.base_model.model.model.embed_tokens.lora_embedding_B["default"])
    apart = logits(untied)
    torch.testing.assert_close(logits(models.merge_lora(untied)), apart, atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", models.FAMILIES)
def test_the_doctors_account_of_adapters_is_that_of_the_real_model(family: str) -> None:
    shape = {"family": family, "hidden_size": 16, "num_layers": 2, "num_heads": 4}
    words = [f"student.architecture.{name}={value}" for name, value in shape.items()]
    lora = ["student.lora.r=2", f"student.lora.target_modules=[{','.join(TARGETS[family])}]"]
    config = load_config(
        None, ["teacher.source=init", "student.source=init", "data.train=synthetic", *words, *lora]
    )
    _, _, fake = fake_models(config, 40)
    real = adapted(family, TARGETS[family])
    size, trained = model_size(fake), [p for p in real.parameters() if p.requires_grad]
    assert size.trained == 4 * sum(p.numel() for p in trained)
    assert size.optimiser == 2 * size.trained + 4 * len(trained)


def test_the_disk_estimate_counts_what_checkpoints_hold(tmp_path: Path) -> None:
    config = small_config(tmp_path, "student.lora.r=2", "student.lora.target_modules=[c_attn,c_fc]")
    tokenizer = train_tokenizer(["a red cat"], vocab_size=258)
    ids = {"vocab_size": len(tokenizer), "eos_token_id": 1, "pad_token_id": 0, "seed": 0}
    model = with_adapters(build_initial(config, config.student, **ids), config)
    said = {}
    for name, rank in (("lora", 2), ("plain", 0)):
        config.student.lora.r = rank
        report = Report()
        look_at_memory(config, tokenizer, report, available=1 << 40)
        said[name] = report.figures
    kept = models.without_base(model.state_dict(), model).values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    # two moments as large as the weights, a count of four bytes per tensor
    assert said["lora"]["disk"]["best"] == 2 * size
    assert said["lora"]["disk"]["resume_points"] == (KEPT + 1) * (3 * size + 4 * len(kept))
    assert said["plain"]["disk"]["best"] > 4 * said["lora"]["disk"]["best"]
    # fine-tuning comes before the adapters and trains all weights
    assert said["lora"]["memory"]["student_sft"] == said["plain"]["memory"]["student_sft"]
