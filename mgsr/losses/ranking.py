"""The most probable classes of every row, ties by smaller id.

On a CPU numpy sorts: its vectorised sorts are several times quicker than torch's. A float32 value and its class
fit into one 64-bit key, so that sorting keys breaks ties by class without further ado; which of them are among the
largest a compiled loop finds (`ranking_loops`). float64 is sorted by value and mended where it ties. On a GPU
torch finds them, and nothing is looked at on the way.

Shapes: R rows, V classes, K chosen classes.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor

from mgsr.losses.kernel_check import kernels_do
from mgsr.runtime import devices
from mgsr.runtime.threads import in_shares

HIGH = 1 if sys.byteorder == "little" else 0
"""Which half of a 64-bit number in memory is the upper one."""
SORT_WIDTH = 2048
"""Up to this many classes a full sort is the quickest way to rank them."""


def sort_classes(values_RV: Tensor) -> tuple[Tensor, Tensor]:
    """All classes of every row, descending, ties by smaller id: values and ids.

    >>> sort_classes(torch.tensor([[0.0, 2.0, 1.0, 2.0]]))[1]
    tensor([[1, 3, 2, 0]])
    """
    values_RV = values_RV.detach()
    if not devices.reading_is_free(values_RV.device) or values_RV.numel() == 0:
        return values_RV.sort(dim=-1, descending=True, stable=True)
    if values_RV.dtype == torch.float32:
        ids = _smallest(_pack(values_RV, torch.arange(values_RV.shape[1])), values_RV.shape[1])
        return values_RV.gather(-1, ids), ids
    # numpy's quick sort is not stable: rows with ties are done again
    ids = torch.from_numpy(np.argsort(-values_RV.numpy(), axis=-1))
    values = values_RV.gather(-1, ids)
    if values.shape[-1] > 1:
        tied = (~((values[:, :-1] - values[:, 1:]).amin(dim=-1) > 0)).nonzero().squeeze(1)
        if tied.numel():
            values[tied], ids[tied] = values_RV[tied].sort(dim=-1, descending=True, stable=True)
    return values, ids


def top_classes(values_RV: Tensor, k: int, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest classes of some rows (None: all): values and ids, descending, ties by smaller id.

    Exact also where the k-th class ties with the next one.

    >>> top_classes(torch.tensor([[0.0, 2.0, 1.0, 2.0]]), 3)[1]
    tensor([[1, 3, 2]])
    """
    values_RV = values_RV.detach()
    width = values_RV.shape[-1]
    k = min(k, width)
    free = devices.reading_is_free(values_RV.device)
    if free and k < width and width > SORT_WIDTH and values_RV.dtype == torch.float32:
        return _top_packed(values_RV, k, torch.arange(len(values_RV)) if rows is None else rows)
    if rows is not None:
        values_RV = values_RV[rows]
    if k == width or width <= SORT_WIDTH:
        values, ids = sort_classes(values_RV)
        return values[:, :k], ids[:, :k]
    if not free:
        return _top_unread(values_RV, k)
    # by id first: equal values then come out by id
    ids, following = _largest(values_RV, k)
    values, order = sort_classes(values_RV.gather(1, ids))
    ids = ids.gather(1, order)
    tied = (~(values[:, -1] > following)).nonzero().squeeze(1)
    if tied.numel():
        ids[tied], settled = _first_of_tied(values_RV, tied, ids[tied])
        tied = tied[~settled]
    if tied.numel():
        full_values, full_ids = sort_classes(values_RV[tied])
        values[tied], ids[tied] = full_values[:, :k], full_ids[:, :k]
    return values, ids


