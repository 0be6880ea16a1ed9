"""Batches that memory does not suffice for are halved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mgsr.generation.batching import FittingBatches
from mgsr.runtime.errors import UserError


def mapped(batches: FittingBatches, items: Any, run: Callable[[Any], Any]) -> list[Any]:
    """Results of all items, batch by batch, as every caller of `FittingBatches` goes about it."""
    found: list[Any] = []
    for batch in batches.of(items):
        try:
            result = run(batch)
        except RuntimeError as error:
            batches.halve(error)
            continue
        found += result
    return found


def test_batches_shrink_until_they_fit() -> None:
    tried: list[int] = []

    def run(batch: Any) -> list[int]:
        tried.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [2 * item for item in batch]

    found = mapped(FittingBatches(16, "a.batch_size"), range(10), run)
    assert found == [2 * i for i in range(10)] and tried == [10, 5, 2, 2, 2, 2, 2]

    def never(batch: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with pytest.raises(UserError, match="one sequence at a time"):
        mapped(FittingBatches(4, "a.batch_size"), [1, 2, 3], never)
    with pytest.raises(RuntimeError, match="can't allocate"):
        mapped(FittingBatches(4, None), [1, 2, 3], never)
