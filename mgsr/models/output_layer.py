"""A causal language model in two halves: the trunk, and the output embedding that makes logits of it.

Logits of a whole batch are by far the largest tensor of distillation. Kept apart, the two halves let everyone
make logits for a tile of tokens at a time.

Shapes: B sequences, T tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from mgsr.losses import OutputLayer
from mgsr.runtime.errors import UserError


def causal_lm(model: Any) -> Any:
    """The transformers model itself, without the adapter wrapper (whose layers live inside it anyway)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def trunk(model: Any) -> Any:
    """The module that maps token ids to last hidden states, e.g. `LlamaModel` of a `LlamaForCausalLM`."""
    inner = causal_lm(model)
    body = inner.base_model
    if body is inner:
        raise UserError(
            f"{type(inner).__name__} has no language-modelling head: load it as a causal language model"
        )
    return body


def position_limit(model: Any) -> int | None:
    """Tokens of the longest text that `model` has positions for; None where its config names no limit."""
    return getattr(causal_lm(model).config.get_text_config(decoder=True), "max_position_embeddings", None)


def last_hidden(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> Tensor:
    """Last hidden states, after the final norm, without a cache and without logits.

    Args:
        model: a causal language model of transformers.
        input_ids: `[B, T]`.
        attention_mask: `[B, T]`, 1 on real tokens; None where padding is on the right and its states are
            unused.
        position_ids: `[B, T]`; needed with padding on the left.

    Returns:
        `[B, T, H]` in the model's type.
    """
    body, more = trunk(model), {}
    if attention_mask is None and body.config.model_type in PASSING and not torch.compiler.is_compiling():
        more[cache_argument(body)] = Cache(layer_class_to_replicate=_PassingLayer)
    output = body(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False, **more
    )
    return output.last_hidden_state


PASSING = frozenset({"gpt2", "llama", "mistral", "opt", "qwen2", "qwen3"})
"""Model types that are tested to read texts by way of `_PassingLayer`."""


class _PassingLayer(DynamicLayer):
    """Keeps nothing. Where there is no cache at all, transformers looks whether texts are packed into rows: a GPU
    would be waited for at the beginning of every forward."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states


def cache_argument(body: Any) -> str:
    """What a model calls its KV cache: transformers 5.24 has begun to rename it."""
    return "cache" if "cache" in inspect.signature(body.forward).parameters else "past_key_values"


def output_head(model: Any) -> OutputLayer:
    """The output embedding of a causal language model, with the scale and soft cap its config asks for.

    Raises:
        UserError: the output embedding is no plain linear layer (an adapter sits on it, or it is quantised).
    """
    inner = causal_lm(model)
    layer = inner.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        raise UserError(
            f"the output embedding of {type(inner).__name__} is a {type(layer).__name__}, not a plain"
            " linear layer: keep adapters and quantisation off it"
        )
    config = inner.config.get_text_config(decoder=True)
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return OutputLayer(layer.weight, layer.bias, scale, None if softcap is None else float(softcap))


@torch.no_grad()
def check_output_head(model: Any) -> None:
    """Compare the two halves with the model's own logits on a few tokens, once after loading.

    Raises:
        UserError: they differ, because the model does something to its logits that `output_head` does not
            know.
    """
    inner = causal_lm(model)
    head = output_head(model)
    ids = torch.arange(1, 5, device=head.weight.device)[None] % head.weight.shape[0]
    was_training = inner.training
    inner.eval()
    try:
        own = inner(input_ids=ids, use_cache=False).logits
        ours = head.project(last_hidden(inner, ids))
    finally:
        inner.train(was_training)
    if not torch.allclose(own.to(ours.dtype), ours, rtol=0.02, atol=0.02 * float(ours.abs().max()) + 1e-6):
        raise UserError(
            f"{type(inner).__name__} changes its logits in a way that is not supported: choose another model"
        )
