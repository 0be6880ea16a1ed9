"""What models and training take, from their configurations alone: no weight is loaded, nothing is allocated.

Models are built and run on fake tensors (shapes without content), so what autograd keeps for backward is counted
as it happens, for whatever architecture transformers knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from mgsr import models
from mgsr.config.schema import ExperimentConfig, ModelConfig
from mgsr.losses.fused.inputs import rows_per_part, rows_per_tile
from mgsr.models.clip_network import ClipNetwork
from mgsr.models.from_config import build_initial, with_adapters
from mgsr.models.output_layer import causal_lm, last_hidden, output_head
from mgsr.training.export import TRUE_TYPES
from mgsr.training.objective import build_clip

# AdamW: two moments of a parameter's type, and a float32 step count per parameter tensor
MOMENTS, STEP_BYTES = 2, 4
# buffers of a tile and of a part that the objective works in (mgsr/losses)
TILE_BUFFERS, PART_BUFFERS = 2, 6


@dataclass(frozen=True)
class ModelSize:
    """Bytes of a model; `layers`, `width` and `kv_per_token` (bytes of its KV cache) for what depends on text."""

    parameters: int
    weights: int
    trained: int
    optimiser: int
    layers: int
    width: int
    classes: int
    kv_per_token: int
    largest: int


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps for backward: `per_sequence` of every sequence, `fixed` whatever their number."""

    per_sequence: int
    fixed: int

    def of(self, sequences: int) -> int:
        return self.fixed + sequences * self.per_sequence


def read_shape(model: ModelConfig) -> PretrainedConfig:
    """The configuration of a model that comes from elsewhere.

    Raises:
        UserError: it cannot be had.
    """
    found = models.resolve_source(model.source, gguf_file=model.gguf_file or None, revision=model.revision or None)
    options: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    if found.gguf_file:
        options["gguf_file"] = found.gguf_file
    if model.revision:
        options["revision"] = model.revision
    with models.one_line_errors(model.source):
        return AutoConfig.from_pretrained(found.location, **options)


def fake_models(
    config: ExperimentConfig, vocab_size: int, *, shape_of: Callable[[ModelConfig], PretrainedConfig] = read_shape
) -> tuple[FakeTensorMode, Any, Any]:
    """Teacher (or None) and student of a configuration, as they are trained, without content.

    Args:
        shape_of: finds the configuration of a model that comes from elsewhere.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        teacher = _fake(config, config.teacher, vocab_size, shape_of) if config.teacher.source else None
        if config.student.source == "teacher":
            assert teacher is not None
            layers = config.student.keep_layers or range(teacher.config.num_hidden_layers)
            shape = models.pruned_config(teacher.config, list(layers))
            student: Any = AutoModelForCausalLM.from_config(shape, dtype=_weights_dtype(config, config.teacher))
        else:
            student = _fake(config, config.student, vocab_size, shape_of, trained=True)
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
    shape_of: Callable[[ModelConfig], PretrainedConfig],
    *,
    trained: bool = False,
) -> Any:
    dtype = _weights_dtype(config, model) if trained else models.parse_dtype(model.dtype)
    if model.source == "init":
        typed = replace(model, dtype=str(dtype).removeprefix("torch."))
        return build_initial(config, typed, vocab_size=vocab_size, eos_token_id=0, pad_token_id=0, seed=0)
    shape = shape_of(model)
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


def clip_bytes(config: ExperimentConfig, vocab_size: int) -> int:
    """Weights, gradients and moments of the clip network."""
    clip = build_clip(config, vocab_size, (0.0, 1.0))
    if not isinstance(clip, ClipNetwork):
        return 0
    trained = list(clip.parameters())
    return _bytes(clip.buffers()) + (2 + MOMENTS) * _bytes(trained) + STEP_BYTES * len(trained)


def activations(
    mode: FakeTensorMode, student: Any, length: int, *, checkpointing: bool, mixed: torch.dtype | None
) -> Activations:
    """What a forward over sequences of `length` tokens keeps for backward.

    Args:
        checkpointing: only the layers' inputs are kept, and one layer's inside while it is gone through again.
        mixed: the type of autocast, where there is one.
    """
    one, three = (_kept(mode, student, count, length, mixed) for count in (1, 3))
    per_sequence = (three - one) // 2
    fixed = max(0, one - per_sequence)
    plain = Activations(per_sequence, fixed)
    return checkpointed(plain, student, length) if checkpointing else plain


def checkpointed(plain: Activations, student: Any, length: int) -> Activations:
    """What is kept of `plain` where layers are gone through again: their inputs, and one layer's inside."""
    size = model_size(student)
    element = next(iter(student.parameters())).element_size()
    inputs = size.layers * length * size.width * element
    return Activations(inputs + plain.per_sequence // size.layers, plain.fixed)


def _kept(mode: FakeTensorMode, model: Any, count: int, length: int, mixed: torch.dtype | None) -> int:
    own = {_storage(t) for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[int, Any]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if _storage(tensor) not in own:
            # the storage is held, so that its address is not given out twice
            kept[_storage(tensor)] = (storage.nbytes(), storage)
        return tensor

    cast = torch.autocast("cpu", dtype=mixed or torch.bfloat16, enabled=mixed is not None)
    with mode, cast, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ids = torch.zeros(count, length, dtype=torch.long)
        last_hidden(model, ids, torch.ones_like(ids))
    return sum(number for number, _ in kept.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def workspace(rows: int, classes: int, tile_size: int, device_type: str) -> int:
    """Bytes of the tiles that the objective works in, in float32."""
    tile = rows_per_tile(tile_size or None, rows, classes, device_type)
    part = rows_per_part(tile_size or None, tile, classes, device_type)
    return 4 * classes * (TILE_BUFFERS * tile + PART_BUFFERS * part)


def _bytes(tensors: Iterable[Tensor | nn.Parameter]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
