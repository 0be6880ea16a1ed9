"""The pool of recorded runs: one file per run, whatever study asked for it. A study is a view on the pool.

    <pool>/<configuration>-<data>-<seed>-<start>.json

The parts are fingerprints: of the configuration (names, places and cosmetics aside) with the numerics version; of
the content of all rows and of the teacher's source; and of the student that the run began with. The same run made
twice counts once: the first one stays.

A file holds the run's metrics, its curves thinned to `POINTS`, and what its numbers came from.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import mgsr
from mgsr.config.load import filled, fingerprint, flat_tree
from mgsr.config.own_functions import own_code
from mgsr.config.schema import DataConfig, ExperimentConfig
from mgsr.data.splits import SPLITS, read_split, rows_fingerprint
from mgsr.models.model_cache import content_of
from mgsr.runtime.errors import DataError
from mgsr.runtime.files import write_atomically
from mgsr.runtime.json_files import Between, Each, ListOf, Maybe, read_json
from mgsr.training.run_folder import ENVIRONMENT, METRICS, NEUTRAL, SHAPES, START, TEST_FIGURES, read_run_file

POINTS = 200
CURVES = ("val/", "cost/", "train/loss", "dac/", "scrg/", "grad_norm/")
NAMES = ("experiment", "arm", "seed")
FILE = re.compile(r"([0-9a-f]{12})-([0-9a-f]{8})-(\d+)-([0-9a-f]{8})\.json")
RESULT = {
    "config": str,
    "data": str,
    "seed": int,
    "start": Each((str, None)),
    "settings": dict,
    "environment": SHAPES[ENVIRONMENT],
    "metrics": {
        **{name: shape for name, shape in SHAPES[METRICS].items() if name not in NAMES},
        **dict.fromkeys(("teacher", "sft_start"), Maybe(Each(TEST_FIGURES))),
        "floors": Maybe(Each(Each({"rouge_l": Between(0, 100)}))),
    },
    "curves": Each({"steps": ListOf(int), "values": ListOf(float)}),
    "first": {"study": str, "arm": str},
}
"""What a file of the pool has to hold."""
OWN = "+"
OVERFLOWING = 1e30
"""No count of a run comes near it, FLOPs included; sums of larger ones overflow."""
REMEDY = "restore it, or delete it to have it run again"
ASIDE = {*NAMES, *NEUTRAL, "data.train", "data.dev", "data.test", "data.test_sets"}
"""Keys without a part in a fingerprint: they change no figure, or stand for files that count by their content."""


class Key(NamedTuple):
    """What a run is known by before it has begun, its data aside: a report needs no rows."""

    config: str
    seed: int


def settings_of(config: ExperimentConfig) -> dict[str, Any]:
    """The keys of a configuration that have a part in the numbers and are not at their default.

    A run of a pool that is read stands as its fingerprint, not as the place of its file.
    """
    tree, defaults = flat_tree(asdict(config)), flat_tree(asdict(ExperimentConfig()))
    if recorded := FILE.fullmatch(Path(config.clip.run).name):
        tree["clip.run"] = recorded[1]
    return {name: _plain(value) for name, value in tree.items() if name not in ASIDE and value != defaults[name]}


def key_of(config: ExperimentConfig) -> Key:
    """The run's fingerprint and seed."""
    names = sorted(config.data.test_sets)
    return Key(fingerprint(settings_of(config), names, mgsr.NUMERICS_VERSION), config.seed)


def data_of(config: ExperimentConfig) -> str:
    """Fingerprint of all rows and of the teacher as it comes; files count by their content.

    Behind a plus that of what an arm alone may have: a student from elsewhere, and code of the user's own.
    """
    teacher = content_of(config.teacher) if config.teacher.source else ""
    rows = _data_of(json.dumps(asdict(config.data), sort_keys=True), teacher)
    own = {"student": content_of(config.student), **own_code(config)}
    return f"{rows}{OWN}{fingerprint(own)}" if any(own.values()) else rows


