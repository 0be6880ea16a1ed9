"""Students: made from scratch, or cut out of a teacher's depth. And two helpers for any model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
from torch import nn
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

from mgsr.errors import UserError, did_you_mean
from mgsr.models.loading import parse_dtype, rebuild

_Module = TypeVar("_Module", bound=nn.Module)


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
        pad_token_id: its embedding row starts at 0 and, as an input, is never trained (llama, opt, qwen2,
            qwen3). An id shared with `eos_token_id` is fine where end-of-text only ends a sequence.

    Raises:
        UserError: an unknown family, or sizes that do not fit together.
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
        eos_token_id=eos_token_id,
        bos_token_id=bos_token_id,
        pad_token_id=pad_token_id,
    )
    _check_sizes(family, sizes)
    options = {"dtype": parse_dtype(dtype), "attn_implementation": attn_implementation}
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
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
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        token_id = getattr(sizes, name)
        if token_id is not None and not 0 <= token_id < sizes.vocab_size:
            raise UserError(f"{family}: {name} {token_id} is outside the vocabulary of {sizes.vocab_size} ids")


def prune_depth(model: PreTrainedModel, keep: Sequence[int]) -> PreTrainedModel:
    """A new model that has only the listed decoder layers of `model`, in their order.

    Its weights are copies; embeddings, final norm and head are kept. Layers are numbered anew, so that each
    finds its own slot of the KV cache, and the config agrees: the result saves, loads and generates like any
    other model. All its parameters require gradients; it is in `model`'s mode (train or eval).

    Args:
        keep: layer numbers from 0, ascending, at least one.

    Raises:
        UserError: `keep` is empty, not ascending, or names a layer that is not there; or the model keeps its
            layers in no list as long as `config.num_hidden_layers`.
    """
    config = copy.deepcopy(model.config)
    depth = config.num_hidden_layers
    kept = [int(layer) for layer in keep]
    outside = [layer for layer in kept if not 0 <= layer < depth]
    if outside:
        raise UserError(f"layer {outside[0]} cannot be kept: the model has layers 0 to {depth - 1}")
    if not kept or any(later <= earlier for earlier, later in pairwise(kept)):
        raise UserError(f"the layers to keep must be ascending and at least one, not {kept}")

    for name, value in config.to_dict().items():
        # `layer_types` and its kin: one entry per layer
        if "layer" in name and isinstance(value, list | tuple) and len(value) == depth:
            setattr(config, name, [value[layer] for layer in kept])
    config.num_hidden_layers = len(kept)

    prefix = _layer_list(model) + "."
    renumbered = {str(old): str(new) for new, old in enumerate(kept)}
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(prefix):
            layer, _, rest = name.removeprefix(prefix).partition(".")
            if layer not in renumbered:
                continue
            name = f"{prefix}{renumbered[layer]}.{rest}"
        state[name] = tensor.detach().clone()
    pruned = rebuild(model, config, state)
    pruned.generation_config = copy.deepcopy(model.generation_config)
    return pruned.train(model.training)


def _layer_list(model: PreTrainedModel) -> str:
    """The name of the list of decoder layers: the outermost one that is as long as the config says."""
    depth = model.config.num_hidden_layers
    lists = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if not lists:
        raise UserError(f"{type(model).__name__} has no list of {depth} layers, so its depth cannot be pruned")
    return min(lists, key=lambda name: name.count("."))


class ParameterCounts(NamedTuple):
    """Parameters of a model, tied ones counted once."""

    total: int
    trainable: int
    embedding: int


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Count parameters; `embedding` is the part in `nn.Embedding` modules.

    >>> count_parameters(nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 3).requires_grad_(False)))
    ParameterCounts(total=19, trainable=10, embedding=10)
    """
    parameters = list(model.parameters())
    embeddings = {
        id(module.weight): module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding)
    }
    return ParameterCounts(
        total=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        embedding=sum(embeddings.values()),
    )


def freeze(model: _Module) -> _Module:
    """Put `model` in eval mode and stop its gradients, in place."""
    return model.eval().requires_grad_(False)
