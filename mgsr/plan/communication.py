"""Bytes that devices send one another, per device and optimiser step.

A ring over N devices sends (N - 1) / N of a tensor to gather its parts or to sum and scatter it, and twice that to
sum it everywhere (Patarasuk and Yuan 2009; Rajbhandari et al. 2020, arXiv 1910.02054, section 7). Each device
receives as much as it sends, at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass

from mgsr.plan.parts import Parts


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
    """Bytes of one device: between devices in an optimiser step, between devices around a round of text, and over
    the link to the host in a step."""

    step: float
    round: float
    host: float

    def seconds(self, steps: float, rounds: float, interconnect: float, host: float) -> float:
        """All of it, at bytes per second; nothing is hidden behind computing, so this is an upper bound."""
        return (steps * self.step + rounds * self.round) / interconnect + steps * self.host / host


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
    writes: bool,
) -> Traffic:
    """What one strategy and placement send.

    Args:
        teacher_forwards: of one device in an optimiser step; scoring_batches: of one device in a round.
        writes: there are rounds of text. With fsdp2 a round gathers the student whole.
    """
    step = student_step(student, devices, strategy, micro_batches)
    round_ = gather(student.weights, devices) if strategy == "fsdp2" and writes else 0.0
    host = 0.0
    if teacher is not None and placement == "sharded":
        step += teacher_forwards * gather(teacher.layers, devices)
        round_ += scoring_batches * gather(teacher.layers, devices)
    if teacher is not None and placement == "cpu":
        # to the device and back
        host = 2 * teacher_forwards * teacher.weights
    return Traffic(step, round_, host)
