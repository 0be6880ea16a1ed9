"""Which device a run works on, and when memory has run out."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from mgsr.runtime import progress
from mgsr.runtime.devices import TYPES, is_out_of_memory, move, placed, working_device, working_type
from mgsr.runtime.errors import ConfigError


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    progress.say_once.cache_clear()


def test_auto_is_the_cpu_of_a_mac_and_says_so_once(mac: None, capsys: pytest.CaptureFixture[str]) -> None:
    """MPS has no float64, which draws are made in."""
    assert [working_device("auto").type for _ in range(3)] == ["cpu"] * 3
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "float64" in said
    assert working_device("cpu").type == "cpu" and not capsys.readouterr().out


@pytest.mark.parametrize("accelerator", ["mps", "gpu"])
def test_a_gpu_of_a_mac_is_refused(accelerator: str, mac: None) -> None:
    with pytest.raises(
        ConfigError, match=rf"^trainer.accelerator={accelerator}: .*float64.* trainer.accelerator=cpu"
    ):
        working_device(accelerator)


@pytest.mark.parametrize(
    ("setting", "typed"), [("trainer.accelerator=", "trainer.accelerator=cpu"), ("--device ", "--device cpu")]
)
def test_a_gpu_that_is_not_there_names_what_asked_for_it(
    setting: str, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"^{setting}cuda: there is none; take {typed}$"):
        working_device("cuda", setting)
    assert working_device("auto").type == "cpu"


def too_much(kind: str) -> BaseException:
    size = 10**15
    try:
        torch.empty(size) if kind == "torch" else np.ones(size) if kind == "numpy" else bytearray(size)
    except (RuntimeError, MemoryError) as error:
        return error
    raise AssertionError("this machine has a petabyte of memory")


def test_memory_that_has_run_out_is_known_by_all_its_names() -> None:
    for kind in ("torch", "numpy", "python"):
        assert is_out_of_memory(too_much(kind)), kind
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    # a budget of cached slots, the disk, and any other error
    for other in (RuntimeError("size mismatch"), OSError("out of memory"), ValueError("out of memory")):
        assert not is_out_of_memory(other)


def test_products_too_small_are_zero_on_every_thread() -> None:
    """In a process of its own: threads that were there before stay as they were."""
    program = (
        "import torch; from mgsr.runtime.devices import quick_cpu; "
        "block = quick_cpu(2); block.__enter__(); x = torch.full((1 << 22,), 1e-30); assert x[0] > 0; "
        "print(int((x * 1e-10).count_nonzero())); block.__exit__(None, None, None); print(float(x[0] * 1e-10) > 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True"]


def test_weights_in_the_type_of_their_file_are_cast_where_they_compute_and_lie_there_again() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)).to(torch.bfloat16)
    model[1].weight = torch.nn.Parameter(torch.ones(2, 2))
    model.register_buffer("frequencies", torch.ones(2, dtype=torch.float64))
    kinds = {name: torch.float32 for name, _ in model.named_parameters()}
    setattr(model, TYPES, kinds)
    before = [weight.data_ptr() for weight in model.parameters()]
    own = list(model.parameters())
    assert working_type(model) == torch.float32
    with placed(torch.device("cpu"), model):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        # what is no weight keeps its type, and what has it already its place
        assert model.frequencies.dtype == torch.float64 and model[1].weight.data_ptr() == before[2]
    assert [weight.data_ptr() for weight in model.parameters()] == before
    assert next(model.parameters()).dtype == torch.bfloat16 and all(
        a is b for a, b in zip(model.parameters(), own, strict=True)
    )
    move(model)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_a_visit_to_a_device_brings_back_the_very_tensors() -> None:
    model = torch.nn.Linear(3, 2)
    before = model.weight.data_ptr()
    with pytest.raises(RuntimeError, match="within"), placed(torch.device("cpu"), model):
        move(model.double())
        raise RuntimeError("within")
    assert model.weight.data_ptr() == before and model.weight.dtype == torch.float32
