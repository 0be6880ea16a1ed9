"""What a run's numbers come from: commit, versions, numerics version and machine."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import mgsr
from mgsr.runtime import processor


def environment() -> dict[str, Any]:
    """Commit, versions, numerics version and machine, as far as they can be told.

    `dirty`: the package has changes that the commit lacks; None outside a checkout. What lies beside the package
    does not count, as a study records its results there while it runs.
    """
    # an installed package may lie in somebody else's checkout, which does not track it
    own = _git("ls-files", "--error-unmatch", "--", "runtime/environment.py") is not None
    commit, changes = (
        (_git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", ".")) if own else (None, None)
    )
    return {
        "mgsr": mgsr.__version__,
        "commit": commit or "unknown",
        "dirty": None if changes is None else bool(changes),
        "numerics": mgsr.NUMERICS_VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "transformers": version("transformers"),
        "machine": platform.machine(),
        "cpu": processor.name(),
        "cpu_model": cpu_model(processor.described()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _git(*words: str) -> str | None:
    """What git says of the checkout that this package lies in; None where it is in none."""
    command = ["git", "-C", str(Path(__file__).resolve().parents[1]), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def cpu_model(described: Mapping[str, str]) -> str | None:
    """What tells processors of one name apart, as far as the system says it.

    >>> cpu_model({"cpu family": "25", "model": "17", "stepping": "1"})
    'family 25, model 17, stepping 1'
    """
    names = {"cpu family": "family", "model": "model", "stepping": "stepping"}
    return ", ".join(f"{names[key]} {described[key]}" for key in names if key in described) or None
