"""Planning steps: every prompt once, the share of student text as asked, groups that differ by one at most."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsr.data.sampler import micro_batches_per_step, pack, select, steps_per_epoch


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 200),
    batch=st.integers(1, 40),
    fraction=st.floats(0, 1),
    epoch=st.integers(0, 3),
)
def test_an_epoch_uses_every_prompt_once(rows: int, batch: int, fraction: float, epoch: int) -> None:
    steps = select(rows, batch, seed=0, epoch=epoch, fraction=lambda step: fraction)
    used = [i for step in steps for i in (*step.ground_truth, *step.student)]
    assert sorted(used) == list(range(rows))
    assert len(steps) == steps_per_epoch(rows, batch) == math.ceil(rows / batch)
    student = sum(len(step.student) for step in steps)
    # the share is carried over between steps, so an epoch misses it by less than one sequence
    assert math.floor(fraction * len(used)) - 1e-6 <= student <= math.ceil(fraction * len(used) + 1e-6)


def test_half_means_half_of_every_step() -> None:
    for step in select(64, 16, seed=3, epoch=1, fraction=lambda s: 0.5):
        assert len(step.student) == len(step.ground_truth) == 8


def test_a_share_too_small_for_one_step_still_arrives() -> None:
    steps = select(100, 5, seed=0, epoch=0, fraction=lambda s: 0.1)
    assert sum(len(step.student) for step in steps) == 10


def test_epochs_differ_and_repeat() -> None:
    def of(epoch: int, seed: int = 0) -> list[object]:
        return list(select(32, 8, seed=seed, epoch=epoch, fraction=lambda s: 0.5))

    assert of(0) == of(0)
    assert of(0) != of(1) and of(0) != of(0, seed=1)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), max_size=80),
    bucket=st.integers(1, 5),
    micro=st.integers(1, 3),
    world=st.integers(1, 3),
)
def test_packing_keeps_rows_kinds_and_sizes(lengths: list[int], bucket: int, micro: int, world: int) -> None:
    rows = [(length, i) for i, length in enumerate(lengths)]
    # the last step has what is left, down to one row for six groups
    steps = [(rows[k : k + 12 : 2], rows[k + 1 : k + 12 : 2]) for k in range(0, len(rows), 12)]
    planned = pack(
        steps, lambda row: row[0], bucket_steps=bucket, micro_batches=micro, world_size=world, seed=0, epoch=0
    )
    assert sorted(row for step in planned for row in step.rows) == sorted(rows)
    assert sorted(len(step.rows) for step in planned) == sorted(len(a) + len(b) for a, b in steps)
    for step in planned:
        kinds = [row[1] % 2 for row in step.rows]
        assert 0 <= kinds.count(0) - kinds.count(1) <= 1
        groups = [group for ranks in step.micro_batches for group in ranks]
        assert len(step.micro_batches) == micro and all(len(ranks) == world for ranks in step.micro_batches)
        assert max(map(len, groups)) - min(map(len, groups)) <= 1
        assert sorted(row for group in groups for row in group) == sorted(step.rows)


def test_buckets_put_like_lengths_together() -> None:
    rows = [(length, length) for length in (1, 50, 2, 51, 3, 52, 4, 53)]
    steps = [(rows[k : k + 2],) for k in range(0, 8, 2)]
    planned = pack(steps, lambda r: r[0], bucket_steps=4, micro_batches=1, world_size=1, seed=0, epoch=0)
    assert max(abs(a[0] - b[0]) for a, b in (step.rows for step in planned)) <= 1
    apart = pack(steps, lambda r: r[0], bucket_steps=1, micro_batches=1, world_size=1, seed=0, epoch=0)
    assert all(abs(a[0] - b[0]) == 49 for a, b in (step.rows for step in apart))


@pytest.mark.parametrize(("batch", "micro", "world", "forwards"), [(32, 32, 1, 1), (32, 8, 2, 2), (33, 8, 2, 3)])
def test_forwards_per_step(batch: int, micro: int, world: int, forwards: int) -> None:
    assert micro_batches_per_step(batch, micro, world) == forwards


def test_arms_have_the_same_prompts_within_every_window_and_not_beyond() -> None:
    """Whatever the share of written text and its length: what a study means by the same prompts in order."""

    def planned(fraction: float, stretch: int) -> list[list[int]]:
        steps = select(64, 8, seed=3, epoch=1, fraction=lambda _: fraction)
        rows = [
            [[(i, i % 7) for i in step.ground_truth], [(i, stretch * i % 11) for i in step.student]]
            for step in steps
        ]
        plan = pack(rows, lambda row: row[1], bucket_steps=4, micro_batches=2, world_size=1, seed=3, epoch=1)
        return [sorted(i for i, _ in step.rows) for step in plan]

    one, other = planned(0.0, 1), planned(0.5, 5)
    assert one != other
    for start in (0, 4):
        window = slice(start, start + 4)
        assert sorted(i for step in one[window] for i in step) == sorted(i for step in other[window] for i in step)
