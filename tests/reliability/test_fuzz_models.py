"""Model folders from strangers, a file of them changed at random: they load, or are refused in one line.

As many inputs as `test_fuzz.py` takes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mgsr.models import load_causal_lm, load_tokenizer, save_model_folder
from mgsr.runtime.errors import UserError
from tests.models.small import tiny_model, tiny_tokenizer
from tests.reliability.test_fuzz import fuzz, plain

SIZES = st.sampled_from([-1, 0, 1, 2, 3, 10**4, 10**9, 2**63, 10**30])
KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act", "model_type", "dtype"),
    *("tie_word_embeddings", "rope_parameters", "rope_scaling", "eos_token_id", "pad_token_id", "architectures"),
    *("layer_types", "quantization_config", "auto_map", "attention_bias", "tokenizer_class", "text_config"),
)
TOKENIZER_KEYS = (
    *("model", "added_tokens", "pre_tokenizer", "decoder", "normalizer", "version", "eos_token", "pad_token"),
    *("tokenizer_class", "extra_special_tokens", "model_max_length", "truncation", "padding", "backend"),
)
SHAPES = st.lists(SIZES, max_size=3)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_folder(tiny_model(), tiny_tokenizer(), tmp_path_factory.mktemp("sound") / "model")


def answers(sound: Path, tmp_path: Path, name: str, content: bytes, load: Callable[[Path], Any]) -> None:
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    (folder / name).write_bytes(content)
    try:
        load(folder)
    except UserError as error:
        assert "\n" not in str(error) and str(folder) in str(error)


@fuzz
@given(
    st.dictionaries(st.sampled_from(KEYS), plain | SIZES, min_size=1, max_size=2) | plain | st.binary(max_size=40)
)
@example({"num_attention_heads": 0})
@example({"model_type": []})
@example({"quantization_config": {"quant_method": "gptq"}})
@example({"rope_parameters": {"rope_type": "yarn"}})
@example({"num_hidden_layers": 10**9})
@example({"text_config": {"hidden_size": 8}})
@example({"eos_token_id": 10**30})
def test_fuzz_model_config(sound: Path, tmp_path: Path, change: Any) -> None:
    config = json.loads((sound / "config.json").read_text())
    content = (
        change if isinstance(change, bytes) else json.dumps(config | change if type(change) is dict else change)
    )
    content = content if isinstance(content, bytes) else content.encode()
    answers(sound, tmp_path, "config.json", content, load_causal_lm)
    answers(sound, tmp_path, "config.json", content, load_tokenizer)


@fuzz
@given(
    st.sampled_from(["tokenizer.json", "tokenizer_config.json"]),
    st.dictionaries(
        st.sampled_from(TOKENIZER_KEYS),
        plain,
        min_size=1,
        max_size=2,
    )
    | plain
    | st.binary(max_size=40),
)
@example("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}})
@example("tokenizer.json", {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}})
@example("tokenizer_config.json", {"eos_token": None})
@example("tokenizer_config.json", {"eos_token": {"content": 5}})
@example("tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
def test_fuzz_tokenizer(sound: Path, tmp_path: Path, name: str, change: Any) -> None:
    there = json.loads((sound / name).read_text())
    content = (
        change if isinstance(change, bytes) else json.dumps(there | change if type(change) is dict else change)
    )
    answers(sound, tmp_path, name, content if isinstance(content, bytes) else content.encode(), load_tokenizer)


@fuzz
@given(
    st.dictionaries(
        st.sampled_from(["model.norm.weight", "model.embed_tokens.weight", "more", "__metadata__"]),
        plain
        | st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "F16", "BF16", "I8", "F8_E4M3", "BOOL", "X"]),
                "shape": SHAPES | plain,
                "data_offsets": st.lists(SIZES, min_size=2, max_size=2) | plain,
            }
        ),
        min_size=1,
        max_size=2,
    ),
    st.integers(-64, 64),
    st.integers(-64, 64),
)
@example({}, 0, -1)
@example({}, 8, 0)
def test_fuzz_safetensors_header(
    sound: Path, tmp_path: Path, change: dict[str, Any], length: int, cut: int
) -> None:
    """Entries of the header changed, its length off, and bytes missing or added at the end."""
    content = (sound / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]) | change).encode()
    data = content[8 + size :]
    data = data[:cut] if cut < 0 else data + b"\0" * cut
    whole = max(0, len(header) + length).to_bytes(8, "little") + header + data
    answers(sound, tmp_path, "model.safetensors", whole, load_causal_lm)
