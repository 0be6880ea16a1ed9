"""What a stage has needed is gone before the next one begins; tests/distributed has the same on two ranks."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning.pytorch.strategies import SingleDeviceStrategy

from mgsr.training.train import train
from tests.conftest import Make
from tests.training.live import Watch


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Python's own collector off: it would come by at times, and hide who never asks it to."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("adapters", [(), ("student.lora.r=2",)])
def test_nothing_of_a_stage_outlives_it(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapters: tuple[str, ...]
) -> None:
    watch = Watch()
    watch.install(monkeypatch.setattr)
    # stages of its own, which no other test has made already
    train(make_config(f"run_root={tmp_path}", "train.epochs=1", "objective.teacher_top_k=4", *adapters))
    assert watch.trained > 60 and watch.rows == 3 * 32
    assert watch.seen == {"before the student": {}, "before the main job": {}, "before the test sets": {}}


def test_no_state_is_left_to_be_moved_off_the_device(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning moves the optimisers' state to host memory when it tears a stage down."""
    left: list[tuple[int, int]] = []
    teardown = SingleDeviceStrategy.teardown

    def look_first(self: SingleDeviceStrategy) -> None:
        weights = [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]
        left.append((sum(len(one.state) for one in self.optimizers), sum(p.grad is not None for p in weights)))
        teardown(self)

    monkeypatch.setattr(SingleDeviceStrategy, "teardown", look_first)
    train(make_config(f"run_root={tmp_path}", "train.epochs=1"))
    assert left == [(0, 0)] * 3
