"""Reading what runs leave behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mgsr.training.checkpoint import newest_whole, read_checkpoint


def resume_content(folder: Path) -> dict[str, Any]:
    """What the newest resume point of a run folder holds."""
    newest = newest_whole(folder)
    assert newest is not None
    return read_checkpoint(newest)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What the newest resume point of a run folder holds of the student and the clip network."""
    return resume_content(folder)["state_dict"]
