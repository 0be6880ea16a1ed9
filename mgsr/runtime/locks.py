"""One process per run folder: the lock goes with the process that holds it, however that ends."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mgsr.runtime.errors import UserError
from mgsr.runtime.files import refused
from mgsr.runtime.json_files import read_json
from mgsr.runtime.progress import say

NAME, OWNER = ".lock", ".lock.owner"


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold `folder` for as long as the block lasts.

    Args:
        wait: until whoever has it is done (a cache), instead of refusing (a run).

    Raises:
        UserError: another process has it, or the folder cannot be written to.
    """
    try:
        try:
            lock = _acquired(folder, timeout=0)
        except Timeout:
            if not wait:
                raise UserError(
                    f"{folder}: in use by {_owner(folder)}; wait for it, or choose another arm, seed or run_root"
                ) from None
            say(f"{folder}: waiting for {_owner(folder)}, which is making it")
            lock = _acquired(folder, timeout=-1)
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        (folder / OWNER).write_text(json.dumps(owner), encoding="utf-8")
    except OSError as error:
        raise refused(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def _acquired(folder: Path, *, timeout: float) -> FileLock:
    """The lock, held. Whoever had it may have removed the folder with all that is in it: it is made again."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / NAME)
        try:
            lock.acquire(timeout=timeout)
            return lock
        except FileNotFoundError:
            continue


def _owner(folder: Path) -> str:
    try:
        owner = read_json(folder / OWNER, {"pid": int, "host": str}, "")
        return f"process {owner['pid']} on {owner['host']}"
    except UserError:
        return "another process"
