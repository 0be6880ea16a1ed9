"""The table of known shapes: each is built without memory and counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from mgsr.config.schema import ModelConfig
from mgsr.evaluation.flops import shape_of
from mgsr.planning import shapes
from mgsr.planning.shapes import ALIASES, KNOWN, ShapeFinder, known_shape
from mgsr.runtime.errors import UserError

# as their publishers' checkpoints count, each tied tensor once
PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt2-xl": 1_557_611_200,
    "facebook/opt-1.3b": 1_315_758_080,
    "facebook/opt-6.7b": 6_658_473_984,
    "openlm-research/open_llama_3b_v2": 3_426_473_600,
    "openlm-research/open_llama_7b_v2": 6_738_415_616,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-8B": 8_190_735_360,
}


def test_every_shape_has_its_count() -> None:
    assert set(KNOWN) == set(PARAMETERS) and set(ALIASES.values()) <= set(KNOWN)


@pytest.mark.parametrize("hub_id", PARAMETERS)
def test_parameters(hub_id: str) -> None:
    config = known_shape(hub_id)
    assert config is not None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[hub_id]
    # and the arithmetic sees the same matrices: what is left are embeddings, norms and biases
    shape, vectors = shape_of(model), sum(p.numel() for p in model.parameters() if p.dim() < 2)
    tables = {p for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    head = model.get_output_embeddings().weight
    embedded = sum(p.numel() for p in tables if p is not head)
    assert shape.layers * shape.layer_weights + shape.head_weights + embedded + vectors == PARAMETERS[hub_id]


def test_a_folder_comes_before_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gpt2"
    LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8).save_pretrained(
        folder
    )
    monkeypatch.chdir(tmp_path)
    finder = ShapeFinder()
    assert finder(ModelConfig(source="gpt2")).hidden_size == 16
    assert finder(ModelConfig(source="openai-community/gpt2-xl")).n_embd == 1600
    assert finder.origins == {"gpt2": "folder", "openai-community/gpt2-xl": "table"}


def test_the_cache_comes_before_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "_cached", lambda model: LlamaConfig(hidden_size=32))
    finder = ShapeFinder()
    assert finder(ModelConfig(source="gpt2")).hidden_size == 32 and finder.origins == {"gpt2": "hub cache"}


def test_the_hub_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read(model: ModelConfig) -> LlamaConfig:
        asked.append(model.source)
        return LlamaConfig(hidden_size=64)

    monkeypatch.setattr(shapes, "read_shape", read)
    finder = ShapeFinder()
    finder(ModelConfig(source="gpt2"))
    assert not asked
    # another revision may be another model
    assert finder(ModelConfig(source="gpt2", revision="old")).hidden_size == 64
    assert finder(ModelConfig(source="some/model")).hidden_size == 64
    assert asked == ["gpt2", "some/model"] and finder.origins == {"gpt2": "hub", "some/model": "hub"}


def test_a_model_out_of_reach_is_named() -> None:
    with pytest.raises(UserError) as caught:
        ShapeFinder()(ModelConfig(source="nobody/nothing"))
    said = str(caught.value)
    assert (
        "nobody/nothing" in said and "cannot be reached" in said and "give a folder" in said and "\n" not in said
    )


def test_what_is_read_comes_from_the_folder_alone(tmp_path: Path) -> None:
    LlamaConfig(hidden_size=32, num_hidden_layers=5).save_pretrained(tmp_path)
    assert shapes.read_shape(ModelConfig(source=str(tmp_path))).num_hidden_layers == 5
    with pytest.raises(UserError, match="does not exist"):
        shapes.read_shape(ModelConfig(source="/nowhere/at/all"))
