"""The plan's account of memory: bytes of one device under every strategy.

The strategies are those of `trainer.strategy` and `teacher.placement`:

    ddp         a whole student, its gradients in buckets that stay, and its moments
    fsdp2       a part of each; a layer is whole while it is used, embeddings and output layer during a step.
                While text is written a whole copy of the student stands beside the parts.
    replicated  a whole teacher
    sharded     a part of the teacher's layers; its embeddings and output layer whole. With fsdp2 alone.
    cpu         the teacher is on the device before an epoch, to read its text, and while text is written; training
                needs its output layer alone
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from operator import itemgetter
from typing import Any

import torch

from mgsr.config.checks import check_together
from mgsr.config.schema import ExperimentConfig
from mgsr.data.splits import answered_data
from mgsr.planning.model_size import ModelSize, Parts, clip_parts, in_type
from mgsr.planning.peak_memory import FLOAT, Activations, generation_added, largest, training_added
from mgsr.runtime.devices import NARROW
from mgsr.runtime.errors import ConfigError
from mgsr.training.build import check_match, writer_class

DEVICE = "cuda"
# what the CUDA context and the allocator's holes may take of a device
RESERVED = 0.1
# float32 tables of logits, `[rows, classes]`, that drawing a token takes
GREEDY, SAMPLED = 1, 3


@dataclass(frozen=True)
class Model:
    """A model with its size and parts; `wide`: its weights are float32 or wider."""

    size: ModelSize
    parts: Parts
    wide: bool

    def in_type(self, dtype: torch.dtype | None) -> Model:
        """With weights and KV cache in another type, gradients and moments as they are; None: the same."""
        if dtype is None:
            return self
        parts = in_type(self.parts, dtype, self.size.bytes_per_weight, "weights", "layers", "layer", "root")
        return Model(self.size.in_type(dtype), parts, wide=dtype.itemsize >= FLOAT)


@dataclass(frozen=True)
class Trained:
    """One stage of training as memory sees it: who, on how many sequences of `length` tokens in one forward."""

    name: str
    model: Model
    kept: Activations
    rows: int
    length: int
    micro_batches: int


@dataclass(frozen=True)
class Account:
    """Bytes of one device under one strategy.

    Attributes:
        gradients: when they are all there. With one micro-batch and without DDP's buckets they come as activations
            go, and the higher point of the two counts.
        gathered: what FSDP2 holds whole for a while; tiles: logits, their gradients and hidden states.
        kv_cache: and logits and states of a round's batch.
        training, generation: highest point of each phase of the main job; without rounds generation is the phase
            in which a teacher from CPU memory reads. sft: of each stage before it. tests: of the test sets.
        largest_micro_batch: the most sequences of one forward that fit.
    """

    strategy: str
    placement: str
    weights: int
    gradients: int
    optimiser: int
    teacher: int
    gathered: int
    activations: int
    tiles: int
    kv_cache: int
    training: int
    generation: int
    tests: int = 0
    sft: dict[str, int] = field(default_factory=dict)
    largest_micro_batch: int = 0
    fits: bool = False

    @property
    def peak(self) -> int:
        """The highest point of all phases."""
        return max(self._phases.values())

    @property
    def phase(self) -> str:
        """Where the peak is."""
        return max(self._phases.items(), key=itemgetter(1))[0]

    @property
    def _phases(self) -> dict[str, int]:
        return {"training": self.training, "generation": self.generation, "tests": self.tests, **self.sft}

    def to_dict(self) -> dict[str, Any]:
        """Machine-readable, in bytes."""
        return asdict(self) | {"peak": self.peak, "peak_in": self.phase}


def combinations(world_size: int, has_teacher: bool) -> Iterator[tuple[str, str]]:
    """Strategies and placements that exist for a number of devices."""
    for strategy in ("ddp", "fsdp2") if world_size > 1 else ("auto",):
        yield strategy, "replicated"
        if has_teacher and strategy == "fsdp2":
            yield strategy, "sharded"
        if has_teacher:
            yield strategy, "cpu"


def possible(config: ExperimentConfig, devices: int, nodes: int, has_teacher: bool) -> list[tuple[str, str]]:
    """Strategies and placements that a run of this configuration would take.

    Raises:
        ConfigError: it takes none on so many devices.
    """
    found, refused = [], []
    for strategy, placement in combinations(devices * nodes, has_teacher):
        trainer = replace(config.trainer, strategy=strategy, devices=devices, num_nodes=nodes)
        own = replace(config, trainer=trainer, teacher=replace(config.teacher, placement=placement))
        try:
            check_together(own)
            check_match(own)
        except ConfigError as error:
            refused.append(error)
        else:
            found.append((strategy, placement))
    if not found:
        raise refused[0]
    return found


def account(
    config: ExperimentConfig,
    main: Trained,
    teacher: Model | None,
    before: list[Trained],
    *,
    world_size: int,
    strategy: str,
    placement: str,
    available: int,
) -> Account:
    """One row of the table.

    Args:
        main: the main job; teacher: as it is frozen; before: the fine-tuning stages.
        available: bytes of one device.
    """
    room = usable(available)
    student, shards = main.model, world_size if strategy == "fsdp2" else 1
    clip = sum(clip_parts(config, student.size.classes).values())
    resident = 0 if teacher is None else _resident(teacher, placement, shards)
    visiting = teacher.parts.weights if teacher is not None and placement == "cpu" else 0

    # what writes: the student, or where its weights are wider than what it computes in a copy of it
    acting = student.in_type(NARROW.get(config.trainer.precision))
    copied = strategy == "fsdp2" or acting.parts.weights < student.parts.weights

    def training(rows: int) -> int:
        static = _static(config, student, shards) + clip + resident
        return static + _added(config, replace(main, rows=rows), teacher, strategy, world_size)

    cache = generation_added(config, acting.size, _size(teacher), config.scrg.batch_size)
    buckets = _held(main, strategy, world_size)
    generation = student.size.optimiser // shards + clip + buckets + resident
    # a whole student makes room for its copy where it does for the teacher
    stays = copied and (strategy == "fsdp2" or placement != "cpu")
    generation += student.parts.weights // shards if stays else 0
    # the student in one piece; a teacher from CPU memory takes turns with it, unless every token needs both
    piece = acting.parts.weights if config.scrg.enabled else 0
    joint = config.scrg.enabled and writer_class(config).together
    generation += piece + visiting if joint else max(piece, visiting)
    generation += cache if config.scrg.enabled else 0
    found = Account(
        strategy=strategy,
        placement=placement,
        weights=student.parts.weights // shards,
        gradients=student.parts.trained // shards,
        optimiser=student.size.optimiser // shards + clip,
        teacher=visiting or resident,
        gathered=max(_gathered(acting.parts, shards), acting.parts.weights if copied else 0),
        activations=main.kept.of(main.rows),
        tiles=_tiles(config, main, teacher),
        kv_cache=cache,
        training=training(main.rows),
        generation=generation,
        tests=answering(config, acting, teacher, shards if placement == "sharded" else 1),
        sft={
            stage.name: _static(config, stage.model, shards) + _added(config, stage, None, strategy, world_size)
            for stage in before
        },
        largest_micro_batch=largest(lambda rows: training(rows) <= room),
    )
    return replace(found, fits=found.peak <= room)


def answering(config: ExperimentConfig, student: Model, teacher: Model | None, shards: int) -> int:
    """Bytes of a device that the test sets take: one model at a time, and both for exposure bias.

    Args:
        shards: parts of the teacher.
    """
    prompt = answered_data(config.data, config.evaluation).max_prompt_length
    rows, length = config.evaluation.batch_size, prompt + config.evaluation.max_new_tokens
    # logits in the model's type for the best token; sampling puts probabilities and their sums beside them
    copies = SAMPLED if config.evaluation.temperature > 0 else GREEDY

    def written(model: Model, copies: int) -> int:
        return rows * (length * model.size.kv_per_token + FLOAT * copies * model.size.classes)

    whole = student.parts.weights
    if teacher is None:
        return whole + written(student, copies)
    held = teacher.parts.weights if shards == 1 else _resident(teacher, "sharded", shards)
    states = FLOAT * rows * length * (student.size.width + teacher.size.width)
    exposed = whole + held + states + max(written(student, SAMPLED), written(teacher, SAMPLED))
    return max(whole + written(student, copies), held + written(teacher, copies), exposed)


def usable(available: int) -> int:
    """Bytes of a device that tensors may take."""
    return int(available * (1 - RESERVED))


def _size(model: Model | None) -> ModelSize | None:
    return None if model is None else model.size


def _static(config: ExperimentConfig, model: Model, shards: int) -> int:
    """Weights, moments, and what is whole for a while."""
    whole = _gathered(model.in_type(NARROW.get(config.trainer.precision)).parts, shards)
    return (model.parts.weights + model.size.optimiser) // shards + whole


def _gathered(parts: Parts, shards: int) -> int:
    """What FSDP2 holds whole at once: a layer and the next one with their gradients, and all that is outside."""
    if shards == 1:
        return 0
    return parts.root + parts.root_trained + 2 * (parts.layer + parts.layer_trained)


def _resident(teacher: Model, placement: str, shards: int) -> int:
    """Bytes of the teacher that are there in training."""
    parts = teacher.parts
    if placement == "cpu":
        return teacher.size.head_bytes
    return parts.weights if placement == "replicated" else parts.layers // shards + parts.root + 2 * parts.layer


def _held(stage: Trained, strategy: str, world_size: int) -> int:
    """Bytes of gradients that stand while activations do: DDP's buckets stay, and later micro-batches add."""
    shards = world_size if strategy == "fsdp2" else 1
    stays = (strategy == "ddp" and world_size > 1) or stage.micro_batches > 1
    return stage.model.parts.trained // shards if stays else 0


def _added(config: ExperimentConfig, stage: Trained, teacher: Model | None, strategy: str, world_size: int) -> int:
    """Highest point of a step above weights and moments."""
    shards, held = world_size if strategy == "fsdp2" else 1, _held(stage, strategy, world_size)
    trained = 0 if held else stage.model.parts.trained // shards
    size = replace(stage.model.size, trained=trained)
    added = training_added(config, size, _size(teacher), stage.kept, stage.rows, stage.length, DEVICE)
    return held + added + _wide_heads(stage.model, teacher)


def _wide_heads(*some: Model | None) -> int:
    """The objective works in float32: it keeps a float32 copy of an output layer that is narrower."""
    return sum(FLOAT * m.size.classes * m.size.width for m in some if m is not None and not m.wide)


def _tiles(config: ExperimentConfig, stage: Trained, teacher: Model | None) -> int:
    """Logits of a tile, the output layer's gradient, and hidden states in float32, as in `training_added`."""
    empty = Activations(per_sequence=0, fixed=0)
    size = replace(stage.model.size, trained=0)
    added = training_added(config, size, _size(teacher), empty, stage.rows, stage.length, DEVICE)
    return added + _wide_heads(stage.model, teacher)
