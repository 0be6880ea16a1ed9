"""Compiled loops that leave Python's lock, shared between threads of this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch


@lru_cache(maxsize=1)
def _workers(count: int) -> ThreadPoolExecutor:
    # whatever their caller does, numbers below the smallest normal one count as 0: see `quick_cpu`
    return ThreadPoolExecutor(count, "loops", initializer=lambda: torch.set_flush_denormal(True))


# a fork has the pool and none of its threads, and would wait for them for ever
os.register_at_fork(after_in_child=_workers.cache_clear)


def in_shares(work: Callable[[int, int], object], size: int, *, multiple: int = 1) -> None:
    """`work(first, stop)` for all of `range(size)`, a share for each of PyTorch's threads.

    Args:
        multiple: where a share ends before the last one, it is at a multiple of this.
    """
    count = torch.get_num_threads()
    step = max(1, -(-size // (count * multiple))) * multiple
    shares = [(first, min(first + step, size)) for first in range(0, size, step)]
    for done in [_workers(count).submit(work, *share) for share in shares]:
        done.result()
