"""States that a teacher has left behind, and batches made of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mgsr.data.collate import StepCounts, TrainingSequence, collate
from mgsr.runtime import faults
from mgsr.runtime.errors import UserError
from mgsr.training.teacher_cache import TeacherStates


def row(example: int, prompt: int, response: tuple[int, ...]) -> TrainingSequence:
    return TrainingSequence(example, tuple(range(prompt)), response, (-1,) * len(response), True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_has_the_states_before_its_response_tokens(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = [row(0, 3, (5, 6)), row(1, 1, (7, 8, 9)), row(2, 2, (4,))]
    states = TeacherStates(tmp_path / "states", [*rows[:2], rows[0]], 2, dtype)
    # the disk has it, under no name
    assert not list(tmp_path.iterdir())
    states[rows[0].key] = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=dtype)
    states[rows[1].key] = torch.tensor([[5.0, 5.0], [6.0, 6.0], [7.0, 7.0]], dtype=dtype)
    assert len(states) == 2 and set(states) == {rows[0].key, rows[1].key}
    batch = collate(rows, StepCounts.of(rows), 0, None, states)
    assert batch.teacher_states is not None and batch.teacher_states.dtype == dtype
    expected = torch.zeros(3, 5, 2)
    expected[0, 2:4] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    expected[1, 0:3] = torch.tensor([[5.0, 5.0], [6.0, 6.0], [7.0, 7.0]])
    assert torch.equal(batch.teacher_states.float(), expected)
    # unknown to the teacher: nothing is made up
    assert collate(rows[2:], StepCounts.of(rows[2:]), 0, None, states).teacher_states is None
    moved = batch.to("cpu")
    assert moved.teacher_states is not None and torch.equal(moved.teacher_states, batch.teacher_states)


def test_no_texts_take_no_file(tmp_path: Path) -> None:
    states = TeacherStates(tmp_path / "states", [], 4, torch.float32)
    assert len(states) == 0 and not list(tmp_path.iterdir())


def test_a_disk_without_room_is_one_line_before_the_file_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file without blocks of its own, the first write to a full disk would be a bus error."""
    rows, mapped = [row(0, 3, (5,) * 100)], torch.from_file

    def from_file(path: str, **options: Any) -> torch.Tensor:
        assert os.stat(path).st_blocks * 512 >= 100 * 64 * 4
        return mapped(path, **options)

    monkeypatch.setattr(torch, "from_file", from_file)
    assert len(TeacherStates(tmp_path / "states", rows, 64, torch.float32)) == 1
    faults.arm("states.allocate=full")
    try:
        with pytest.raises(UserError, match=f"{tmp_path}: cannot be written .No space left .*free some space"):
            TeacherStates(tmp_path / "states", rows, 64, torch.float32)
    finally:
        faults.arm("")
    assert not list(tmp_path.iterdir())
