"""Students cut out of a teacher's depth."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from mgsr.models.loading import rebuild
from mgsr.runtime.errors import UserError


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
    config = pruned_config(model.config, keep)
    kept = [int(layer) for layer in keep]
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


def pruned_config(config: PretrainedConfig, keep: Sequence[int]) -> PretrainedConfig:
    """The configuration of a model that has only the listed decoder layers of one with `config`.

    Raises:
        UserError: `keep` is empty, not ascending, or names a layer that is not there.
    """
    config = copy.deepcopy(config)
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
    return config


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a causal language model, first to last.

    Raises:
        UserError: the model keeps them in no list as long as its config says.
    """
    layers = model.get_submodule(_layer_list(model))
    assert isinstance(layers, nn.ModuleList)
    return layers


def _layer_list(model: PreTrainedModel) -> str:
    """The name of the list of decoder layers: the outermost one that is as long as the config says."""
    depth = model.config.num_hidden_layers
    lists = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if not lists:
        raise UserError(f"{type(model).__name__} has no list of {depth} layers: choose another model")
    return min(lists, key=lambda name: name.count("."))
