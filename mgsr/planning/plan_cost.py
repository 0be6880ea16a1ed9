"""Phases of a run in FLOPs, and the seconds they take on given hardware."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mgsr.config.schema import ExperimentConfig, ScrgConfig
from mgsr.evaluation import flops
from mgsr.evaluation.flops import Flops, Shape
from mgsr.planning.peak_memory import MIXED
from mgsr.planning.workload import Stage, Text
from mgsr.runtime.devices import NARROW

GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Hardware:
    """One device and its links. The defaults are an A100 SXM 80 GB's, by its data sheet.

    Attributes:
        flops: peak of 16-bit products, per second; flops_float32: of float32 ones (TF32 is off in torch).
        mfu: share of the peak that is reached (model FLOPs utilisation, Chowdhery et al. 2022).
        bandwidth, interconnect, host, disk: bytes per second of the device's memory; between devices, one
            direction; to the host's memory; and written to where runs lie.
    """

    flops: float = 312 * TERA
    flops_float32: float = 19.5 * TERA
    mfu: float = 0.4
    bandwidth: float = 2039 * GIGA
    interconnect: float = 300 * GIGA
    host: float = 25 * GIGA
    disk: float = GIGA

    def seconds(self, work: Flops, devices: int, *, narrow: bool, narrow_head: bool = False) -> float:
        """Time of evenly spread work.

        Args:
            narrow: the layers compute in 16 bits; narrow_head: the output layer does.
        """
        rates = [self.flops if is_narrow else self.flops_float32 for is_narrow in (narrow, narrow_head)]
        return (work.trunk / rates[0] + work.head / rates[1]) / (devices * self.mfu)


@dataclass(frozen=True)
class Speaker:
    """A model as a phase sees it.

    Attributes:
        weights, kv_per_token: bytes; narrow: it computes in 16 bits.
    """

    shape: Shape
    weights: int
    kv_per_token: int
    narrow: bool


@dataclass(frozen=True)
class Phase:
    """`bound` says by what the seconds are limited: computing, or the device's memory bandwidth."""

    name: str
    work: Flops
    seconds: float
    bound: str = "compute"


def sft_phase(
    config: ExperimentConfig, stage: Stage, model: Speaker, text: Text, hardware: Hardware, devices: int
) -> Phase:
    """Forward and backward of a stage before the main job."""
    section = config.teacher.sft if stage.name.startswith("teacher") else config.student.sft
    work = flops.training(
        model.shape,
        stage.truth,
        text.prompt + text.response,
        stage.truth * text.response,
        checkpointing=section.gradient_checkpointing,
    )
    return Phase(stage.name, work, _training(config, hardware, work, devices))


def main_phases(
    config: ExperimentConfig,
    stage: Stage,
    student: Speaker,
    teacher: Speaker | None,
    text: Text,
    hardware: Hardware,
    devices: int,
) -> list[Phase]:
    """The main job: training, the teacher's part of it, and the rounds that write text."""
    read, written = text.prompt + text.response, text.prompt + text.written
    again = config.train.gradient_checkpointing
    work = flops.training(student.shape, stage.truth, read, stage.truth * text.response, checkpointing=again)
    work += flops.training(student.shape, stage.text, written, stage.text * text.written, checkpointing=again)
    found = [Phase("student forward and backward", work, _training(config, hardware, work, devices))]
    if teacher is not None and needs_teacher(config):
        # kept distributions need the teacher once per row of ground truth
        truth = min(stage.truth, text.rows) if config.objective.teacher_top_k else stage.truth
        work = flops.forward(teacher.shape, truth, read, truth * text.response)
        work += flops.forward(teacher.shape, stage.text, written, stage.text * text.written)
        found.append(Phase("teacher forward", work, _computing(hardware, work, teacher, devices)))
    return found + _round_phases(config, stage, student, teacher, text, hardware, devices)


def _round_phases(
    config: ExperimentConfig,
    stage: Stage,
    student: Speaker,
    teacher: Speaker | None,
    text: Text,
    hardware: Hardware,
    devices: int,
) -> list[Phase]:
    """Writing, and for SCRG scoring and continuing, in what each model computes in."""
    count, scrg = stage.written, config.scrg
    if not count:
        return []
    everyone: list[Speaker | None] = [student, teacher]
    writers = {"student": everyone[:1], "teacher": everyone[1:]}.get(scrg.text, everyone)
    found = []
    if scrg.text == "paired":
        count = count / 2
    for writer in writers:
        assert writer is not None, "checked with the configuration"
        whose = "student" if writer is student else "teacher"
        work = flops.prefill(writer.shape, count, text.prompt)
        found.append(Phase(f"{whose} prefill", work, _computing(hardware, work, writer, devices)))
        found.append(
            _decoding(
                f"{whose} decode", writer, hardware, devices, count, text.prompt, text.written,
                steps=scrg.max_new_tokens, batch=scrg.batch_size,
            )
        )  # fmt: skip
    passes = passes_at_most(scrg)
    if not passes:
        return found
    assert teacher is not None, "checked with the configuration"
    scored = Flops()
    for _ in range(passes):
        # the student's states are those it wrote from; only its output layer is gone through again
        scored += flops.forward(teacher.shape, count, text.prompt + text.written, count * text.written)
        scored += Flops(head=2 * count * text.written * student.shape.head_weights)
    found.append(Phase("scoring", scored, _computing(hardware, scored, teacher, devices)))
    for number in range(1, passes + 1):
        # an error lies, on average, half way through what a pass may search
        left = text.written / 2**number
        name = "continuation" if passes == 1 else f"continuation {number}"
        found.append(
            _decoding(
                name, student, hardware, devices, count, text.prompt + text.written - left, left,
                steps=scrg.max_new_tokens / 2**number, batch=scrg.batch_size,
            )
        )  # fmt: skip
    return found


