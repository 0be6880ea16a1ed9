"""Where models work outside of Lightning: test evaluation, the teacher cache, exposure."""

from __future__ import annotations

import copy
import gc
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mgsr.runtime.errors import ConfigError
from mgsr.runtime.processor import has_bf16_units, usable_threads
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


NARROW = {"bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16, "16-mixed": torch.float16}


def computing_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What models compute in under a precision of Lightning's, in all phases of a run.

    Returns:
        None: in the type of their weights. float16 is for GPUs alone.
    """
    dtype = NARROW.get(precision)
    return None if dtype == torch.float16 and device.type == "cpu" else dtype


def product_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What the objective's products take their factors in, see `tiled_objective`; None: it decides itself.

    On a GPU it sees what the model computes in; of a CPU this says whether the processor gains by it.
    """
    narrow = computing_dtype(precision, device) == torch.bfloat16
    return torch.bfloat16 if narrow and device.type == "cpu" and has_bf16_units() else None


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """`trainer.matmul_precision` within the block, see `torch.set_float32_matmul_precision`."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def quick_cpu(threads: int = 0) -> Iterator[None]:
    """Within the block so many threads (0: as they are), and numbers below the smallest normal one count as 0.

    The probabilities of most classes are so small that their products fall below it, and a processor takes a
    hundred times as long for such a number. Threads that are started within the block keep doing so.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(usable_threads(threads or before))
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out: of a GPU, of the CPU's allocator, or Python's own."""
    text = str(error).lower()
    if isinstance(error, RuntimeError):
        said = ("can't allocate memory", "not enough memory", "out of memory")
        return isinstance(error, torch.OutOfMemoryError) or any(words in text for words in said)
    return isinstance(error, MemoryError)


def free_memory() -> None:
    """Give back what nothing refers to, to the device and to the machine.

    A trainer, its loops and its module refer to one another in circles, which Python may leave standing for long.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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


TYPES = "_mgsr_types"
"""Attribute of a model whose weights are held as their file has them: name -> type that they compute in."""


def move(model: Any, device: torch.device | None = None) -> Any:
    """As `model.to(device)`, in place; weights held in the type of their file get the one they compute in there.

    Args:
        device: None leaves the weights where they are; parts of a sharded model are cast where they lie.
    """
    names = model.named_parameters()
    wanted = {id(weight): kind for name, weight in names if (kind := _types(model).get(name)) is not None}
    # the narrow bytes go to the device, where they are cast
    return model._apply(lambda t: t.to(device or t.device).to(wanted.get(id(t), t.dtype)))


def settle(model: Any) -> Any:
    """Give a model the type it computes in where it is, for good: from here on its weights are cast by others."""
    move(model).__dict__.pop(TYPES, None)
    return model


def _types(model: Any) -> dict[str, torch.dtype]:
    return getattr(model, TYPES, {})


def working_type(model: Any) -> torch.dtype:
    """The type that a model's weights compute in, also while they are held in the type of their file."""
    return next(iter(_types(model).values()), next(model.parameters()).dtype)


@contextmanager
def computing_in(model: Any, dtype: torch.dtype | None) -> Iterator[Any]:
    """The model, which computes in `dtype` wherever it is `placed` within the block; None: as it does."""
    before = _types(model)
    if dtype is not None:
        setattr(model, TYPES, {name: dtype for name, _ in model.named_parameters(remove_duplicate=False)})
    try:
        yield model
    finally:
        setattr(model, TYPES, before)


class Rest:
    """A model's tensors as they lie now, in a mapped file perhaps: pages that all processes of a node share."""

    def __init__(self, model: Any) -> None:
        self._weights = [(weight, weight.data) for weight in model.parameters()]
        self._buffers = [(m._buffers, k, b) for m in model.modules() for k, b in m._buffers.items()]

    def restore(self) -> None:
        """Put them back without a copy; only of a model that nothing has changed since."""
        for weight, tensor in self._weights:
            weight.data = tensor
        for buffers, name, tensor in self._buffers:
            buffers[name] = tensor


def on_host(content: Any, known: dict[Any, torch.Tensor] | None = None) -> Any:
    """A copy of nested tensors and values in host memory; tensors that are one there stay one."""
    known = {} if known is None else known
    if isinstance(content, torch.Tensor):
        kind = content.dtype, content.device, content.shape, content.stride()
        place = content.untyped_storage().data_ptr(), content.storage_offset(), kind
        if place not in known:
            known[place] = content.detach().to("cpu", copy=True)
        return known[place]
    if isinstance(content, dict):
        same = copy.copy(content)
        same.update({name: on_host(value, known) for name, value in content.items()})
        return same
    if type(content) in (list, tuple):
        return type(content)(on_host(value, known) for value in content)
    return copy.deepcopy(content)


@contextmanager
def placed(device: torch.device, *models: Any) -> Iterator[None]:
    """The models on `device` for as long as the block lasts, then where they were before, as they were before."""
    before = [(model, next(model.parameters()).device) for model in models]
    # what lay in host memory stays there, and comes back as it was
    resting = [Rest(model) for model, place in before if place.type == "cpu"]
    for model in models:
        move(model, device)
    try:
        yield
    finally:
        for rest in resting:
            rest.restore()
        for model, place in before:
            if place.type != "cpu":
                model.to(place)


def reading_is_free(device: torch.device) -> bool:
    """Whether a number there may be looked at without waiting for all the work that the device has been given.

    Never in a function that is being compiled: its graph would end there.
    """
    return device.type == "cpu" and not torch.compiler.is_compiling()