@lru_cache(maxsize=32)
def _data_of(content: str, teacher: str) -> str:
    data = filled(DataConfig, flat_tree(json.loads(content), "data."), "data.")
    rows = {name: rows_fingerprint(read_split(data, name)) for name in (*SPLITS, *sorted(data.test_sets))}
    return fingerprint(rows, teacher)


def shared_part(data: str) -> str:
    """What all arms of a study have in common: the rows and the teacher."""
    return data.partition(OWN)[0]


def _plain(value: Any) -> Any:
    """As JSON can hold it: infinities as YAML writes them."""
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
    return value


def collect(folder: Path, config: ExperimentConfig) -> dict[str, Any]:
    """The pool's content for a finished run, from its run folder.

    Raises:
        DataError: a file of the folder is broken, or missing.
    """
    metrics = read_run_file(folder, METRICS)
    return {
        "config": key_of(config).config,
        "data": data_of(config),
        "seed": config.seed,
        "start": read_run_file(folder, START),
        "settings": settings_of(config),
        "environment": read_run_file(folder, ENVIRONMENT),
        "metrics": rounded({name: value for name, value in metrics.items() if name not in NAMES}),
        "curves": read_curves(folder),
        "first": {"study": config.experiment, "arm": config.arm},
    }


def path_in(pool: Path, result: Mapping[str, Any]) -> Path:
    """Where a run is recorded."""
    start, data = fingerprint(result["start"]["student"])[:8], result["data"]
    data = (fingerprint(data) if OWN in data else data)[:8]
    return pool / f"{result['config']}-{data}-{result['seed']}-{start}.json"


def record(pool: Path, result: Mapping[str, Any]) -> Path:
    """Add a run, unless it is there."""
    path = path_in(pool, result)
    if not path.exists():
        text = json.dumps(result, sort_keys=True, ensure_ascii=False, allow_nan=False)
        write_atomically(path, text + "\n")
    return path


def read(path: Path) -> dict[str, Any]:
    """One file.

    Raises:
        DataError: it is broken, or no result.
    """
    result = read_json(path, RESULT, REMEDY)
    if (place := _absurd(result["metrics"])) is not None:
        raise DataError(f"{path}: `metrics{place}` is no number that a run can count; {REMEDY}")
    if path.name != path_in(path.parent, result).name:
        raise DataError(f"{path}: holds run {result['config']}, seed {result['seed']}; {REMEDY}")
    return result


def _absurd(value: Any) -> str | None:
    """Where a number lies that would overflow sums, all the way down."""
    if isinstance(value, (int, float)):
        return None if abs(value) <= OVERFLOWING else ""
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        if (place := _absurd(part)) is not None:
            return f".{name}{place}"
    return None


def find(pool: Path, key: Key) -> Iterator[dict[str, Any]]:
    """All recorded runs of a key, one per data and start."""
    for path in sorted(pool.glob(f"{key.config}-*-{key.seed}-*.json")):
        if FILE.fullmatch(path.name):
            yield read(path)


def seeds_in(pool: Path, config: str) -> list[int]:
    """Seeds that a configuration has been recorded with."""
    names = (FILE.fullmatch(path.name) for path in pool.glob(f"{config}-*.json"))
    return sorted({int(name[3]) for name in names if name})


# ---- curves


def read_curves(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Curves of a run from TensorBoard's events: name -> `steps` and `values`; of a step seen twice, the last."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    curves = {}
    for name in sorted(events.Tags()["scalars"]):
        if name.startswith(CURVES):
            seen = {point.step: point.value for point in events.Scalars(name) if math.isfinite(point.value)}
            points = sorted(seen.items())
            kept = [
                points[i] for i in np.linspace(0, len(points) - 1, min(len(points), POINTS)).round().astype(int)
            ]
            curves[name] = {"steps": [s for s, _ in kept], "values": [_significant(v, 5) for _, v in kept]}
    return curves


def _significant(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def rounded(value: Any) -> Any:
    """Eight significant digits, all the way down: what is beyond is noise in a diff."""
    if isinstance(value, float):
        # JSON has no nan
        return _significant(value, 8) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value