def passes_at_most(scrg: ScrgConfig) -> int:
    """Corrections of a sequence: each pass searches behind the last one, so that there are no more than tokens."""
    return min(scrg.passes, scrg.max_new_tokens) if scrg.text == "student" else 0


def needs_teacher(config: ExperimentConfig) -> bool:
    """Whether a training step runs the teacher."""
    return config.objective.w_dac > 0 or config.objective.w_span > 0


OVERHEAD = 0.1
"""Share of a step that AdamW and the casting of weights may take."""


def worthwhile_tokens(config: ExperimentConfig, student: Speaker, parameters: int, hardware: Hardware) -> float:
    """Tokens of one device in a step from which on AdamW and casting weights take at most `OVERHEAD` of it.

    Once per step AdamW reads weight, gradient and two moments and writes all but the gradient, and under a mixed
    precision autocast reads the weights and writes them in 16 bits:

        bytes = trained * 7 * 4 + weights * (4 + 2);  tokens = bytes / bandwidth / (seconds of a token) * 9

    Args:
        parameters: of the student.
    """
    trained = student.shape.adapters or parameters
    moved = 7 * 4 * trained + (6 * parameters if config.trainer.precision in MIXED else 0)
    work = flops.training(student.shape, 1, 1, 1, checkpointing=config.train.gradient_checkpointing)
    per_token = _training(config, hardware, work, 1)
    return moved / hardware.bandwidth / per_token * (1 - OVERHEAD) / OVERHEAD


def _training(config: ExperimentConfig, hardware: Hardware, work: Flops, devices: int) -> float:
    """Seconds of forward and backward. The objective's products never take float16."""
    dtype = NARROW.get(config.trainer.precision)
    return hardware.seconds(work, devices, narrow=dtype is not None, narrow_head=dtype == torch.bfloat16)


def _computing(hardware: Hardware, work: Flops, model: Speaker, devices: int) -> float:
    return hardware.seconds(work, devices, narrow=model.narrow, narrow_head=model.narrow)


def _decoding(
    name: str,
    writer: Speaker,
    hardware: Hardware,
    devices: int,
    sequences: float,
    context: float,
    new: float,
    *,
    steps: float,
    batch: int,
) -> Phase:
    """Writing token by token: every step reads all weights once for its batch, and the cache of each of its rows.

        bytes per device = batches * steps * weights + own * new * (context + new / 2) * cache per token

    own = sequences / devices, batches = own / batch.

    Args:
        steps: of a batch: it goes on until its last row ends, here at the limit of new tokens.
    """
    work = flops.decoding(writer.shape, sequences, context, new)
    own = sequences / devices
    moved = own / batch * steps * writer.weights + own * new * (context + new / 2) * writer.kv_per_token
    computing, moving = _computing(hardware, work, writer, devices), moved / hardware.bandwidth
    return Phase(name, work, max(computing, moving), "compute" if computing >= moving else "memory bandwidth")


def answered_times(config: ExperimentConfig) -> int:
    """How often every test row is answered: greedily, and once per sampling seed."""
    return 1 + (len(config.evaluation.seeds) if config.evaluation.temperature > 0 else 0)


def answer_phases(
    config: ExperimentConfig,
    student: Speaker,
    teacher: Speaker | None,
    text: Text,
    hardware: Hardware,
    devices: int,
    *,
    seeds: int,
) -> list[Phase]:
    """The test sets: by the teacher, by the student before and after, and exposure bias of the two.

    Args:
        seeds: how often each row is answered.
    """
    evaluation, rows = config.evaluation, text.tests
    new = min(text.response, evaluation.max_new_tokens)

    def written(name: str, writer: Speaker, count: float) -> Phase:
        work = flops.prefill(writer.shape, count, text.prompt)
        first = _computing(hardware, work, writer, devices)
        rest = _decoding(
            name, writer, hardware, devices, count, text.prompt, new,
            steps=evaluation.max_new_tokens, batch=evaluation.batch_size,
        )  # fmt: skip
        return Phase(name, work + rest.work, first + rest.seconds, rest.bound)

    if not rows:
        return []
    found = [written("test sets, student twice", student, 2 * rows * seeds)]
    if teacher is not None:
        found.append(written("test sets, teacher", teacher, rows * seeds))
        seen = min(rows, evaluation.exposure_rows or rows)
        both = [written("exposure bias", model, seen) for model in (student, teacher)]
        scored = [flops.forward(m.shape, 2 * seen, text.prompt + new, 2 * seen * new) for m in (student, teacher)]
        seconds = sum(phase.seconds for phase in both)
        seconds += sum(
            _computing(hardware, w, m, devices) for w, m in zip(scored, (student, teacher), strict=True)
        )
        work = sum((phase.work for phase in both), sum(scored, Flops()))
        found.append(Phase("exposure bias", work, seconds, both[0].bound))
    return found
