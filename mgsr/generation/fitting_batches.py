"""Batches of a size that fits: halved where memory does not suffice, and said so once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from mgsr.runtime.errors import UserError
from mgsr.runtime.progress import say

T = TypeVar("T")
R = TypeVar("R")


# keys that were named already: once per process
_SAID: set[str] = set()


class FittingBatches:
    """Cuts work into batches, smaller ones from the first that memory does not suffice for.

    Args:
        size: items per batch to begin with.
        key: the configuration key that is named when it has to shrink; None: never shrink.
    """

    def __init__(self, size: int, key: str | None) -> None:
        self.size, self.key = size, key
        self._first = size

    def map(self, items: Sequence[T], run: Callable[[Sequence[T]], R]) -> Iterator[tuple[Sequence[T], R]]:
        """Every batch with its result, in order.

        Raises:
            UserError: not even one item fits.
        """
        start = 0
        while start < len(items):
            batch = items[start : start + self.size]
            try:
                result = run(batch)
            except RuntimeError as error:
                if self.key is None or not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise UserError(
                        f"out of memory with one sequence at a time (`{self.key}` is {self._first}): shorten "
                        "data.max_length or max_new_tokens, or take a smaller model"
                    ) from None
                self._halve(len(batch))
                continue
            start += len(batch)
            yield batch, result

    def _halve(self, tried: int) -> None:
        self.size = tried // 2
        assert self.key is not None
        if self.key not in _SAID:
            say(f"out of memory with {tried} sequences at once: going on with {self.size}; set {self.key} lower")
            _SAID.add(self.key)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Of a GPU, or of the CPU's allocator."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "out of memory" in text
