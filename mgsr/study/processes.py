"""A run of a study as a process of its own, with its share of the processor or a device."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import torch

from mgsr.config.load import dump
from mgsr.config.schema import ExperimentConfig, TrainerConfig
from mgsr.runtime.errors import RunInterruptedError, UserError
from mgsr.runtime.files import write_atomically
from mgsr.runtime.processor import usable_cores
from mgsr.training.run_folder import run_folder


def threads_of(trainer: TrainerConfig, jobs: int) -> int:
    """CPU threads of a run: as configured; alone, torch's choice; otherwise its share of the processor."""
    if trainer.threads or jobs * trainer.devices == 1:
        return trainer.threads or min(torch.get_num_threads(), usable_cores())
    return max(1, usable_cores() // (jobs * trainer.devices))


def devices_here() -> list[str]:
    """The devices this process may use, by the names its children know them by."""
    allowed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return allowed or [str(number) for number in range(torch.cuda.device_count())]


def in_process(config: ExperimentConfig, jobs: int, device: str | None) -> None:
    """`mgsr train` of one run, with its share of the processor; what it says goes to `seed=<n>.log`.

    Raises:
        UserError: it failed; its last line is in the message.
    """
    folder = run_folder(config)
    queue = folder.parent / f".{folder.name}.yaml"
    write_atomically(queue, dump(config))
    log = folder.parent / f"{folder.name}.log"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads_of(config.trainer, jobs))}
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    command = [sys.executable, "-m", "mgsr", "train", str(queue), f"run_root={config.run_root}"]
    if (folder / "config.yaml").exists():
        command += ["--resume", str(folder)]
    with log.open("a", encoding="utf-8") as out:
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"# {started} {' '.join(command)}", file=out, flush=True)
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=environment, check=False)
    queue.unlink(missing_ok=True)
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if done.returncode in (130, 143) and lines:
            raise RunInterruptedError(lines[-1].removeprefix("mgsr: "), done.returncode - 128)
        raise UserError(f"{config.arm}, seed {config.seed} failed ({log}): {lines[-1] if lines else 'no output'}")
