"""Planning whole optimiser steps: which prompt trains on which text, in which step, in which micro-batch.

Pure functions of (seed, epoch), so an epoch can be planned again after a crash, on any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np

Row = TypeVar("Row")


@dataclass(frozen=True)
class StepSelection:
    """The prompts of one optimiser step, as indices: those that train on ground truth, and on student text."""

    ground_truth: tuple[int, ...]
    student: tuple[int, ...]


@dataclass(frozen=True)
class PlannedStep(Generic[Row]):
    """One optimiser step: `micro_batches[k][rank]` is what `rank` sees in its k-th forward; `rows` are all."""

    micro_batches: tuple[tuple[tuple[Row, ...], ...], ...]
    rows: tuple[Row, ...]


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimiser steps in one epoch; the last one has what is left.

    >>> steps_per_epoch(96, 32), steps_per_epoch(97, 32)
    (3, 4)
    """
    return math.ceil(rows / batch_size)


def micro_batches_per_step(batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Forwards each rank makes per optimiser step, so that none holds more than `micro_batch_size` sequences."""
    return max(1, math.ceil(batch_size / (micro_batch_size * world_size)))


def select(
    rows: int, batch_size: int, *, seed: int, epoch: int, fraction: Callable[[int], float]
) -> list[StepSelection]:
    """Shuffle the prompts of an epoch into steps and choose which of them train on student text.

    Args:
        rows: number of training prompts; batch_size: prompts per optimiser step.
        fraction: step within the epoch -> share of student text. Shares that are not whole sequences are
            carried over to the next step, so the epoch as a whole holds the share asked for.
    """
    order = np.random.default_rng([seed, epoch, 1]).permutation(rows)
    steps, owed = [], 0.0
    for step in range(steps_per_epoch(rows, batch_size)):
        chunk = order[step * batch_size : (step + 1) * batch_size].tolist()
        # the small term keeps 0.1 x 10 from falling short of 1 by rounding
        owed += fraction(step) * len(chunk) + 1e-9
        count = min(len(chunk), int(owed))
        owed -= count
        steps.append(StepSelection(ground_truth=tuple(chunk[count:]), student=tuple(chunk[:count])))
    return steps


def pack(
    steps: Sequence[Sequence[Sequence[Row]]],
    length: Callable[[Row], int],
    *,
    bucket_steps: int,
    micro_batches: int,
    world_size: int,
    seed: int,
    epoch: int,
) -> list[PlannedStep[Row]]:
    """Put rows of like length together, first across neighbouring steps, then within each step.

    Args:
        steps: per step, its kinds of rows (ground truth, student text). Every step keeps the number of rows
            of each kind that it was given; rows move only within a window of `bucket_steps` steps.
        length: tokens of a row.
        micro_batches: forwards per step and rank; world_size: ranks.

    Returns:
        Steps in a shuffled order, each cut into `micro_batches` x `world_size` groups. Where a step has fewer rows
        than that some are empty: every rank makes as many forwards as the others.
    """
    rng = np.random.default_rng([seed, epoch, 2])
    planned: list[PlannedStep[Row]] = []
    for start in range(0, len(steps), bucket_steps):
        window = _sort_within(steps[start : start + bucket_steps], length)
        # a short last step stays last in its window's order only by chance: order carries no meaning
        planned += [_cut(window[i], length, micro_batches, world_size) for i in rng.permutation(len(window))]
    return planned


def _sort_within(window: Sequence[Sequence[Sequence[Row]]], length: Callable[[Row], int]) -> list[list[Row]]:
    out: list[list[Row]] = [[] for _ in window]
    for kind in range(max((len(step) for step in window), default=0)):
        pool = sorted((row for step in window for row in step[kind]), key=length)
        start = 0
        for step, rows in zip(window, out, strict=True):
            rows += pool[start : start + len(step[kind])]
            start += len(step[kind])
    return out


def _cut(rows: list[Row], length: Callable[[Row], int], micro_batches: int, world_size: int) -> PlannedStep[Row]:
    rows = sorted(rows, key=length)
    groups = micro_batches * world_size
    edges = [round(len(rows) * i / groups) for i in range(groups + 1)]
    # neighbours in length go to different ranks of the same forward, so no rank waits for a longer batch
    cut = [tuple(rows[a:b]) for a, b in pairwise(edges)]
    ranks = [tuple(cut[k * world_size : (k + 1) * world_size]) for k in range(micro_batches)]
    return PlannedStep(tuple(ranks), tuple(rows))
