"""Time and memory of one callable, within one process."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

PAGE = 1 << 10


def resident(field: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (the most since the last reset), Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * PAGE
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_added(call: Callable[[], Any]) -> int:
    """Bytes by which `call` raises resident memory above where it stood, at the most.

    The kernel keeps the high-water mark; where it may not be reset, a thread watches instead.
    """
    gc.collect()
    # blocks that the allocator keeps for later would count as there already
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _watched(call, before)
    call()
    return max(0, resident("VmHWM") - before)


def _watched(call: Callable[[], Any], before: int) -> int:
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident("VmRSS"))

    thread = threading.Thread(target=watch)
    thread.start()
    call()
    done.set()
    thread.join()
    return peak[0] - before


def measure(
    call: Callable[[], Any], *, repeats: int, warm_up: int = 1, reset: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Added peak memory of one call, then seconds of `repeats` further ones; `reset` comes before every call."""
    for _ in range(warm_up):
        call()
    reset()
    added = peak_added(call)
    seconds = []
    for _ in range(repeats):
        reset()
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "added_bytes": added}
