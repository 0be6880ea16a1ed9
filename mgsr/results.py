"""Small result files of a study: all that its report needs, committed with the project.

    <study folder>/results/<arm>/seed=<n>.json

Each holds the run's metrics, the score of every test example, its curves thinned to `POINTS`, the arm's overrides,
and what the numbers came from: hashes of configuration, data and code, the commit and the machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mgsr.config import ExperimentConfig, fingerprint, flat_tree
from mgsr.durable import write_atomically
from mgsr.errors import DataError
from mgsr.material import SPLITS, read_split, rows_fingerprint
from mgsr.one_answer import exact_where_one, rows_with_one_answer
from mgsr.runs import NEUTRAL, load_run_config
from mgsr.schema import DataConfig
from mgsr.studies import FIXED

POINTS = 200
CURVES = ("val/", "cost/", "train/loss", "dac/", "scrg/", "grad_norm/")
KEYS = ("study", "arm", "seed", "hashes", "metrics", "scores", "curves", "overrides", "environment")


def result_path(folder: Path, arm: str, seed: int) -> Path:
    return folder / arm / f"seed={seed}.json"


def hashes(config: ExperimentConfig, base: ExperimentConfig, code: str) -> dict[str, str]:
    """What a run's numbers come from: `config` (names, places and cosmetics aside), `base`, `data` and `code`.

    Data files count by their content, so a study goes on where they lie elsewhere.

    Args:
        base: the configuration without the arm's overrides: alike for all arms of a study.
    """
    return {
        "config": _config_hash(config, config.seed),
        "base": _config_hash(base, None),
        "data": _data_hash(json.dumps(asdict(config.data), sort_keys=True)),
        "code": code,
    }


def _config_hash(config: ExperimentConfig, seed: int | None) -> str:
    tree, defaults = flat_tree(asdict(config)), flat_tree(asdict(ExperimentConfig()))
    names = sorted(tree["data.test_sets"])
    aside = {*FIXED, *NEUTRAL, "data.train", "data.dev", "data.test", "data.test_sets"}
    # what stands at its default is left out: a key that is new changes no hash
    kept = {name: value for name, value in tree.items() if name not in aside and value != defaults[name]}
    if config.clip.run:
        # whose bounds they are, not where that study lies
        kept["clip.run"] = "/".join(Path(config.clip.run).parts[-2:])
    return fingerprint(kept, seed, names)


@lru_cache(maxsize=32)
def _data_hash(content: str) -> str:
    data: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), json.loads(content)))
    return fingerprint({s: rows_fingerprint(read_split(data, s)) for s in (*SPLITS, *sorted(data.test_sets))})


def collect(
    folder: Path, study: str, arm: str, overrides: Mapping[str, Any], found: Mapping[str, str]
) -> dict[str, Any]:
    """The result file of a finished run, from its run folder.

    Args:
        found: from `hashes`.
    """
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    answers = sorted((folder / "predictions").glob("*.jsonl"))
    data = load_run_config(folder).data
    for path in answers:
        exact = exact_where_one(path, rows_with_one_answer(data, path.stem))
        if exact is not None:
            metrics["result"][path.stem]["one_answer"] = exact
    return {
        "study": study,
        "arm": arm,
        "seed": metrics["seed"],
        "hashes": dict(found),
        "overrides": plain(overrides),
        "environment": environment,
        "metrics": _rounded({k: v for k, v in metrics.items() if k not in ("experiment", "arm", "seed")}),
        "scores": {path.stem: _scores(path) for path in answers},
        "curves": read_curves(folder),
    }


def plain(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides as JSON can hold them: infinities as YAML writes them.

    >>> plain({"clip.lower": -math.inf})
    {'clip.lower': '-.inf'}
    """

    def value_of(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
        return value

    return {name: value_of(value) for name, value in overrides.items()}


def _scores(path: Path) -> list[float]:
    """ROUGE-L of every example, mean over sampling seeds, in the order of the set."""
    totals: dict[Any, list[float]] = {}
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line:
            record = json.loads(line)
            totals.setdefault(record["id"], []).append(float(record["rouge_l"]))
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


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(result, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_result(path: Path) -> dict[str, Any] | None:
    """A result file; None where there is none.

    Raises:
        DataError: it is torn, or no result file.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); restore it, or delete it to have it run again"
        ) from None
    missing = [name for name in KEYS if not isinstance(result, dict) or name not in result]
    if not missing:
        missing = [f"metrics.{name}" for name in ("result", "costs") if name not in result["metrics"]]
    if missing:
        raise DataError(f"{path}: no result file (it lacks {', '.join(missing)}); delete it to have it run again")
    return result


def recorded(root: Path) -> Iterator[dict[str, Any]]:
    """Every readable result of all studies below a folder."""
    for path in sorted(root.glob("*/results/*/seed=*.json")):
        try:
            result = read_result(path)
        except DataError:
            continue
        if result is not None:
            yield result
