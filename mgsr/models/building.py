"""Causal language models made from scratch, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from mgsr.models.hub import one_line_errors
from mgsr.models.loading import parse_dtype
from mgsr.runtime.errors import UserError, did_you_mean
from mgsr.runtime.wording import plural


class _Sizes(NamedTuple):
    """What every family is told, in its own words."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    dropout: float
    initializer_range: float
    eos_token_id: int
    bos_token_id: int | None
    pad_token_id: int | None


def _rotary_config(config_class: Callable[..., PretrainedConfig]) -> Callable[[_Sizes], PretrainedConfig]:
    def build(sizes: _Sizes) -> PretrainedConfig:
        return config_class(
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.hidden_size,
            intermediate_size=sizes.intermediate_size,
            num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads,
            num_key_value_heads=sizes.num_kv_heads,
            head_dim=sizes.hidden_size // sizes.num_heads,
            max_position_embeddings=sizes.max_position_embeddings,
            tie_word_embeddings=sizes.tie_word_embeddings,
            attention_dropout=sizes.dropout,
            initializer_range=sizes.initializer_range,
            eos_token_id=sizes.eos_token_id,
            bos_token_id=sizes.bos_token_id,
            pad_token_id=sizes.pad_token_id,
        )

    return build


def _gpt2_config(sizes: _Sizes) -> PretrainedConfig:
    return GPT2Config(
        vocab_size=sizes.vocab_size,
        n_embd=sizes.hidden_size,
        n_layer=sizes.num_layers,
        n_head=sizes.num_heads,
        n_inner=sizes.intermediate_size,
        n_positions=sizes.max_position_embeddings,
        tie_word_embeddings=sizes.tie_word_embeddings,
        resid_pdrop=sizes.dropout,
        embd_pdrop=sizes.dropout,
        attn_pdrop=sizes.dropout,
        initializer_range=sizes.initializer_range,
        eos_token_id=sizes.eos_token_id,
        bos_token_id=sizes.bos_token_id,
        pad_token_id=sizes.pad_token_id,
    )


def _opt_config(sizes: _Sizes) -> PretrainedConfig:
    return OPTConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        word_embed_proj_dim=sizes.hidden_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        ffn_dim=sizes.intermediate_size,
        max_position_embeddings=sizes.max_position_embeddings,
        tie_word_embeddings=sizes.tie_word_embeddings,
        dropout=sizes.dropout,
        attention_dropout=sizes.dropout,
        init_std=sizes.initializer_range,
        eos_token_id=sizes.eos_token_id,
        bos_token_id=sizes.bos_token_id,
        pad_token_id=sizes.pad_token_id,
    )


_CONFIGS: dict[str, Callable[[_Sizes], PretrainedConfig]] = {
    "llama": _rotary_config(LlamaConfig),
    "qwen2": _rotary_config(Qwen2Config),
    "qwen3": _rotary_config(Qwen3Config),
    "gpt2": _gpt2_config,
    "opt": _opt_config,
}
FAMILIES = tuple(_CONFIGS)
_ROTARY = frozenset({"llama", "qwen2", "qwen3"})


def build_causal_lm(
    family: str,
    *,
    vocab_size: int,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    max_position_embeddings: int,
    eos_token_id: int,
    seed: int,
    bos_token_id: int | None = None,
    pad_token_id: int | None = None,
    num_kv_heads: int | None = None,
    intermediate_size: int | None = None,
    tie_word_embeddings: bool = True,
    dropout: float = 0.0,
    initializer_range: float = 0.02,
    dtype: str | torch.dtype = "float32",
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """Make a causal language model with random weights, in train mode, on the CPU.

    The weights follow the family's own initialisation and depend on `seed`, the sizes and `dtype` alone;
    the global random state is left as it was.

    Args:
        family: llama, gpt2, opt, qwen2 or qwen3.
        num_kv_heads: key and value heads (grouped-query attention), default `num_heads`; not for gpt2, opt.
        intermediate_size: width of the feed-forward layers. Default: 4 hidden_size for gpt2 and opt;
            8/3 hidden_size, rounded up to a multiple of 32, for the gated layers of the others.
        dropout: all dropouts of gpt2 and opt; the others have one in the attention weights only.
        initializer_range: standard deviation of the random weight matrices. 0.02 suits widths near 1000; about
            hidden_size ** -0.5 lets a narrow model learn faster.
        pad_token_id: its embedding row starts at 0 and, as an input, is never trained (llama, opt, qwen2,
            qwen3). An id shared with `eos_token_id` is fine where end-of-text only ends a sequence.

    Raises:
        UserError: an unknown family, sizes that do not fit together or not into memory, no such attention.
    """
    if family not in _CONFIGS:
        raise UserError(
            f"model family `{family}` is not one of {', '.join(FAMILIES)}{did_you_mean(family, FAMILIES)}"
        )
    if intermediate_size is None:
        gated = family in _ROTARY
        intermediate_size = -(-8 * hidden_size // 96) * 32 if gated else 4 * hidden_size
    sizes = _Sizes(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads if num_kv_heads is None else num_kv_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=tie_word_embeddings,
        dropout=dropout,
        initializer_range=initializer_range,
        eos_token_id=eos_token_id,
        bos_token_id=bos_token_id,
        pad_token_id=pad_token_id,
    )
    _check_sizes(family, sizes)
    options = {"dtype": parse_dtype(dtype), "attn_implementation": attn_implementation}
    what = f"{family} of hidden_size {hidden_size} and {plural(num_layers, 'layer')}"
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), one_line_errors(what, done="made"):
        # not torch.manual_seed: that would seed the accelerators too, which fork_rng leaves alone here
        torch.default_generator.manual_seed(seed)
        return AutoModelForCausalLM.from_config(_CONFIGS[family](sizes), **options).train()


def _check_sizes(family: str, sizes: _Sizes) -> None:
    for name in _Sizes._fields[:7]:
        if getattr(sizes, name) < 1:
            raise UserError(f"{family}: {name} must be 1 or more, not {getattr(sizes, name)}")
    if sizes.hidden_size % sizes.num_heads:
        raise UserError(
            f"{family}: hidden_size {sizes.hidden_size} is not a multiple of num_heads {sizes.num_heads}"
        )
    if family in _ROTARY and sizes.hidden_size // sizes.num_heads % 2:
        raise UserError(
            f"{family}: hidden_size {sizes.hidden_size} / num_heads {sizes.num_heads} must be even (rotary)"
        )
    if family not in _ROTARY and sizes.num_kv_heads != sizes.num_heads:
        raise UserError(f"{family} has no grouped-query attention: leave num_kv_heads out")
    if sizes.num_heads % sizes.num_kv_heads:
        raise UserError(
            f"{family}: num_heads {sizes.num_heads} is not a multiple of num_kv_heads {sizes.num_kv_heads}"
        )
    if not 0.0 <= sizes.dropout < 1.0:
        raise UserError(f"{family}: dropout must be in [0, 1), not {sizes.dropout}")
    if not sizes.initializer_range > 0:
        raise UserError(f"{family}: initializer_range must be above 0, not {sizes.initializer_range}")
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        token_id = getattr(sizes, name)
        if token_id is not None and not 0 <= token_id < sizes.vocab_size:
            raise UserError(f"{family}: {name} {token_id} is outside the vocabulary of {sizes.vocab_size} ids")