def _largest(values_RV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Ids `[R, k]` of the k largest classes, ascending, and the (k + 1)-th largest value `[R]`; k < V."""
    ids = torch.from_numpy(np.argpartition(-values_RV.numpy(), k, axis=-1)[:, : k + 1].copy())
    return ids[:, :k].sort(dim=-1).values, values_RV.gather(1, ids[:, k:]).squeeze(1)


def _top_unread(values_RV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Without looking at a value, so that a GPU is not waited for."""
    values, ids = values_RV.topk(k, dim=-1, sorted=False)
    # by id first: equal values then come out by id
    ids, order = ids.sort(dim=-1)
    values, order = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(1, order)
    # of those that equal the last one any may have come
    above_R = (values > values[:, -1:]).sum(dim=-1)
    if kernels_do(values_RV.device, values_RV.dtype):
        from mgsr.losses.row_kernels import first_equal

        first_equal(values_RV, values[:, -1], above_R, ids)
        return values, ids
    known = (values_RV == values[:, -1:]).cumsum(dim=-1, dtype=torch.int32)
    places = torch.arange(k, device=ids.device, dtype=torch.int32) - above_R.unsqueeze(1)
    first = torch.searchsorted(known, (places + 1).to(torch.int32).clamp_min_(1))
    # a row of NaN equals nothing
    return values, torch.where((places < 0) | (first >= values_RV.shape[1]), ids, first)


def _pack(values: Tensor, ids: Tensor) -> Tensor:
    """Keys that ascend where values descend and, among equal ones, ids ascend. NaN comes anywhere."""
    # + 0.0: both zeros become the same one
    bits = (values + 0.0).view(torch.int32)
    halves = torch.empty((*values.shape, 2), dtype=torch.int32)
    # written as two halves: shifting and joining 64-bit numbers takes three passes more
    torch.bitwise_xor(bits, (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_not_(), out=halves[..., HIGH])
    halves[..., 1 - HIGH] = ids
    return halves.view(torch.int64).squeeze(-1)


def _smallest(keys: Tensor, k: int) -> Tensor:
    """Ids of the k smallest keys of every row, in order; shuffles `keys`."""
    array = keys.numpy()
    if k < array.shape[1]:
        array.partition(k - 1, axis=-1)
        array = array[:, :k]
    array.sort(axis=-1)
    return torch.from_numpy(array) & 0xFFFFFFFF


def _top_packed(values_RV: Tensor, k: int, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of some rows, without copying them."""
    from mgsr.losses.ranking_loops import top_of_rows

    values_RV = values_RV.contiguous()
    array, chosen = values_RV.numpy(), rows.numpy()
    keys = np.empty((len(chosen), k + k // 2 + 64), np.int64)
    counts = np.empty(len(chosen), np.int64)

    def work(first: int, stop: int) -> None:
        top_of_rows(first, stop, array, chosen, k, keys, counts)
        keys[first:stop].sort(axis=-1)

    in_shares(work, len(chosen))
    ids = torch.from_numpy(keys[:, :k] & 0xFFFFFFFF)
    # so many of about the same value that telling them apart takes a ranking of the whole row
    crowded = torch.from_numpy((counts > keys.shape[1]).nonzero()[0])
    if crowded.numel():
        ids[crowded] = _smallest(_pack(values_RV[rows[crowded]], torch.arange(values_RV.shape[1])), k)
    return torch.take(values_RV, ids + (rows * values_RV.shape[1]).unsqueeze(1)), ids


def _first_of_tied(values_RV: Tensor, rows_r: Tensor, ids_rK: Tensor) -> tuple[Tensor, Tensor]:
    """The k largest of rows whose last one ties with others: of these the smallest ids.

    Looked for among the first classes alone, as there are plenty where all but a few classes tie: so it is in rows
    that a teacher's most probable classes and an even rest were restored to.

    Args:
        ids_rK: right down to those of the last one's value, and any of that value behind them.

    Returns:
        Ids `[r, K]`, and for which rows they are sure, `[r]`.
    """
    values_rK = values_RV[rows_r.unsqueeze(1), ids_rK]
    last_r1 = values_rK[:, -1:]
    above_r1 = (values_rK > last_r1).sum(dim=1, keepdim=True)
    k = ids_rK.shape[1]
    tied = values_RV[rows_r, : 2 * k] == last_r1
    first = tied.sort(dim=1, descending=True, stable=True).indices[:, :k]
    places = torch.arange(k, device=ids_rK.device)
    # behind the larger ones, the ties from the first on
    ids = torch.where(places < above_r1, ids_rK, first.gather(1, (places - above_r1).clamp_min(0)))
    return ids, tied.sum(dim=1) >= k - above_r1.squeeze(1)
