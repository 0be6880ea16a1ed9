"""Kill a run, take it up again, compare it with one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mgsr.config.load import load_config
from mgsr.config.schema import ExperimentConfig
from mgsr.rounds.store import read_manifest
from mgsr.runtime import faults
from mgsr.runtime.files import write_atomically
from mgsr.study.pool import read_curves
from mgsr.training.checkpoint import BEST, newest_whole, read_checkpoint
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train

# two rounds, two looks at the dev set, three resume points and more; dropout, so that the draws matter too
SMALL = """
experiment: torture
arm: mgsr
data:
  train: synthetic
  template: plain
  max_length: 80
  max_prompt_length: 64
  synthetic: {teacher_rows: 16, train_rows: 12, dev_rows: 3, test_rows: 3, vocab_size: 270}
teacher:
  source: init
  architecture: {family: llama, hidden_size: 8, num_layers: 1, num_heads: 2, intermediate_size: 16}
  sft: {enabled: true, max_steps: 2, batch_size: 8, micro_batch_size: 8, lr: 1.0e-2, seed: 0}
student:
  source: init
  architecture: {family: gpt2, hidden_size: 8, num_layers: 1, num_heads: 2, intermediate_size: 16, dropout: 0.1}
  sft: {enabled: true, max_steps: 2, batch_size: 8, micro_batch_size: 8, lr: 1.0e-2}
scrg: {max_new_tokens: 5, batch_size: 2, shard_size: 2}
clip: {objective: priced}
train: {epochs: 2, batch_size: 4, micro_batch_size: 2, lr: 1.0e-2}
evaluation: {seeds: [10], batch_size: 4, max_new_tokens: 5}
trainer: {accelerator: cpu, checkpoint_every_n_steps: 2, log_every_n_steps: 1, grad_norm_every_n_steps: 4,
          histogram_every_n_steps: 4}
"""


# rounds that last two epochs, a replay buffer, a cached teacher, curves that are thinned
OTHER = (
    "mixture.kind=adaptive",
    "mixture.student_fraction_start=0.5",
    "mixture.adaptive_eps=0.0",
    "scrg.every_n_epochs=2",
    "train.epochs=4",
    "objective.teacher_top_k=20",
    "trainer.log_every_n_steps=5",
    "evaluation.val_every_n_epochs=2",
)
CONFIGS: dict[str, tuple[str, ...]] = {"plain": (), "replay": OTHER}


def small_config(root: Path, *overrides: str) -> ExperimentConfig:
    root.mkdir(parents=True, exist_ok=True)
    path = root / "torture.yaml"
    # ranks write it side by side, and none may read half of it
    write_atomically(path, SMALL)
    return load_config(path, [f"run_root={root}/runs", *overrides])


def forked(work: Callable[[], None], log: Path, after: float | None = None) -> int:
    """Run `work` in a fork of this process; returns its exit code, negative for the signal that ended it.

    Args:
        log: what it prints goes there.
        after: seconds until it is killed; None: it is left alone.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            out = log.open("a", buffering=1)
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            # pytest puts objects of its own there
            sys.stdout = sys.stderr = out
            torch.set_num_threads(1)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    deadline = None if after is None else time.monotonic() + after
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            deadline = None
        time.sleep(0.002)


def one_run(config: ExperimentConfig, points: str = "") -> None:
    """`mgsr train`, or `--resume` where the run has begun, with fail points armed."""
    faults.arm(points)
    train(config, resume=(run_folder(config) / "config.yaml").exists())


def count_visits(config: ExperimentConfig, into: Path) -> None:
    """An uninterrupted run that notes how often it passed each fail point."""
    one_run(config)
    into.write_text(json.dumps(faults.visits()))


def differences(expected: Path, found: Path) -> list[str]:
    """Everything in which two finished run folders differ, times and rates aside."""
    wrong: list[str] = []
    left, right = newest_whole(expected), newest_whole(found)
    if left is None or right is None:
        return ["no resume point"]
    for name, a, b in (
        ("checkpoint", read_checkpoint(left), read_checkpoint(right)),
        ("best", *(read_checkpoint(f / "checkpoints" / BEST)["state_dict"] for f in (expected, found))),
        ("metrics", *(json.loads((f / "metrics.json").read_text()) for f in (expected, found))),
        ("curves", *(read_curves(f) for f in (expected, found))),
        ("rounds", *(_rounds(f) for f in (expected, found))),
        ("predictions", *((f / "predictions/test.jsonl").read_bytes() for f in (expected, found))),
    ):
        wrong += [f"{name}{where}" for where in unequal(a, b)]
    cache = found.parents[2] / "cache"
    # a stage that is killed between saving its model and cleaning up leaves its own folder, which nothing reads
    left_over = [*found.rglob(".*.tmp"), *cache.glob(".*")]
    wrong += [f"left over: {path}" for path in left_over]
    return wrong


def _rounds(folder: Path) -> dict[str, Any]:
    texts: dict[str, Any] = {}
    for path in sorted((folder / "scrg").rglob("*.jsonl")):
        texts[str(path.relative_to(folder))] = path.read_bytes()
    for path in sorted((folder / "scrg").glob("round=*")):
        texts[path.name] = read_manifest(path)
    return texts


def _timed(name: Any) -> bool:
    return isinstance(name, str) and ("seconds" in name or name.endswith("_per_second"))


def unequal(a: Any, b: Any, where: str = "") -> list[str]:
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and torch.equal(a, b) else [where]
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = {k for k in (*a, *b) if not _timed(k)}
        found = [f"{where}.{k}" for k in keys if (k in a) != (k in b)]
        return found + [w for k in keys if k in a and k in b for w in unequal(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, Sequence) and not isinstance(a, (str, bytes)) and len(a) == len(b):
        return [w for i, (x, y) in enumerate(zip(a, b, strict=True)) for w in unequal(x, y, f"{where}[{i}]")]
    same = a == b or (isinstance(a, float) and isinstance(b, float) and a != a and b != b)
    return [] if same else [where]
