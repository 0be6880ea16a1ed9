"""Floating-point operations of a decoder-only transformer, from its shape alone.

Only products of matrices are counted, 2 operations (multiply, add) for every weight and token, as in Kaplan et al.
2020 (arXiv 2001.08361, section 2.1) and Narayanan et al. 2021 (arXiv 2104.04473, appendix). Norms, softmaxes and
activations are left out: below one percent at these widths. All figures are FLOPs.

Symbols: L layers, H width, n heads of d, k key/value heads, I width of the MLP, V classes, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mgsr.runtime.errors import UserError
from mgsr.runtime.meter import Work

GATED = frozenset({"llama", "mistral", "qwen2", "qwen3"})
PLAIN = frozenset({"gpt2", "opt"})


@dataclass(frozen=True)
class Shape:
    """What the arithmetic needs of a model.

    Attributes:
        gated: the MLP has three matrices (gate, up, down), not two.
        classes: V, padding of the vocabulary included.
        adapters: weights of all low-rank adapters; 0 where all weights are trained.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    gated: bool
    classes: int
    adapters: int = 0

    @property
    def layer_weights(self) -> int:
        """Weights of one layer that a token is multiplied with: `H d (2 n + 2 k) + m H I`, m = 3 gated, 2 not."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return attention + (3 if self.gated else 2) * self.hidden * self.intermediate

    @property
    def head_weights(self) -> int:
        """Weights of the output layer, `H V`, whether or not they are the embedding's."""
        return self.hidden * self.classes


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


def shape_of(config: Any, *, adapters: int = 0) -> Shape:
    """The shape in a transformers configuration.

    Raises:
        UserError: a family whose arithmetic is not known here.
    """
    text = config.get_text_config(decoder=True)
    family = text.model_type
    if family not in GATED | PLAIN:
        known = ", ".join(sorted(GATED | PLAIN))
        raise UserError(
            f"plan: the arithmetic of model family `{family}` is not known; it knows {known}. "
            "`mgsr doctor` accounts for memory of any family"
        )
    heads, hidden = text.num_attention_heads, text.hidden_size
    inner = {"gpt2": getattr(text, "n_inner", None) or 4 * hidden, "opt": getattr(text, "ffn_dim", 0)}
    return Shape(
        layers=text.num_hidden_layers,
        hidden=hidden,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or hidden // heads,
        intermediate=inner.get(family) or text.intermediate_size,
        gated=family in GATED,
        classes=text.vocab_size,
        adapters=adapters,
    )


def trunk_forward(shape: Shape, tokens: float, attended: float) -> float:
    """All layers, forward: `2 tokens (L W + A) + 4 L n d attended`, W = `layer_weights`, A = adapters.

    Args:
        tokens: that go through the layers.
        attended: summed over the tokens, the positions each is compared with: T^2 of a sequence that is read whole
            (the masked half is counted, as eager attention computes it; flash kernels skip it), and the
            positions in the cache, its own included, of a token that is written.
    """
    products = 2 * tokens * (shape.layers * shape.layer_weights + shape.adapters)
    return products + 4 * shape.layers * shape.heads * shape.head_dim * attended


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
    """`spent` by two models of transformers; None where the arithmetic of one is not known.

    Args:
        student: with adapters, those alone are trained.
        teacher: None where a run has none.
    """
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    adapters = trained if hasattr(student, "get_base_model") else 0
    try:
        shape = shape_of(student.config, adapters=adapters)
        return spent(costs, shape, None if teacher is None else shape_of(teacher.config))
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

    `checkpointing` goes through every layer forward once more, but for its last product, `H I` weights: torch
    stops there, because nothing of what comes out is needed.
    """
    once = forward(shape, sequences, length, rows)
    last = 2 * sequences * length * shape.layers * shape.hidden * shape.intermediate
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
