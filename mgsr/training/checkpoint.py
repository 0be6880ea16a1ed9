"""Checkpoints on disk: written whole, checked before they are read, never a carrier of code.

checkpoints/resume-<step>.ckpt   where to go on; the two newest are kept
checkpoints/best.ckpt            the student with the best dev ROUGE-L
checkpoints/*.ckpt.sha256        their checksums
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from mgsr.runtime.errors import DataError, UserError
from mgsr.runtime.files import check, remove_checked, write_checked
from mgsr.runtime.progress import say

BEST = "best.ckpt"
KEPT = 2


def resume_path(folder: Path, step: int) -> Path:
    """Where the resume point of an optimiser step is, below a stage's folder."""
    return folder / "checkpoints" / f"resume-{step:08d}.ckpt"


def step_of(path: Path) -> int:
    return int(path.stem.removeprefix("resume-"))


def resume_points(folder: Path) -> list[Path]:
    """All of them, newest first, whether whole or not."""
    return sorted((folder / "checkpoints").glob("resume-*[0-9].ckpt"), key=step_of, reverse=True)


def newest_whole(folder: Path) -> Path | None:
    """The newest resume point that is whole; what is said of damaged ones is printed. None: there is none at all.

    Raises:
        UserError: there are some, and all are damaged.
    """
    points = resume_points(folder)
    for number, path in enumerate(points):
        try:
            check(path)
        except DataError as error:
            if number + 1 == len(points):
                raise UserError(
                    f"{error}, and there is no whole resume point before it; delete {folder} to start anew"
                ) from None
            say(f"{error}: going on from the one before, {points[number + 1].name}")
            continue
        return path
    return None


def prune(folder: Path, keep: int = KEPT) -> None:
    """Remove all resume points but the newest; called when the newest is whole."""
    for path in resume_points(folder)[keep:]:
        remove_checked(path)


def read_checkpoint(path: Path, *, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint's content: tensors and plain values.

    Raises:
        DataError: it is torn, was changed, or holds anything else; nothing of that is run.
    """
    check(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # whatever a made-up file can provoke in a reader
        carries = isinstance(error, pickle.UnpicklingError) and "eights" in str(error)
        reason = "holds more than tensors and plain values" if carries else "is no checkpoint"
        raise DataError(f"{path}: {reason}: refused; delete it, or take it from whom you trust") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: is no checkpoint: refused; delete it")
    return content


class DurableIO(CheckpointIO):
    """Lightning's checkpoints by `write_checked` and `read_checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        kind = "best" if Path(path).name == BEST else "checkpoint"
        write_checked(Path(path), lambda file: torch.save(checkpoint, file), kind=kind)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path), map_location=map_location)

    def remove_checkpoint(self, path: Any) -> None:
        remove_checked(Path(path))
