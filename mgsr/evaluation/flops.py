"""Floating-point operations of a decoder-only transformer of any family.

Only products of matrices are counted, 2 operations (multiply, add) for every weight and token, as in Kaplan et al.
2020 (arXiv 2001.08361, section 2.1) and Narayanan et al. 2021 (arXiv 2104.04473, appendix). Norms, softmaxes and
activations are left out: below one percent at these widths. All figures are FLOPs.

Symbols: L layers, W weights of one that a token is multiplied with, H width, n heads of d, V classes, T tokens.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mgsr.runtime.errors import UserError
from mgsr.runtime.meter import Work

_SHORT = 16  # below every window of attention


@dataclass(frozen=True)
class Shape:
    """What the arithmetic needs of a model.

    Attributes:
        layer_weights: W, the mean over the layers; with experts, of those that a token is given to.
        compared: `n d`: width of what two positions are compared by.
        last_product: weights of a layer's last matrix.
        head_weights: H V, padding of the vocabulary included.
        adapters: weights of all low-rank adapters; 0 where all weights are trained.
    """

    layers: int
    layer_weights: float
    compared: float
    last_product: int
    head_weights: int
    adapters: int = 0


@dataclass(frozen=True)
class Flops:
    """FLOPs of the layers and of the output layer apart: they may compute in different types."""

    trunk: float = 0.0
    head: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.trunk + other.trunk, self.head + other.head)

    @property
    def total(self) -> float:
        """Both together."""
        return self.trunk + self.head


def shape_of(model: Any, *, adapters: int = 0) -> Shape:
    """The shape of a model of transformers, or of one with adapters, by what torch counts in two short forwards.

    They are of an empty copy: no memory is taken, and nothing is computed.

    Raises:
        UserError: a model that cannot be counted so.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    family: Any = type(base)
    found = _counted(family, json.dumps(base.config.to_dict(), sort_keys=True, default=str))
    if found is None:
        raise UserError(
            f"the products of model family `{base.config.model_type}` cannot be counted: its FLOPs are not known; "
            "`mgsr doctor` accounts for memory of any family"
        )
    return replace(found, adapters=adapters)


@functools.lru_cache(maxsize=16)
def _counted(family: Any, config: str) -> Shape | None:
    shape = family.config_class.from_dict(json.loads(config))
    text = shape.get_text_config(decoder=True)
    try:
        with torch.device("meta"), torch.no_grad():
            # eager attention: what is fused is not counted on a CPU; and some experts have kernels for bf16 alone
            copy = family._from_config(shape, attn_implementation="eager", dtype=torch.bfloat16).eval()
            head = copy.get_output_embeddings().weight.numel()
            once, twice = (_products(copy, length) for length in (_SHORT, 2 * _SHORT))
    except Exception:  # whatever a model's own code raises on tensors that hold nothing
        return None
    # a T + b T^2 at T = 16 and 32
    square = (twice - 2 * once) / (2 * _SHORT**2)
    linear = once / _SHORT - square * _SHORT - 2 * head
    layers, width = text.num_hidden_layers, text.hidden_size
    inner = [
        getattr(text, name, None) for name in ("moe_intermediate_size", "n_inner", "ffn_dim", "intermediate_size")
    ]
    return Shape(
        layers, linear / 2 / layers, square / 4 / layers, width * next(filter(None, inner), 4 * width), head
    )


def _products(model: Any, length: int) -> int:
    ids = torch.zeros(1, length, dtype=torch.long)
    with FlopCounterMode(display=False, custom_mapping=_EXPERTS) as counter:
        # without a mask transformers reads positions, which hold nothing here, to see whether texts are packed
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return counter.get_total_flops()


