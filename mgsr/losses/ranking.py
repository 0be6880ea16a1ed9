"""The most probable classes of every row, ties by smaller id.

On a CPU numpy ranks: its vectorised sorts are several times quicker than torch's. A float32 value and its class
fit into one 64-bit key, so that sorting keys breaks ties by class without further ado; float64 is sorted by value
and mended where it ties.

Shapes: R rows, V classes, K chosen classes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SORT_WIDTH = 2048
"""Up to this many classes a full sort is the quickest way to rank them."""
BLOCK = 8
"""Classes of which only the largest is looked at first."""
PARALLEL_ELEMENTS = 1 << 19
"""Elements that a thread of its own is worth when numpy ranks them."""

_Array = NDArray[Any]


def sort_classes(values_RV: Tensor) -> tuple[Tensor, Tensor]:
    """All classes of every row, descending, ties by smaller id: values and ids.

    >>> sort_classes(torch.tensor([[0.0, 2.0, 1.0, 2.0]]))[1]
    tensor([[1, 3, 2, 0]])
    """
    values_RV = values_RV.detach()
    if values_RV.device.type != "cpu" or values_RV.numel() == 0:
        return values_RV.sort(dim=-1, descending=True, stable=True)
    if values_RV.dtype == torch.float32:
        ids = _by_rows(lambda rows: _unpack(np.sort(_pack(rows, np.arange(rows.shape[1])), axis=-1)), values_RV)
        return values_RV.gather(-1, ids), ids
    # numpy's quick sort is not stable: rows with ties are done again
    ids = _by_rows(lambda rows: np.argsort(-rows, axis=-1), values_RV)
    values = values_RV.gather(-1, ids)
    if values.shape[-1] > 1:
        tied = (~((values[:, :-1] - values[:, 1:]).amin(dim=-1) > 0)).nonzero().squeeze(1)
        if tied.numel():
            values[tied], ids[tied] = values_RV[tied].sort(dim=-1, descending=True, stable=True)
    return values, ids


def top_classes(values_RV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest classes of every row: values and ids, descending, ties by smaller id.

    Exact also where the k-th class ties with the next one.

    >>> top_classes(torch.tensor([[0.0, 2.0, 1.0, 2.0]]), 3)[1]
    tensor([[1, 3, 2]])
    """
    values_RV = values_RV.detach()
    width = values_RV.shape[-1]
    k = min(k, width)
    if k == width or width <= SORT_WIDTH:
        values, ids = sort_classes(values_RV)
        return values[:, :k], ids[:, :k]
    if values_RV.device.type == "cpu" and values_RV.dtype == torch.float32:
        ids = _by_rows(lambda rows: _top_packed(rows, k), values_RV)
        return values_RV.gather(1, ids), ids
    # by id first: equal values then come out by id
    ids, following = _largest(values_RV, k)
    values, order = sort_classes(values_RV.gather(1, ids))
    ids = ids.gather(1, order)
    tied = (~(values[:, -1] > following)).nonzero().squeeze(1)
    if tied.numel():
        full_values, full_ids = sort_classes(values_RV[tied])
        values[tied], ids[tied] = full_values[:, :k], full_ids[:, :k]
    return values, ids


def _largest(values_RV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Ids `[R, k]` of the k largest classes, ascending, and the (k + 1)-th largest value `[R]`; k < V."""
    if values_RV.device.type == "cpu":
        ids = _by_rows(lambda rows: np.argpartition(-rows, k, axis=-1)[:, : k + 1].copy(), values_RV)
    else:
        ids = values_RV.topk(k + 1, dim=-1).indices
    return ids[:, :k].sort(dim=-1).values, values_RV.gather(1, ids[:, k:]).squeeze(1)


def _by_rows(function: Callable[[_Array], _Array], tensor_RV: Tensor) -> Tensor:
    """A row-wise function of numpy, with as many threads as torch uses.

    numpy works on one thread and lets go of the interpreter's lock meanwhile.
    """
    array = tensor_RV.numpy()
    parts = min(torch.get_num_threads(), array.size // PARALLEL_ELEMENTS)
    if parts <= 1:
        return torch.from_numpy(function(array))
    with ThreadPoolExecutor(parts) as pool:
        return torch.from_numpy(np.concatenate(list(pool.map(function, np.array_split(array, parts)))))


def _pack(values: _Array, ids: _Array) -> _Array:
    """Keys that ascend where values descend and, among equal ones, ids ascend. NaN comes anywhere."""
    # + 0.0: both zeros become the same one
    bits = (values + np.float32(0.0)).view(np.int32)
    ascending = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    keys = (~ascending).astype(np.int64)
    keys <<= 32
    keys |= ids
    return keys


def _unpack(keys: _Array) -> _Array:
    return keys & 0xFFFFFFFF


def _top_packed(rows: _Array, k: int) -> _Array:
    """Ids of the k largest of every row, in order.

    The k largest lie within the k blocks whose own largest are largest. Should a class outside tie with the last
    one inside, which of them has the smaller id is not known yet: the row is ranked as a whole.
    """
    width = rows.shape[1] // BLOCK
    if 2 * k >= width:
        return _first(_pack(rows, np.arange(rows.shape[1])), k)
    body = rows[:, : width * BLOCK].reshape(len(rows), BLOCK, width)
    best = body.max(axis=1)
    blocks = np.argpartition(-best, k, axis=-1)[:, : k + 1]
    following = np.take_along_axis(best, blocks[:, k:], 1)[:, 0]
    inside = blocks[:, None, :k] + np.arange(BLOCK)[:, None] * width
    beyond = np.broadcast_to(np.arange(width * BLOCK, rows.shape[1]), (len(rows), rows.shape[1] % BLOCK))
    ids = np.concatenate([inside.reshape(len(rows), -1), beyond], axis=1)
    # flat: take_along_axis is many times slower on few columns of many
    flat = ids + np.arange(len(rows))[:, None] * rows.shape[1]
    found = _first(_pack(np.ascontiguousarray(rows).reshape(-1).take(flat), ids), k)
    last = np.take_along_axis(rows, found[:, -1:], 1)[:, 0]
    unsure = np.flatnonzero(~(last > following))
    if unsure.size:
        found[unsure] = _first(_pack(rows[unsure], np.arange(rows.shape[1])), k)
    return found


def _first(keys: _Array, k: int) -> _Array:
    """Ids of the k smallest keys of every row, in order."""
    smallest = np.partition(keys, k - 1, axis=-1)[:, :k] if k < keys.shape[1] else keys
    return _unpack(np.sort(smallest, axis=-1))
