"""What is wrong with a model folder is one line that names the file, before a weight is read where that can be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from mgsr.models import build_causal_lm, load_causal_lm, load_tokenizer, save_model_folder, shape_of_causal_lm
from mgsr.models import loading as loading_module
from mgsr.runtime.errors import UserError
from tests.models.small import tiny_model, tiny_tokenizer

Harm = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model_folder(tiny_model(), tiny_tokenizer(), tmp_path / "model")


def refusal(load: Callable[[Path], Any], folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(folder)
    line = str(caught.value)
    assert "\n" not in line and str(folder) in line and len(line) < 900
    return line


def written(name: str, content: str | bytes) -> Harm:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data) and None  # type: ignore[return-value,func-returns-value]


def changed(name: str, **values: Any) -> Harm:
    def harm(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return harm


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Harm:
    def harm(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file(change({name: tensor.clone() for name, tensor in load_file(path).items()}), path)

    return harm


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_a_shard(folder: Path) -> None:
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "model-00002-of-00002.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def renamed(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


def an_encoder(folder: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=30, **sizes)).save_pretrained(folder)


NORM = "model.norm.weight"
CONFIG = "config.json"
HARMS: dict[str, tuple[Harm, str]] = {
    "a list": (written(CONFIG, "[1]"), r"config.json` holds no JSON object"),
    "null": (written(CONFIG, "null"), r"config.json` holds no JSON object"),
    "half a config": (written(CONFIG, "{"), r"config.json` is not a valid JSON"),
    "no text": (written(CONFIG, b"\xff\xfe"), r"config.json` is not a valid JSON"),
    "a word for a size": (changed(CONFIG, hidden_size="eight"), "expected int, got str.*see its config.json"),
    "no heads": (changed(CONFIG, num_attention_heads=0), "ZeroDivisionError"),
    "an activation": (changed(CONFIG, hidden_act="nope"), "KeyError 'nope'"),
    "a huge width": (changed(CONFIG, hidden_size=10**9), "x1000000000 by its config.json"),
    "a huge depth": (changed(CONFIG, num_hidden_layers=10**9), "asks for 1000000000 layers"),
    "a huge vocabulary": (changed(CONFIG, vocab_size=10**12), "embed_tokens.weight` is 260x32 in its weights"),
    "fewer layers": (
        changed(CONFIG, num_hidden_layers=1),
        "has weights of layer 1 and by its config.json 1 layer",
    ),
    "more layers": (changed(CONFIG, num_hidden_layers=3), "lacks 9 weights"),
    "generation settings": (
        written("generation_config.json", "[]"),
        r"generation_config.json` holds no JSON object",
    ),
    "a torn file": (cut, r"model.safetensors` is torn .*not fully covered"),
    "an empty file": (written("model.safetensors", b""), r"model.safetensors` is torn .*too small"),
    "another file": (written("model.safetensors", b"\xff" * 99), r"model.safetensors` is torn .*too large"),
    "a shape": (
        weights(lambda w: w | {NORM: torch.ones(31)}),
        "norm.weight` is 31 in its weights and 32 by its config.json",
    ),
    "integers": (weights(lambda w: {name: t.int() for name, t in w.items()}), "of type I32: quantised weights"),
    "a missing shard": (without_a_shard, r"model-00002-of-00002.safetensors` is missing, which"),
    "an index": (written("model.safetensors.index.json", "[]"), r"index.json` holds no JSON object"),
    "an empty index": (written("model.safetensors.index.json", "{}"), r"index.json` has no `weight_map`"),
    "another name": (renamed, "holds weights.safetensors and neither model.safetensors nor"),
    "an encoder": (an_encoder, r"is an encoder \(bert\)"),
}


@pytest.mark.parametrize("name", HARMS)
def test_a_spoilt_folder_is_refused_before_a_weight_is_read(folder: Path, name: str) -> None:
    harm, words = HARMS[name]
    harm(folder)
    lines = [refusal(load, folder) for load in (shape_of_causal_lm, load_causal_lm)]
    assert lines[0] == lines[1]
    with pytest.raises(UserError, match=words):
        shape_of_causal_lm(folder)


VALUES: dict[str, tuple[Harm, str]] = {
    "all 0": (
        weights(lambda w: {name: torch.zeros_like(t) for name, t in w.items()}),
        "is 0: its weights were never",
    ),
    "NaN": (weights(lambda w: w | {NORM: w[NORM] * float("nan")}), "norm.weight` holds NaN or infinity"),
    "one infinity": (
        weights(lambda w: w | {NORM: torch.cat([w[NORM][1:], torch.tensor([float("-inf")])])}),
        "norm.weight` holds NaN or infinity",
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_weights_that_no_training_has_left_are_refused(folder: Path, name: str) -> None:
    harm, words = VALUES[name]
    harm(folder)
    shape_of_causal_lm(folder)
    with pytest.raises(UserError, match=words):
        load_causal_lm(folder)


TOKENIZERS: dict[str, tuple[Harm, str]] = {
    "a list": (written("tokenizer.json", "[]"), r"tokenizer.json` holds no JSON object"),
    "half": (written("tokenizer.json", '{"a":'), r"tokenizer.json` is not a valid JSON"),
    "empty": (written("tokenizer.json", "{}"), "cannot be loaded: .*its tokenizer's files"),
    "another kind": (changed("tokenizer.json", model={"type": "x"}), "cannot be loaded: .*its tokenizer's files"),
    "settings": (written("tokenizer_config.json", "[]"), r"tokenizer_config.json` holds no JSON object"),
    "a number for a token": (changed("tokenizer_config.json", eos_token=5), "eos_token has to be either str"),
    "no words": (
        changed("tokenizer.json", model={"type": "BPE", "vocab": {}, "merges": []}, added_tokens=[]),
        "makes no token of the text `a`",
    ),
    "a list for a config": (written(CONFIG, "[1]"), r"config.json` holds no JSON object"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_spoilt_tokenizer_is_refused(folder: Path, name: str) -> None:
    harm, words = TOKENIZERS[name]
    harm(folder)
    refusal(load_tokenizer, folder)
    with pytest.raises(UserError, match=words):
        load_tokenizer(folder)


def test_weights_that_have_no_place_are_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights(lambda w: w | {"v_head.summary.weight": torch.ones(3)})(folder)
    model = load_causal_lm(folder)
    assert "left out 1 weight that its config does not ask for, such as v_head" in capsys.readouterr().out
    assert torch.equal(model.get_input_embeddings().weight, tiny_model().get_input_embeddings().weight)


def test_a_shape_has_no_content_and_draws_no_numbers(folder: Path) -> None:
    state = torch.get_rng_state()
    shape = shape_of_causal_lm(folder, dtype="bfloat16", attn_implementation="eager")
    assert {weight.device.type for weight in shape.parameters()} == {"meta"}
    assert shape.dtype == torch.bfloat16 and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), Exception("x")]
)
def test_whatever_loading_raises_is_one_line(
    folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(loading_module.AutoModelForCausalLM, "from_pretrained", fails)
    line = refusal(load_causal_lm, folder)
    assert ("does not fit into this machine's memory" in line) == (str(error) != "x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 10**9}, "does not fit into this machine's memory"),
        ({"vocab_size": 10**13}, "does not fit into this machine's memory"),
        ({"attn_implementation": "foo"}, 'attn_implementation="foo"` is not supported: set'),
    ],
)
def test_a_model_that_cannot_be_made_is_one_line(change: dict[str, Any], words: str) -> None:
    sizes = {"vocab_size": 40, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 16}
    with pytest.raises(UserError, match=words):
        build_causal_lm(
            "llama", **(sizes | {"max_position_embeddings": 16, "eos_token_id": 0, "seed": 0} | change)
        )