def _grouped(tokens: Any, weights: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Tokens `[T, H]`, each times one of the matrices `[E, H, I]`."""
    return 2 * tokens[0] * tokens[1] * weights[-1]


# torch's counter does not know this product
_EXPERTS = {torch.ops.aten._grouped_mm: _grouped}


def trunk_forward(shape: Shape, tokens: float, attended: float) -> float:
    """All layers, forward: `2 tokens (L W + A) + 4 L n d attended`, A = adapters.

    Args:
        tokens: that go through the layers.
        attended: summed over the tokens, the positions each is compared with: T^2 of a sequence that is read whole
            (the masked half is counted, as eager attention computes it; flash kernels skip it), and the
            positions in the cache, its own included, of a token that is written.
    """
    products = 2 * tokens * (shape.layers * shape.layer_weights + shape.adapters)
    return products + 4 * shape.layers * shape.compared * attended


def spent(costs: Mapping[str, float], student: Shape, teacher: Shape | None) -> float:
    """FLOPs of a main job: what the student was trained on, and what both models read and wrote besides.

    What a setting that saves memory computes twice counts once, and the dev set does not count.

    Args:
        costs: with the work of both models, see `mgsr.runtime.meter`.
    """
    found = _training(student, Work.of(costs, "trained_student")) + _forward(
        student, Work.of(costs, "read_student")
    )
    if teacher is not None:
        found += _forward(teacher, Work.of(costs, "read_teacher"))
    return found.total


def flops_of(costs: Mapping[str, float], student: Any, teacher: Any | None) -> float | None:
    """`spent` by two models of transformers; None where one cannot be counted.

    Args:
        student: with adapters, those alone are trained.
        teacher: None where a run has none.
    """
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    adapters = trained if hasattr(student, "get_base_model") else 0
    try:
        shape = shape_of(student, adapters=adapters)
        return spent(costs, shape, None if teacher is None else shape_of(teacher))
    except UserError:
        return None


def _forward(shape: Shape, work: Work) -> Flops:
    return Flops(trunk_forward(shape, work.tokens, work.attended), 2 * work.rows * shape.head_weights)


def _training(shape: Shape, work: Work) -> Flops:
    once = _forward(shape, work)
    return once + _backward(shape, once, work.tokens)


def _backward(shape: Shape, once: Flops, tokens: float) -> Flops:
    """See `backward`; once: the forward."""
    if not shape.adapters:
        return Flops(2 * once.trunk, 2 * once.head)
    frozen = 2 * tokens * shape.layers * shape.layer_weights
    return Flops(2 * once.trunk - frozen, once.head)


def forward(shape: Shape, sequences: float, length: float, rows: float) -> Flops:
    """A forward over whole sequences.

    Args:
        sequences: how many; length: tokens of each, the mean where they differ (attention is then a little low).
        rows: positions whose logits are made.
    """
    trunk = trunk_forward(shape, sequences * length, sequences * length**2)
    return Flops(trunk, 2 * rows * shape.head_weights)


def backward(shape: Shape, sequences: float, length: float, rows: float) -> Flops:
    """The backward of `forward`: twice as much, once for the inputs' gradients and once for the weights'.

    With adapters the frozen weights have no gradient, and their half is left out, also in the output layer. (The
    first layer needs no gradient of its inputs then; it is counted, at most 1 / L too much.)
    """
    return _backward(shape, forward(shape, sequences, length, rows), sequences * length)


def training(shape: Shape, sequences: float, length: float, rows: float, *, checkpointing: bool = False) -> Flops:
    """Forward and backward.

    `checkpointing` goes through every layer forward once more, but for its last product: torch
    stops there, because nothing of what comes out is needed.
    """
    once = forward(shape, sequences, length, rows)
    last = 2 * sequences * length * shape.layers * shape.last_product
    again = Flops(once.trunk - last) if checkpointing else Flops()
    return once + again + backward(shape, sequences, length, rows)


def prefill(shape: Shape, sequences: float, prompt: float) -> Flops:
    """Prompts read into the cache, with the logits of their last position."""
    return forward(shape, sequences, prompt, sequences)


def decoding(shape: Shape, sequences: float, context: float, new: float) -> Flops:
    """`new` tokens written one by one behind `context` tokens that are in the cache already.

    The first comes from logits that exist, so `new - 1` tokens are read. The i-th is compared with context + i
    positions: attended = (new - 1) context + new (new - 1) / 2.
    """
    steps = max(0.0, new - 1)
    attended = steps * context + new * steps / 2
    return Flops(
        trunk_forward(shape, sequences * steps, sequences * attended), 2 * sequences * steps * shape.head_weights
    )
