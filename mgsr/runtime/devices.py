"""Where models work outside of Lightning: test evaluation, the teacher cache, exposure."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mgsr.runtime.errors import ConfigError


def working_device(accelerator: str) -> torch.device:
    """The device of `trainer.accelerator`; `auto` takes a GPU where there is one.

    Raises:
        ConfigError: the accelerator is not there.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    wanted = {"auto": ("cuda", "mps", "cpu"), "gpu": ("cuda", "mps")}.get(accelerator, (accelerator,))
    for name in wanted:
        if present.get(name):
            return torch.device(name)
    raise ConfigError(
        f"`trainer.accelerator` is {accelerator}, and there is none; set trainer.accelerator=cpu",
        "trainer.accelerator",
    )


def check_compiler(device: torch.device) -> None:
    """Refuse `torch.compile` where it cannot work: for a CPU it builds C++.

    Raises:
        ConfigError: there is no compiler.
    """
    wanted = os.environ.get("CXX", "g++"), "c++", "clang++"
    if device.type == "cpu" and not any(shutil.which(name) for name in wanted):
        raise ConfigError(
            "`trainer.compile` needs a C++ compiler (g++) on a CPU; set trainer.compile=false", "trainer.compile"
        )


@contextmanager
def placed(device: torch.device, *models: Any) -> Iterator[None]:
    """The models on `device` for as long as the block lasts, then where they were before."""
    before = [next(model.parameters()).device for model in models]
    for model in models:
        model.to(device)
    try:
        yield
    finally:
        for model, place in zip(models, before, strict=True):
            model.to(place)
