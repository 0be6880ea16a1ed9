"""Counts what a GPU would be waited for, on a machine without one.

Every tensor counts as lying on a GPU unless it was made without a `device`, fetched by `.cpu()`, or computed from
such alone. To look at the value of one, or to make a shape of it, is a read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

from mgsr.runtime import devices

VALUES = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__contains__"}
SHAPES = {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "equal", "allclose", "bincount"}


class HostReads(TorchFunctionMode):
    """Within it, `found` gets the name of every read."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._paused = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = (resolve_name(func) or getattr(func, "__name__", "")).rpartition(".")[2]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_host = all(getattr(tensor, "on_host", False) for tensor in given) and kwargs.get("device") is None
        if name == "to" and any(isinstance(a, (torch.device, str)) for a in args):
            on_host = False
        if not on_host and not self._paused and self._reads(name, args):
            self.found.append(name)
        result = func(*args, **kwargs)
        if name == "cpu":
            # on a CPU it would be the tensor itself
            result, on_host = result.clone(), True
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (on_host or not given):
                tensor.on_host = on_host  # type: ignore[attr-defined]
        return result

    @staticmethod
    def _reads(name: str, args: Any) -> bool:
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            return any(isinstance(i, Tensor) and i.dtype == torch.bool for i in index)
        return name in VALUES | SHAPES or (name == "where" and len(args) == 1)


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the package take the ways that it takes where reading is not free."""
    monkeypatch.setattr(devices, "reading_is_free", lambda device: False)
