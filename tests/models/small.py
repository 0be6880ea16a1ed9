"""A small model, its tokenizer, and a GGUF file of both."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mgsr.models import build_causal_lm
from mgsr.runtime.errors import UserError

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("1", "2"), ("a", "b"), ("Ċ", "Ċ")]
WORDS = ["<|end|>", *ALPHABET, *("".join(pair) for pair in MERGES)]
TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def tiny_model(**changes):
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 32}
    options = sizes | {"max_position_embeddings": 16, "vocab_size": len(WORDS), "eos_token_id": 0, "seed": 3}
    return build_causal_lm("llama", **options | changes).eval()


def tiny_tokenizer(**special):
    backend = Tokenizer(models.BPE({word: index for index, word in enumerate(WORDS)}, MERGES))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **({"eos_token": "<|end|>"} | special))


def refuses(words, load, *arguments, **options):
    with pytest.raises(UserError, match=words) as caught:
        load(*arguments, **options)
    assert "\n" not in str(caught.value)


def rotated(weight, heads):
    """llama.cpp stores the two halves of each rotary head interleaved."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def write_gguf(path, model, *, pre="smollm", quantize=False):
    """A llama GGUF file of `model` and the tiny vocabulary. Returns the state dict that a reader must find."""
    config, state = model.config, {k: v.numpy() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(WORDS)
    writer.add_token_types([3] + [1] * (len(WORDS) - 1))
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    found = {}
    for key, weight in state.items():
        name = names.get_name(key.removesuffix(".weight"))
        kind = name.rpartition(".")[2]
        stored = rotated(weight, heads[kind]) if kind in heads else weight
        found[key] = weight
        if quantize and weight.ndim == 2:
            q8 = gguf.GGMLQuantizationType.Q8_0
            found[key] = gguf.dequantize(gguf.quantize(weight, q8), q8)  # row by row: rotation changes nothing
            writer.add_tensor(f"{name}.weight", gguf.quantize(stored, q8), raw_dtype=q8)
        else:
            writer.add_tensor(f"{name}.weight", stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {key: torch.from_numpy(np.array(weight)) for key, weight in found.items()}
