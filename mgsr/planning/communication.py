"""Bytes that devices send one another, per device and optimiser step.

A ring over N devices sends (N - 1) / N of a tensor to gather its parts, or to sum and scatter it. It sends twice
that to sum it everywhere (Patarasuk and Yuan 2009; Rajbhandari et al. 2020, arXiv 1910.02054, section 7). Each
device receives as much as it sends, at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass

from mgsr.config.schema import ExperimentConfig
from mgsr.planning.model_size import Parts
from mgsr.planning.plan_cost import Hardware, answered_times, needs_teacher, passes_at_most
from mgsr.planning.plan_memory import Model
from mgsr.planning.workload import Stage, Text


def gather(size: float, devices: int) -> float:
    """Bytes a device sends in an all-gather of `size` bytes, or in a reduce-scatter of as many.

    >>> gather(800, 8)
    700.0
    """
    return size * (devices - 1) / devices


def all_reduce(size: float, devices: int) -> float:
    """Bytes a device sends to sum `size` bytes on every device: reduce-scatter, then all-gather.

    >>> all_reduce(800, 8)
    1400.0
    """
    return 2 * gather(size, devices)


@dataclass(frozen=True)
class Traffic:
    """Bytes of one device.

    Attributes:
        step, round: between devices, in an optimiser step and around a round of text.
        host_step, host_epoch, host_round: over the link to the host's memory.
    """

    step: float = 0.0
    round: float = 0.0
    host_step: float = 0.0
    host_epoch: float = 0.0
    host_round: float = 0.0

    def seconds(self, steps: float, epochs: float, rounds: float, interconnect: float, host: float) -> float:
        """All of it, at bytes per second; nothing is hidden behind computing, so this is an upper bound."""
        between = steps * self.step + rounds * self.round
        moved = steps * self.host_step + epochs * self.host_epoch + rounds * self.host_round
        return between / interconnect + moved / host


def student_step(parts: Parts, devices: int, strategy: str, micro_batches: int) -> float:
    """Bytes for the student in one optimiser step.

    ddp: one all-reduce of the gradients, in the last micro-batch. fsdp2: in every micro-batch the layers are
    gathered forward and again backward, the other weights once, and the gradients summed and scattered.
    """
    if devices == 1:
        return 0.0
    if strategy != "fsdp2":
        return all_reduce(parts.trained, devices)
    gathered = 2 * parts.layers + parts.root
    return micro_batches * (gather(gathered, devices) + gather(parts.trained, devices))


def traffic(
    student: Parts,
    teacher: Parts | None,
    *,
    devices: int,
    strategy: str,
    placement: str,
    micro_batches: int,
    teacher_forwards: int,
    scoring_batches: float,
    state_bytes: float,
    writes: bool,
) -> Traffic:
    """What one strategy and placement send.

    Args:
        teacher_forwards: of one device in an optimiser step; scoring_batches: of one device in a round.
        state_bytes: the teacher's hidden states that one device needs in an optimiser step.
        writes: there are rounds of text. With fsdp2 a round gathers the student whole.

    A teacher in CPU memory comes to the device and leaves again once before every epoch, to read its text; a
    student that is not sharded makes room. In a round of text it comes for every batch that it scores, and the
    student makes room. Its states are read in every step.
    """
    step = student_step(student, devices, strategy, micro_batches)
    round_ = gather(student.weights, devices) if strategy == "fsdp2" and writes else 0.0
    if teacher is not None and placement == "sharded":
        step += teacher_forwards * gather(teacher.layers, devices)
        round_ += scoring_batches * gather(teacher.layers, devices)
    if teacher is None or placement != "cpu":
        return Traffic(step, round_)
    room = 0 if strategy == "fsdp2" else student.weights
    epoch = 2 * (teacher.weights + room) if teacher_forwards else 0
    turns = scoring_batches * 2 * (teacher.weights + student.weights) or 2 * teacher.weights
    return Traffic(step, round_, state_bytes if teacher_forwards else 0, epoch, turns if writes else 0)


def communication(
    config: ExperimentConfig,
    text: Text,
    stages: list[Stage],
    parts: dict[str, Parts],
    taught_by: Model | None,
    strategy: str,
    placement: str,
    hardware: Hardware,
    world: int,
) -> tuple[Traffic, float]:
    """Traffic of the main job, and the seconds of all stages."""
    seconds = 0.0
    for stage in stages:
        main = stage is stages[-1]
        name = "teacher" if stage.name.startswith("teacher") else "student"
        teacher = taught_by if main else None
        scored = passes_at_most(config.scrg)
        batches = stage.written / max(1, stage.rounds) / world / config.scrg.batch_size
        states = 0.0
        if teacher is not None:
            answers = stage.truth * text.response + stage.text * text.written
            state = teacher.size.width * teacher.size.bytes_per_weight
            states = answers / stage.length.total_steps / world * state
        sent = traffic(
            parts[name],
            None if teacher is None else teacher.parts,
            devices=world,
            strategy=strategy,
            placement=placement,
            micro_batches=stage.length.micro_batches,
            teacher_forwards=stage.length.micro_batches if needs_teacher(config) else 0,
            scoring_batches=batches * scored,
            state_bytes=states,
            writes=stage.written > 0,
        )
        length = stage.length
        seconds += sent.seconds(
            length.total_steps, length.epochs, stage.rounds, hardware.interconnect, hardware.host
        )
    if placement == "sharded" and taught_by is not None:
        # its answers to the test sets: every token gathers all layers anew
        answers = text.tests * (answered_times(config) + 1)
        forwards = answers / world / config.evaluation.batch_size * config.evaluation.max_new_tokens
        seconds += forwards * gather(taught_by.parts.layers, world) / hardware.interconnect
    return sent, seconds
