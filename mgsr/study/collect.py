"""The result file of a finished run, from its run folder: metrics, every test row's score, thinned curves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgsr.runtime.errors import DataError
from mgsr.study.result_checks import what_is_wrong
from mgsr.study.results import plain
from mgsr.training.run_folder import ENVIRONMENT, MEASURED_AGAIN, METRICS, START, read_run_file

POINTS = 200
CURVES = ("val/", "cost/", "train/loss", "dac/", "scrg/", "grad_norm/")


def collect(
    folder: Path, study: str, arm: str, overrides: Mapping[str, Any], found: Mapping[str, str]
) -> dict[str, Any]:
    """The result file of a finished run, from its run folder.

    Args:
        found: from `hashes`.

    Raises:
        DataError: a file of the folder is broken, or they do not belong together.
    """
    metrics, environment = read_run_file(folder, METRICS), read_run_file(folder, ENVIRONMENT)
    result = {
        "study": study,
        "arm": arm,
        "seed": metrics["seed"],
        "hashes": dict(found),
        "overrides": plain(overrides),
        "environment": environment,
        "start": read_run_file(folder, START, missing={}),
        "metrics": _rounded({k: v for k, v in metrics.items() if k not in ("experiment", "arm", "seed")}),
        "scores": {path.stem: _scores(path) for path in sorted((folder / "predictions").glob("*.jsonl"))},
        "curves": read_curves(folder),
    }
    wrong = what_is_wrong(result)
    if wrong:
        raise DataError(
            f"{folder}: what it holds makes no whole result ({wrong}); {MEASURED_AGAIN.format(folder)}"
        )
    return result


def _scores(path: Path) -> list[float]:
    """ROUGE-L of every example, mean over sampling seeds, in the order of the set."""
    totals: dict[Any, list[float]] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            record = json.loads(line)
            totals.setdefault(record["id"], []).append(float(record["rouge_l"]))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            again = MEASURED_AGAIN.format(path.parents[1])
            raise DataError(f"{path}:{number}: not a prediction and its score; {again}") from None
    return [round(sum(values) / len(values), 2) for values in totals.values()]


def read_curves(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Curves of a run from TensorBoard's events: name -> `steps` and `values`; of a step seen twice, the last."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    curves = {}
    for name in sorted(events.Tags()["scalars"]):
        if name.startswith(CURVES):
            seen = {point.step: point.value for point in events.Scalars(name) if math.isfinite(point.value)}
            points = sorted(seen.items())
            kept = [points[i] for i in _thinned(len(points), POINTS)]
            curves[name] = {"steps": [s for s, _ in kept], "values": [_significant(v, 5) for _, v in kept]}
    return curves


def _thinned(count: int, points: int) -> list[int]:
    """At most so many indices, evenly spread, the first and the last among them.

    >>> _thinned(5, 3)
    [0, 2, 4]
    """
    if count <= points:
        return list(range(count))
    return sorted({round(i * (count - 1) / (points - 1)) for i in range(points)})


def _significant(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _rounded(value: Any) -> Any:
    """Eight significant digits, all the way down: what is beyond is noise in a diff."""
    if isinstance(value, float):
        # JSON has no nan
        return _significant(value, 8) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value
