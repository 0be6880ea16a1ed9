"""The plan's account of a node's own memory, and of checkpoints: their size, their copies and their time.

models       those that were made here, have adapters to come or were cut, on every rank; of two that take turns
             on a device, the student that makes room. Those that are read stay in their mapped files.
checkpoints  what is saved is copied by the first rank, which writes it in the background. FSDP2 puts all parts
             together there before that.
text         rows and a round as Python holds them, on every rank
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mgsr.config.schema import ExperimentConfig, ModelConfig
from mgsr.planning.model_size import MOMENTS, clip_parts
from mgsr.planning.plan_cost import Hardware
from mgsr.planning.plan_memory import Account, Model
from mgsr.planning.workload import Stage, Text
from mgsr.training.checkpoint import KEPT
from mgsr.training.teacher_cache import BYTES_PER_CLASS

# of a token id in a list: an integer of its own and the place that names it; text and spans take about as much
TOKEN_BYTES = 72


@dataclass(frozen=True)
class Saved:
    """Checkpoints of a stage.

    Attributes:
        size: bytes of a resume point; best: of the student that the dev set chose, 0 without one.
        kept: resume points that stay; disk: bytes at most, with one that is being written.
        saves: how many in all; copy, write: seconds of one.
        held: seconds of the stage: steps wait for copies, a round of text and the end until the file is there.
    """

    stage: str
    size: int
    best: int
    kept: int
    disk: int
    saves: int
    copy: float
    write: float
    held: float


def saved(config: ExperimentConfig, stage: Stage, sized: Mapping[str, Model], hardware: Hardware) -> Saved:
    """What a stage's checkpoints cost."""
    main, length = stage.name == "main job", stage.length
    size = sized["teacher" if stage.name.startswith("teacher") else "student"].size
    weights, moments, adapters = size.weights, size.optimiser, bool(config.student.lora.r)
    if main and adapters:
        # what they stand on is in no checkpoint
        weights = size.trained
    elif adapters and stage.name.startswith("student"):
        # they come behind the fine-tuning, which trains all weights
        moments = MOMENTS * size.weights
    point, best = weights + moments, 0
    if main:
        clip = clip_parts(config, size.classes)
        point, best = point + clip["weights"] + clip["moments"], weights + clip["weights"]
    every = config.trainer.checkpoint_every_n_steps
    # stages before the main job have no dev set; the main job looks at its end in any case
    looks = -(-length.epochs // config.evaluation.val_every_n_epochs) if main else 0
    # within an epoch, before a look at the dev set, and at the end
    saves = length.total_steps // every + looks + length.epochs
    copy, write = point / hardware.host, point / hardware.disk
    held = saves * copy + max(1, stage.rounds) * write + looks * best / hardware.host
    return Saved(stage.name, point, best, KEPT, (KEPT + 1) * point + 2 * best, saves, copy, write, held)


@dataclass(frozen=True)
class Host:
    """Bytes of the first node's own memory, of all its processes.

    Attributes:
        models, checkpoints, text: see the module. mapped: pages of files, there once and given up when short.
    """

    models: int
    checkpoints: int
    text: int
    mapped: int

    @property
    def own(self) -> int:
        """What cannot be given up."""
        return self.models + self.checkpoints + self.text


def host_memory(
    config: ExperimentConfig,
    sized: Mapping[str, Model],
    checkpoints: Sequence[Saved],
    text: Text,
    main: Stage,
    *,
    devices: int,
    account: Account,
) -> Host:
    """One column of the table.

    Args:
        devices: of a node; account: of one of them.
    """
    sharded = account.strategy == "fsdp2"
    made = {name: _is_made(config, getattr(config, name)) for name in sized}
    models = devices * sum(model.parts.weights for name, model in sized.items() if made[name])
    if account.placement == "cpu":
        # on every rank the student goes there while the teacher is on the device
        models += 0 if made["student"] else devices * sized["student"].parts.weights
    point = max(one.size for one in checkpoints)
    # one token id is in a row's prompt or answer, in a round's text as written and as corrected
    tokens = text.rows * (text.prompt + text.response)
    tokens += main.written / max(1, main.rounds) * (text.prompt + 2 * text.written)
    mapped = sum(model.parts.weights for name, model in sized.items() if not made[name])
    if config.objective.teacher_top_k and "teacher" in sized:
        classes = min(config.objective.teacher_top_k, sized["teacher"].size.classes)
        mapped += int(text.rows * text.response * (BYTES_PER_CLASS * classes + 4))
    return Host(models, (2 if sharded else 1) * point, int(devices * TOKEN_BYTES * tokens), mapped)


def _is_made(config: ExperimentConfig, model: ModelConfig) -> bool:
    """Whether a model is in memory of its own instead of in a file's pages."""
    student = model is config.student
    cut = student and (bool(config.student.lora.r) or bool(config.student.keep_layers))
    return cut or bool(model.gguf_file) or (model.source in ("init", "teacher") and not model.sft.enabled)
