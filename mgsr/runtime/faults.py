"""Named points of a run at which a test kills the process, tears a file or has the disk fail.

`MGSR_FAILPOINTS="checkpoint.written=kill@2,shard.half=tear"` arms them before the process starts. Here the process
is killed at the second visit of the first point. At the first visit of the other one the file is cut in half, and
the process killed. `kill@2#1` is for rank 1 alone. With nothing armed a visit costs one look at a variable.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter
from pathlib import Path

_ACTIONS = ("kill", "tear", "stop", "announce", "full", "oom")
VARIABLE = "MGSR_FAILPOINTS"

_armed: dict[str, tuple[str, int]] = {}
_visits: Counter[str] | None = None


def reach(name: str, path: Path | None = None) -> None:
    """Pass a point; `path` is the file that is being written there."""
    if _visits is not None:
        _visits[name] += 1
        _act(name, path)


def arm(text: str) -> None:
    """Arm points: `name=action@visit#rank`, comma-separated; `@visit` counts from 1, both may be left out.

    Raises:
        ValueError: an unknown action, or no number behind the @.
    """
    global _visits  # noqa: PLW0603 (one process, one set of points)
    _armed.clear()
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, rest = item.partition("=")
        rest, _, rank = rest.partition("#")
        action, _, visit = rest.partition("@")
        if action not in _ACTIONS:
            raise ValueError(
                f"{VARIABLE}: {item!r} is not name=action@visit with an action of {', '.join(_ACTIONS)}"
            )
        if rank and rank != os.environ.get("RANK", "0"):
            continue
        _armed[name] = (action, int(visit or 1))
    _visits = Counter()


def visits() -> dict[str, int]:
    """How often each point was passed since `arm`."""
    return dict(_visits or {})


def _act(name: str, path: Path | None) -> None:
    assert _visits is not None
    action, visit = _armed.get(name, ("", 0))
    if _visits[name] != visit:
        return
    if action == "tear" and path is not None:
        os.truncate(path, path.stat().st_size // 2)
    if action in ("kill", "tear"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGTERM)
    elif action == "announce":
        os.kill(os.getpid(), signal.SIGUSR1)
    elif action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path or name))
    elif action == "oom":
        import torch

        raise torch.OutOfMemoryError(f"out of memory at {name}")


if os.environ.get(VARIABLE):
    arm(os.environ[VARIABLE])
