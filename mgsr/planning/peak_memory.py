"""Most bytes of a training step and of a written batch, above weights and moments.

    training     gradients met so far + what backward still needs + the objective's tiles + hidden states
    generation   two KV caches (the writer's, and the one kept for corrections) + logits + the hidden states that
                 scoring reads

What autograd keeps is counted as it happens, in a forward on fake tensors. `mgsr doctor` and `mgsr plan` both
account with these figures; what stands on a device all the time is theirs to add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mgsr.config.schema import ExperimentConfig
from mgsr.losses.fused.tile import rows_per_part, rows_per_tile
from mgsr.models.output_layer import causal_lm, last_hidden
from mgsr.models.pruning import decoder_layers
from mgsr.planning.model_size import ModelSize, model_size
from mgsr.training.build import writer_class

FLOAT = 4
MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
MOST = 1 << 16
# buffers of a tile and of a part that the objective works in (mgsr/losses)
TILE_BUFFERS, PART_BUFFERS = 2, 6


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps for backward: `per_sequence` for every sequence, `fixed` whatever their number."""

    per_sequence: int
    fixed: int

    def of(self, sequences: int) -> int:
        """Bytes for a batch of so many sequences."""
        return self.fixed + sequences * self.per_sequence


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


def extrapolated_activations(
    mode: FakeTensorMode,
    model: Any,
    layers: int,
    length: int,
    *,
    checkpointing: bool,
    mixed: torch.dtype | None,
) -> Activations:
    """`activations` of a deep model, from its first two and its first three layers.

    The layers of one of the known families are alike, so that what they keep is a + b L; running all of them takes
    long even on tensors without content. Two at least: with adapters the first layer keeps less than the others.

    Args:
        layers: how many the model has; the others as in `activations`.
    """

    def first(count: int) -> Activations:
        with _cut(decoder_layers(causal_lm(model)), count):
            return activations(mode, model, length, checkpointing=False, mixed=mixed)

    if layers <= 3:
        return activations(mode, model, length, checkpointing=checkpointing, mixed=mixed)
    two, three = first(2), first(3)
    plain = Activations(
        two.per_sequence + (layers - 2) * (three.per_sequence - two.per_sequence),
        two.fixed + (layers - 2) * (three.fixed - two.fixed),
    )
    return checkpointed(plain, model, length) if checkpointing else plain


def checkpointed(plain: Activations, student: Any, length: int) -> Activations:
    """What is kept of `plain` where layers are gone through again: their inputs, and one layer's inside."""
    size = model_size(student)
    inputs = size.layers * length * size.width * next(iter(student.parameters())).element_size()
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


@contextmanager
def _cut(layers: nn.ModuleList, count: int) -> Iterator[None]:
    """The list with its first `count` layers alone."""
    whole = layers._modules
    layers._modules = dict(list(whole.items())[:count])
    try:
        yield
    finally:
        layers._modules = whole


def workspace(rows: int, classes: int, tile_size: int, device_type: str) -> int:
    """Bytes of the tiles that the objective works in, in float32."""
    tile = rows_per_tile(tile_size or None, rows, classes, device_type)
    part = rows_per_part(tile_size or None, tile, classes, device_type)
    return 4 * classes * (TILE_BUFFERS * tile + PART_BUFFERS * part)


def training_added(
    config: ExperimentConfig,
    student: ModelSize,
    teacher: ModelSize | None,
    kept: Activations,
    rows: int,
    length: int,
    device_type: str,
) -> int:
    """Most bytes of a training step above weights and moments.

    Backward begins with everything that autograd kept and the head's gradient, and ends with all gradients and a
    second one of the embedding where that is tied to the head; the higher of the two counts.
    """
    tokens = rows * length
    states = FLOAT * tokens * (2 * student.width + (teacher.width if teacher else 0))
    head = student.largest
    tiles = workspace(tokens, student.classes, config.objective.tile_size, device_type)
    begins = kept.of(rows) + states + tiles + head
    # an embedding that is tied to the head gets a second dense gradient at the very end
    ends = student.trained + head
    return max(begins, ends)


def generation_added(config: ExperimentConfig, student: ModelSize, teacher: ModelSize | None, rows: int) -> int:
    """Most bytes of writing and scoring `rows` sequences at once, above weights and moments."""
    if not config.scrg.enabled:
        return 0
    length = config.data.max_prompt_length + config.scrg.max_new_tokens
    joint = writer_class(config).together
    cache = rows * length * student.kv_per_token
    corrected = cache if config.scrg.text == "student" and config.scrg.passes else 0
    other = rows * length * teacher.kv_per_token if teacher and config.scrg.text != "student" else 0
    logits = FLOAT * rows * student.classes * (4 if joint else 3)
    states = FLOAT * rows * length * (student.width + (teacher.width if teacher else 0))
    return cache + corrected + other + logits + (states if config.scrg.passes else 0)


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number from 0 to `MOST` for which `fits` holds, where it holds up to some number."""
    low, high = 0, MOST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
