"""The processes of a run (ranks): which one this is, and what they tell one another.

Everything here works, and costs nothing, where there is one process and no process group. Numbers and objects go
from one processor's memory to another's, over gloo, also where gradients go over NCCL: no GPU waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

BACKENDS = {False: "gloo", True: "cpu:gloo,cuda:nccl"}
"""Of the process group, without and with GPUs."""


def several() -> bool:
    """Whether this process is one of several that work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number among all, from 0."""
    return dist.get_rank() if several() else 0


def world_size() -> int:
    """How many processes there are; 1 without a process group."""
    return dist.get_world_size() if several() else 1


def is_first() -> bool:
    """Whether this is the rank that writes files, logs and prints."""
    return rank() == 0


def barrier(name: str = "") -> None:
    """Wait until every rank is here; `name` tells the reader where that is."""
    if several():
        dist.barrier()


def agreed(value: T) -> T:
    """The first rank's value, on every rank: what was seen on disk may differ between them."""
    if not several():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: T) -> list[T]:
    """Every rank's value, by rank, on every rank."""
    if not several():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def largest(value: int) -> int:
    """The largest of all ranks' values, on every rank; cheap enough for every step."""
    if not several():
        return value
    box = torch.tensor([value])
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return int(box.item())


def interleaved(parts: list[list[T]]) -> list[T]:
    """Undo `items[rank::world]`: one list in the order of the items.

    >>> interleaved([["a", "c", "e"], ["b", "d"]])
    ['a', 'b', 'c', 'd', 'e']
    """
    whole: list[Any] = [None] * sum(map(len, parts))
    for number, part in enumerate(parts):
        whole[number :: len(parts)] = part
    return whole


def on_first(function: Callable[[], T]) -> T | None:
    """Run on the first rank only; the others wait until it is done. An error there ends the job on all."""
    result = function() if is_first() else None
    barrier()
    return result


@contextmanager
def first_alone() -> Iterator[None]:
    """The block on the first rank, then on the others at once: what it caches is made once."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()
