"""The compiled loop that finds the largest classes of rows of logits, for a CPU in float32; `ranking` calls it.

Shapes: R rows, V classes, r chosen rows.
"""

# what numba compiles has types of its own
# mypy: ignore-errors

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from mgsr.losses.row_loops import FAST, ORDERED, F, largest

U = np.uint64
"""Of indices: of every signed one numba asks whether it counts from the end."""
STRIDES = 8
"""Classes of which only the largest is looked at first."""
FARTHEST = 60.0
"""Classes this far below the largest are not looked for by halving."""
HALVINGS = 30


@intrinsic
def _bits_of_float(typing: Any, value: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.int32))

    return types.int32(types.float32), build


@njit(fastmath=ORDERED)
def _peaks(row, peaks):
    """The largest of every `STRIDES` classes that lie so far apart as there are peaks."""
    count = peaks.shape[0]
    strides = row.shape[0] // count
    for b in range(count):
        peaks[b] = row[b]
    for j in range(1, strides):
        for b in range(count):
            value = row[j * count + b]
            peaks[b] = value if value > peaks[b] else peaks[b]


@njit(fastmath=FAST)
def _reaching(values, least):
    """How many are at least `least`; counted in 32 bits, of which a register holds twice as many as of 64."""
    count = np.int32(0)
    for k in range(values.shape[0]):
        count += np.int32(values[k] >= least)
    return count


@njit
def _threshold(values, k, room):
    """A number that at least `k` of the values reach, and no more than `room` where halving finds it."""
    high = largest(values)
    low = max(-largest(-values), high - F(FARTHEST))
    if _reaching(values, low) < k:
        # some are lower still, or no numbers
        return F(-np.inf)
    for _ in range(HALVINGS):
        middle = low + (high - low) * F(0.5)
        count = _reaching(values, middle)
        if count < k:
            high = middle
        else:
            low = middle
            if count <= room:
                break
    return low


@njit
def _key(value, k):
    """Ascends where values descend and, among equal ones, ids ascend."""
    bits = _bits_of_float(value + F(0.0))
    order = ~bits if bits >= 0 else bits & types.int32(0x7FFFFFFF)
    return (types.int64(order) << 32) | types.int64(k)


@njit(nogil=True, cache=True)
def top_of_rows(first, stop, logits, rows, k, keys, counts):
    """Keys `[r, C]` of classes among which are the `k` largest of rows `first` to `stop` of `rows`; C > k.

    A key ascends where values descend and, among equal ones, ids ascend; the id is its lower half. Places that are
    not needed hold the largest number; of rows whose `counts [r]` is above C nothing is written. Of the largest
    of every few classes halving finds a value that `k` of them reach; all classes that reach it are taken.
    """
    width, room = logits.shape[1], keys.shape[1]
    strides = STRIDES
    while strides > 1 and 2 * k >= width // strides:
        strides //= 2
    count = width // strides
    peaks = np.empty(count, np.float32)
    blocks = np.empty(count, np.uint32)
    places = np.empty(width + 1, np.uint32)
    tied_keys = np.empty(width + 1, np.int64)
    for i in range(first, stop):
        row = logits[rows[i]]
        _peaks(row, peaks)
        least = _threshold(peaks, k, k + k // 8)
        # written in any case and kept where it reaches: a processor guesses badly which ones do
        reaching = U(0)
        for b in range(count):
            blocks[reaching] = b
            reaching += U(peaks[b] >= least)
        many = U(0)
        for n in range(reaching):
            for j in range(strides):
                place = U(j * count) + U(blocks[U(n)])
                places[many] = place
                many += U(row[place] >= least)
        for place in range(strides * count, width):
            places[many] = place
            many += U(row[place] >= least)
        found = types.int64(many)
        if found > room:
            above = 0
            for n in range(many):
                above += row[places[U(n)]] > least
            if above <= room:
                # many classes tie with the last one: those with the smallest ids are wanted
                found = _above_and_first(row, least, k, tied_keys)
                if found <= room:
                    keys[i, :found] = tied_keys[:found]
        elif found >= k:
            for n in range(many):
                place = places[U(n)]
                keys[i, n] = _key(row[place], place)
        # where a row holds NaN too few may be found
        counts[i] = found if found >= k else room + 1
        if k <= found <= room:
            keys[i, found:] = np.iinfo(np.int64).max


@njit
def _above_and_first(row, least, k, keys):
    """Keys of the classes above `least`, and of the first that equal it, `k` in all or more; returns how many."""
    found = 0
    for place in range(row.shape[0]):
        if row[place] > least:
            keys[found] = _key(row[place], place)
            found += 1
    for place in range(row.shape[0]):
        if found >= k:
            break
        if row[place] == least:
            keys[found] = _key(row[place], place)
            found += 1
    return found
