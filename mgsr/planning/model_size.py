"""What a model takes, from its configuration alone: no weight is loaded, nothing is allocated.

Models are built on fake tensors (shapes without content), so that whatever architecture transformers knows is
counted as it is. `ModelSize` is the whole of a model, `Parts` the same in the pieces that FSDP2 shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig

from mgsr import models
from mgsr.config.schema import ExperimentConfig, ModelConfig
from mgsr.models.clip_network import ClipNetwork
from mgsr.models.from_config import build_initial, with_adapters
from mgsr.models.output_layer import causal_lm, output_head
from mgsr.models.pruning import decoder_layers
from mgsr.planning.shapes import read_shape
from mgsr.training.build import build_clip
from mgsr.training.export import TRUE_TYPES

# AdamW: two moments of a parameter's type, and a float32 step count per parameter tensor
MOMENTS, STEP_BYTES = 2, 4


@dataclass(frozen=True)
class ModelSize:
    """Bytes of a model, and its shape for what depends on text.

    Attributes:
        parameters: their number, tied ones counted once.
        weights, trained: bytes of all weights (with buffers), and of those with a gradient.
        optimiser: bytes of AdamW's state.
        layers, width, classes: numbers.
        kv_per_token: bytes of the KV cache; largest: of the largest trained tensor.
    """

    parameters: int
    weights: int
    trained: int
    optimiser: int
    layers: int
    width: int
    classes: int
    kv_per_token: int
    largest: int

    @property
    def bytes_per_weight(self) -> int:
        """Bytes of one weight."""
        return self.weights // self.parameters

    def in_type(self, dtype: torch.dtype | None) -> ModelSize:
        """With weights and KV cache in another type, gradients and moments as they are; None: the same."""
        return self if dtype is None else in_type(self, dtype, self.bytes_per_weight, "weights", "kv_per_token")

    @property
    def head_bytes(self) -> int:
        """Bytes of the output layer."""
        return self.classes * self.width * self.bytes_per_weight


@dataclass(frozen=True)
class Parts:
    """Bytes of a model's weights, as FSDP2 shards them: layer by layer, and everything outside the layers.

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


def in_type(sizes: Any, dtype: torch.dtype, bytes_per_weight: int, *names: str) -> Any:
    """A record of bytes with the named ones as they are in another type."""
    return replace(sizes, **{name: getattr(sizes, name) * dtype.itemsize // bytes_per_weight for name in names})


def fake_models(
    config: ExperimentConfig,
    vocab_size: int,
    *,
    find_shape: Callable[[ModelConfig], PretrainedConfig] = read_shape,
) -> tuple[FakeTensorMode, Any, Any]:
    """Teacher (or None) and student of a configuration, as they are trained, without content.

    Args:
        vocab_size: ids of the tokenizer, for models that are built from the configuration.
        find_shape: gives the transformers configuration of a model that comes from elsewhere.

    Returns:
        The mode of their tensors, the teacher and the student, both in train mode.

    Raises:
        UserError: a transformers configuration cannot be had.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        teacher = _fake(config, config.teacher, vocab_size, find_shape) if config.teacher.source else None
        if config.student.source == "teacher":
            assert teacher is not None
            layers = config.student.keep_layers or range(teacher.config.num_hidden_layers)
            shape = models.pruned_config(teacher.config, list(layers))
            student: Any = AutoModelForCausalLM.from_config(shape, dtype=_weights_dtype(config, config.teacher))
        else:
            student = _fake(config, config.student, vocab_size, find_shape, trained=True)
            if config.student.keep_layers:
                shape = models.pruned_config(student.config, config.student.keep_layers)
                student = AutoModelForCausalLM.from_config(shape, dtype=student.dtype)
    # peft moves what it makes, which parameters without content do not allow
    student = with_adapters(student, config)
    for module in student.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not isinstance(parameter, FakeTensor):
                fake = nn.Parameter(mode.from_tensor(parameter.detach()), parameter.requires_grad)
                setattr(module, name, fake)
    return mode, None if teacher is None else teacher.train(), student.train()


def _fake(
    config: ExperimentConfig,
    model: ModelConfig,
    vocab_size: int,
    find_shape: Callable[[ModelConfig], PretrainedConfig],
    *,
    trained: bool = False,
) -> Any:
    dtype = _weights_dtype(config, model) if trained else models.parse_dtype(model.dtype)
    if model.source == "init":
        typed = replace(model, dtype=str(dtype).removeprefix("torch."))
        return build_initial(config, typed, vocab_size=vocab_size, eos_token_id=0, pad_token_id=0, seed=0)
    shape = find_shape(model)
    with models.one_line_errors(model.source, done="made"):
        return AutoModelForCausalLM.from_config(shape, dtype=dtype, trust_remote_code=model.trust_remote_code)


def _weights_dtype(config: ExperimentConfig, model: ModelConfig) -> torch.dtype:
    """What Lightning's precision makes of the student's weights."""
    return TRUE_TYPES.get(config.trainer.precision, models.parse_dtype(model.dtype))


def model_size(model: Any) -> ModelSize:
    """Sizes of a model, each tied tensor counted once."""
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    text: Any = causal_lm(model).config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    width = text.hidden_size
    head = getattr(text, "head_dim", None) or width // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    element = parameters[0].element_size()
    return ModelSize(
        parameters=sum(p.numel() for p in parameters),
        weights=_bytes(parameters) + _bytes(model.buffers()),
        trained=_bytes(trained),
        optimiser=MOMENTS * _bytes(trained) + STEP_BYTES * len(trained),
        layers=text.num_hidden_layers,
        width=width,
        classes=output_head(model).weight.shape[0],
        kv_per_token=2 * text.num_hidden_layers * kv_heads * head * element,
        largest=max((_bytes([p]) for p in trained), default=0),
    )


def parts_of(model: Any, size: ModelSize) -> Parts:
    """The parts of a transformers model; `size` is its own."""
    layers = decoder_layers(causal_lm(model))
    each = [_bytes((*layer.parameters(), *layer.buffers())) for layer in layers]
    trained = [_bytes(p for p in layer.parameters() if p.requires_grad) for layer in layers]
    return Parts(
        weights=size.weights,
        trained=size.trained,
        layers=sum(each),
        layer=max(each),
        layer_trained=max(trained),
        root=size.weights - sum(each),
        root_trained=size.trained - sum(trained),
    )


def clip_parts(config: ExperimentConfig, vocab_size: int) -> dict[str, int]:
    """Bytes of the clip network's `weights`, `gradients` and `moments`."""
    clip = build_clip(config, vocab_size, (0.0, 1.0))
    if not isinstance(clip, ClipNetwork):
        return dict.fromkeys(("weights", "gradients", "moments"), 0)
    trained = list(clip.parameters())
    gradients = _bytes(trained)
    moments = MOMENTS * gradients + STEP_BYTES * len(trained)
    return {"weights": _bytes(clip.state_dict().values()), "gradients": gradients, "moments": moments}


def _bytes(tensors: Iterable[Tensor | nn.Parameter]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
