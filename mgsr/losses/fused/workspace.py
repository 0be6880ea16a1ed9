"""Memory that is used again for every tile.

On a CPU a fresh buffer of a few megabytes costs more than the arithmetic that fills it: the kernel hands it out
page by page, zeroed, and takes it back when it is freed.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Workspace:
    """Named buffers of one dtype on one device. What `take` returned is valid until the name is taken again.

    >>> room = Workspace(torch.device("cpu"), torch.float32)
    >>> first = room.take("logits", 2, 5).fill_(1.0)
    >>> second = room.take("logits", 2, 3)
    >>> first.data_ptr() == second.data_ptr(), tuple(second.shape)
    (True, (2, 3))
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, width: int) -> Tensor:
        """An uninitialised, contiguous `[rows, width]`; grows what the name holds where that is too small."""
        size = rows * width
        held = self._held.get(name)
        if held is None or held.numel() < size:
            # Each growth leaves a hole in the heap. So there is room for a halo row from the start, and whoever
            # needs more again gets plenty; the old buffer goes first.
            size = size + width if held is None else max(size, 2 * held.numel())
            self._held.pop(name, None)
            held = self._held[name] = torch.empty(size, device=self.device, dtype=self.dtype)
        return held[: rows * width].view(rows, width)

    def rows_of(self, name: str, source_RV: Tensor, rows: Tensor) -> Tensor:
        """A copy of some rows."""
        return torch.index_select(source_RV, 0, rows, out=self.take(name, rows.numel(), source_RV.shape[1]))
