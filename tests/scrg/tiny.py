"""Tiny models of four families, sharp enough to be worth correcting, and their slow next-token functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mgsr.generation import LanguageModel
from mgsr.scrg import revise

EOS = 2
BUDGET = 9
FAMILIES = ("llama", "gpt2", "opt", "qwen2")


def tiny(family: str, seed: int = 0, vocab: int = 11, dtype: torch.dtype = torch.float64, **extra: Any) -> Any:
    """A model of two layers; dropout where the family has it; 40 positions."""
    ids = {"bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": EOS, "vocab_size": vocab}
    llama_like = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 40,
        **ids,
        **extra,
    }
    torch.manual_seed(seed)
    if family == "gpt2":
        dropout = {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}
        model: Any = GPT2LMHeadModel(
            GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=40, **dropout, **ids, **extra)
        )
    elif family == "opt":
        model = OPTForCausalLM(
            OPTConfig(
                hidden_size=16,
                ffn_dim=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=40,
                word_embed_proj_dim=8,
                dropout=0.3,
                **ids,
                **extra,
            )
        )
    else:
        config_class, model_class = {
            "llama": (LlamaConfig, LlamaForCausalLM),
            "qwen2": (Qwen2Config, Qwen2ForCausalLM),
            "qwen3": (Qwen3Config, Qwen3ForCausalLM),
            "mistral": (MistralConfig, MistralForCausalLM),
        }[family]
        if family == "qwen3":
            llama_like["head_dim"] = 8
        model = model_class(config_class(**llama_like))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Untrained models say nearly the same everywhere; larger weights make them differ.
            parameter.copy_(torch.randn_like(parameter) * (0.05 if name.endswith("bias") else 0.5))
    return model.to(dtype).eval()


def next_logits(model: Any):
    """The model's own forward over one unpadded sequence, without a cache."""
    seen: dict[tuple[int, ...], np.ndarray] = {}

    def forward(tokens: list[int]) -> np.ndarray:
        key = tuple(tokens)
        if key not in seen:
            with torch.no_grad():
                seen[key] = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].double().numpy()
        return seen[key]

    return forward


def prompts(count: int, seed: int = 0, vocab: int = 11) -> list[tuple[int, list[int]]]:
    """Ragged prompts, some of which contain and even end with the end-of-sequence id."""
    rng = np.random.default_rng(seed)
    return [(n * 7 + 1, rng.integers(0, vocab, rng.integers(1, 9)).tolist()) for n in range(count)]


def language_model(model, **options) -> LanguageModel:
    options = {"eos_token_id": EOS, "max_new_tokens": BUDGET, "batch_size": 8, **options}
    return LanguageModel(model, **options)


def revised(student, teacher, given_prompts, **options):
    options = {"passes": 3, "max_new_tokens": BUDGET, "eos_token_id": EOS, "seed": 5, **options}
    return revise(student, teacher, given_prompts, **options)
