"""What a report reads of the processes of one case: medians of seconds, rates and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

MIB = 1 << 20

Runs = Sequence[Mapping[str, Any]]


def seconds(runs: Runs) -> float:
    """Median over processes of each process's median."""
    return median(median(run["seconds"]) for run in runs)


def spread(runs: Runs) -> str:
    """Least to most seconds of a process."""
    each = [median(run["seconds"]) for run in runs]
    return f"{min(each):.3g} to {max(each):.3g}" if len(each) > 1 else "one run"


def memory(runs: Runs) -> float:
    """Added MiB, median over processes."""
    return median(run["added_bytes"] for run in runs) / MIB


def rate(runs: Runs) -> float:
    """Tokens per second, median over processes."""
    return median(run["tokens"] / median(run["seconds"]) for run in runs)


def per_process(runs: Runs, above: str, below: str) -> list[float]:
    """The ratio of two figures that every process took itself."""
    return [run[above][0] / run[below][0] for run in runs]
