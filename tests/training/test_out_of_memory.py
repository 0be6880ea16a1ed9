"""Training that memory does not suffice for: one line with the stage and what to lower, and a run that goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mgsr.cli import main as cli
from mgsr.runtime import faults
from mgsr.training.module import DistillationModule

NO_SFT = ("teacher.sft.enabled=false", "student.sft.enabled=false")


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm("")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert cli.main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("mgsr: error: ") and error.count("\n") == 1 and "Traceback" not in error, error
    return error


def test_every_stage_names_its_own_keys_and_the_run_goes_on(
    tiny_file: Path, shared_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train", str(tiny_file), f"run_root={shared_root}", "experiment=memory", "train.epochs=1")
    # the teacher is there; nobody has made this student yet
    assert cli.main([*words, "arm=whole"]) == 0
    sft = ("student.sft.seed=77", "student.sft.max_steps=2", "student.sft.micro_batch_size=4")
    faults.arm("step.begin=oom@1")
    error = refused(capsys, *words, *sft)
    assert "student SFT: out of memory at step 0; lower student.sft.micro_batch_size (now 4)" in error
    # two steps of four micro-batches, then the second step of the main job
    faults.arm("step.begin=oom@10")
    error = refused(capsys, *words, *sft, "--resume", "auto")
    assert "memory/mgsr seed 0: out of memory at step 1; lower train.micro_batch_size (now 8), set " in error
    assert "train.gradient_checkpointing=true" in error
    faults.arm("")
    assert cli.main([*words, *sft, "--resume", "auto"]) == 0


@pytest.mark.parametrize("kind", ["torch", "python"])
def test_the_memory_of_a_cpu(
    kind: str,
    tiny_file: Path,
    shared_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Allocators name it each in its own way; what is at its least already is not to be lowered."""

    def step(self: DistillationModule, batch: object, index: int) -> torch.Tensor:
        return torch.empty(10**15) if kind == "torch" else torch.tensor(bytearray(10**15))

    words = ("train", str(tiny_file), f"run_root={shared_root}", f"experiment=memory_{kind}", "train.epochs=1")
    monkeypatch.setattr(DistillationModule, "training_step", step)
    error = refused(capsys, *words, "train.micro_batch_size=1", "train.gradient_checkpointing=true", *NO_SFT)
    assert error.endswith("seed 0: out of memory at step 0; shorten data.max_length\n")


def test_memory_that_runs_out_outside_of_training(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli._COMMANDS, "doctor", lambda arguments: torch.empty(10**15).numel())
    assert "out of memory; take smaller models or batches" in refused(capsys, "doctor", str(tiny_file))
    monkeypatch.setitem(cli._COMMANDS, "doctor", lambda arguments: len(bytearray(10**15)))
    assert "out of memory" in refused(capsys, "doctor", str(tiny_file))
