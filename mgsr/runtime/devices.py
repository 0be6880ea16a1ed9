"""Where models work outside of Lightning: test evaluation, the teacher cache, exposure."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mgsr.runtime.errors import ConfigError
from mgsr.runtime.processor import usable_threads
from mgsr.runtime.progress import say_once


def working_device(accelerator: str, setting: str = "trainer.accelerator=") -> torch.device:
    """The device of `trainer.accelerator`; `auto` takes an NVIDIA or AMD GPU where there is one.

    Apple's MPS is never taken: it has no float64, in which tokens are drawn.

    Args:
        setting: what was set to `accelerator`, as one types it before a value.

    Raises:
        ConfigError: the accelerator is not there, or is MPS.
    """
    if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        return torch.device("cuda")
    apple = torch.backends.mps.is_available()
    if accelerator in ("auto", "cpu"):
        if apple and accelerator == "auto":
            say_once("this machine's GPU (MPS) has no float64, in which tokens are drawn: working on the CPU")
        return torch.device("cpu")
    reason = (
        "MPS has no float64, in which tokens are drawn" if apple and accelerator != "cuda" else "there is none"
    )
    keys = ["trainer.accelerator"] if setting.startswith("trainer.accelerator") else []
    raise ConfigError(f"{setting}{accelerator}: {reason}; take {setting}cpu", *keys)


@contextmanager
def quick_cpu(threads: int = 0) -> Iterator[None]:
    """So many threads (0: as they are), and numbers below the smallest normal one count as 0 within the block.

    The probabilities of most classes are so small that their products fall below it, and a processor takes a
    hundred times as long for such a number. Threads that are started within the block keep doing so.
    """
    torch.set_num_threads(usable_threads(threads or torch.get_num_threads()))
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out: of a GPU, of the CPU's allocator, or Python's own."""
    text = str(error).lower()
    if isinstance(error, RuntimeError):
        said = ("can't allocate memory", "not enough memory", "out of memory")
        return isinstance(error, torch.OutOfMemoryError) or any(words in text for words in said)
    return isinstance(error, MemoryError)


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


def reading_is_free(device: torch.device) -> bool:
    """Whether a number there may be looked at without waiting for all the work that the device has been given."""
    return device.type == "cpu"
