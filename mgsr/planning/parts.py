"""A model in the parts that FSDP2 shards: its layers one by one, and everything outside them.

All figures are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mgsr.models.output_layer import causal_lm
from mgsr.planning.sizes import Activations, ModelSize, activations, checkpointed


@dataclass(frozen=True)
class Parts:
    """Bytes of a model's weights.

    Attributes:
        weights, trained: all, and those with a gradient.
        layers: all decoder layers; layer, layer_trained: the largest of them.
        root, root_trained: embeddings, last norm and output layer.
    """

    weights: int
    trained: int
    layers: int
    layer: int
    layer_trained: int
    root: int
    root_trained: int


def parts_of(model: Any, size: ModelSize) -> Parts:
    """The parts of a transformers model; `size` is its own."""
    each = [_bytes(layer, False) for layer in _layers(model, size.layers)]
    trained = [_bytes(layer, True) for layer in _layers(model, size.layers)]
    return Parts(
        weights=size.weights,
        trained=size.trained,
        layers=sum(each),
        layer=max(each),
        layer_trained=max(trained),
        root=size.weights - sum(each),
        root_trained=size.trained - sum(trained),
    )


def kept_for_backward(
    mode: FakeTensorMode,
    model: Any,
    size: ModelSize,
    length: int,
    *,
    checkpointing: bool,
    mixed: torch.dtype | None,
) -> Activations:
    """`doctor.sizes.activations` of a deep model, from its first two and its first three layers.

    The layers of one of the known families are alike, so that what they keep is a + b L; running all of them takes
    long even on tensors without content. Two at least: with adapters the first layer keeps less than the others.
    """

    def first(count: int) -> Activations:
        with _cut(_layers(model, size.layers), count):
            return activations(mode, model, length, checkpointing=False, mixed=mixed)

    if size.layers <= 3:
        return activations(mode, model, length, checkpointing=checkpointing, mixed=mixed)
    two, three = first(2), first(3)
    plain = Activations(
        two.per_sequence + (size.layers - 2) * (three.per_sequence - two.per_sequence),
        two.fixed + (size.layers - 2) * (three.fixed - two.fixed),
    )
    return checkpointed(plain, model, length) if checkpointing else plain


@contextmanager
def _cut(layers: nn.ModuleList, count: int) -> Iterator[None]:
    """The list with its first `count` layers alone."""
    whole = layers._modules
    layers._modules = dict(list(whole.items())[:count])
    try:
        yield
    finally:
        layers._modules = whole


def _layers(model: Any, count: int) -> nn.ModuleList:
    """The stack of decoder layers: the list of modules as long as the model is deep."""
    for module in causal_lm(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise AssertionError(f"{type(model).__name__} has no list of {count} layers")


def _bytes(module: nn.Module, only_trained: bool) -> int:
    tensors: list[Tensor] = [p for p in module.parameters() if p.requires_grad or not only_trained]
    if not only_trained:
        tensors += list(module.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
