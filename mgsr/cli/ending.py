"""What `mgsr train` ends with: figures, the checkpoint that was taken, and the next commands, ready to copy."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mgsr.cli.console import run_table, show
from mgsr.runtime.errors import UserError
from mgsr.training.checkpoint import BEST, read_checkpoint
from mgsr.training.trainer import chosen_checkpoint


def show_ending(metrics: Mapping[str, Any], folder: Path) -> None:
    """Print it for a run that is complete, whether now or long ago.

    Args:
        metrics: of `metrics.json`; nothing is measured here.
        folder: of the run.
    """
    show(run_table(metrics))
    for name, text in _lines(metrics, folder):
        print(f"{name:<10} {text}")


def _lines(metrics: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, str]]:
    taken = _checkpoint(metrics, folder)
    if taken:
        yield "checkpoint", taken
    run = shlex.quote(str(folder))
    yield "written to", str(folder)
    if "scrg" in metrics:
        yield "texts", f"mgsr texts {run}"
    yield "evaluate", f"mgsr evaluate {run} --data my_rows.jsonl"
    yield "export", f"mgsr export {run} exported/"
    yield "curves", f"tensorboard --logdir {run}"


def _checkpoint(metrics: Mapping[str, Any], folder: Path) -> str:
    """Which student the figures are of; nothing where its checkpoint has been taken away since."""
    try:
        path = chosen_checkpoint(folder)
        content = {} if path is None else read_checkpoint(path, map_location="meta")
    except UserError:
        return ""
    if path is None or "global_step" not in content:
        return ""
    step = f"step {content['global_step']} of {metrics['steps']}"
    if path.name != BEST:
        return f"{path.name}: the last student, {step} (no dev set has chosen one)"
    best = (metrics.get("val") or {}).get("best_rouge_l")
    score = "" if best is None else f", dev ROUGE-L {best:.2f}"
    return f"{path.name}: {step}, epoch {content['epoch'] + 1}{score}, the best on the dev set"
