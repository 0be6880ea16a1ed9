from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mgsr.losses import kernel_check
from mgsr.losses.fused.rows import rows_by
from mgsr.losses.kernel_check import kernels_do, kernels_work

INTERPRETED = Path(__file__).with_name("interpreted.py")


def test_the_kernels_in_the_interpreter() -> None:
    """They run where there is no GPU, in a process that asks for it before Triton is imported."""
    pytest.importorskip("triton", reason="Triton is there for Linux on x86_64 only")
    root = INTERPRETED.parents[2]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    options = ["-q", "-x", "--noconftest", "-p", "no:cacheprovider", "-W", "ignore"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(INTERPRETED)],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@pytest.mark.parametrize("found", [RuntimeError("no compiler\nand more"), ["span sums", "ranking"]])
def test_kernels_that_do_not_work_are_not_used_and_one_line_says_so(
    found: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def differences(device: torch.device) -> object:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(kernel_check, "differences", differences)
    kernels_work.cache_clear()
    kernel_check.say_once.cache_clear()
    device = torch.device("cuda")
    assert not kernels_do(device, torch.float32) and not kernels_do(device, torch.float32)
    assert rows_by(device, torch.float32, 50_000, 2048, "l2_squared", "hadamard") is None
    said = capsys.readouterr().out
    reason = "RuntimeError: no compiler" if isinstance(found, Exception) else "span sums, ranking"
    assert said.count("\n") == 1 and f"({reason})" in said
    kernels_work.cache_clear()


def test_where_kernels_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_check, "kernels_work", lambda device: True)
    cuda = torch.device("cuda")
    assert kernels_do(cuda, torch.float32)
    assert not kernels_do(cuda, torch.float64) and not kernels_do(torch.device("cpu"), torch.float32)
    by = rows_by(cuda, torch.float32, 50_000, 2048, "l2_squared", "hadamard")
    assert by is not None and by.__name__.endswith("kernel_rows")
    assert rows_by(cuda, torch.float32, 50_000, 2048, "l2", "hadamard") is None
