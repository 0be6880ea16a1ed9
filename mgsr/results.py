"""Small result files of a study: all that its report needs, committed with the project.

    <study folder>/results/<arm>/seed=<n>.json

Each holds the run's metrics, the score of every test example, its curves thinned to `POINTS`, the arm's overrides,
and what the numbers came from: hashes of configuration, data and code, the commit and the machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mgsr.config import ExperimentConfig, fingerprint, flat_tree
from mgsr.durable import write_atomically
from mgsr.errors import DataError
from mgsr.material import SPLITS, read_split, rows_fingerprint
from mgsr.runs import NEUTRAL
from mgsr.schema import DataConfig
from mgsr.studies import FIXED

POINTS = 200
CURVES = ("val/", "cost/", "train/loss", "dac/", "scrg/", "grad_norm/")
METRICS = ("steps", "result", "costs", "training_text")
FIGURES = ("exact_match", "self_bleu", "distinct_1", "distinct_2", "distinct_3")
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
    # of which kinds of task exact match is told changes no other figure
    aside = {*FIXED, *NEUTRAL, "evaluation.one_answer", "data.train", "data.dev", "data.test", "data.test_sets"}
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
    return {
        "study": study,
        "arm": arm,
        "seed": metrics["seed"],
        "hashes": dict(found),
        "overrides": plain(overrides),
        "environment": environment,
        "metrics": _rounded({k: v for k, v in metrics.items() if k not in ("experiment", "arm", "seed")}),
        "scores": {path.stem: _scores(path) for path in sorted((folder / "predictions").glob("*.jsonl"))},
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
        DataError: it is torn, or not a whole result file.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); restore it, or delete it to have it run again"
        ) from None
    wrong = _wrong(result)
    if wrong:
        raise DataError(f"{path}: no whole result file ({wrong}); restore it, or delete it to have it run again")
    return result


def _wrong(result: Any) -> str:
    """What a result lacks, or what of it can't be what it should; empty if it is whole."""
    if not isinstance(result, dict):
        return "no mapping"
    missing = [name for name in KEYS if name not in result]
    if missing:
        return f"it lacks {', '.join(missing)}"
    if not isinstance(result["metrics"], dict):
        return "metrics is no mapping"
    missing = [f"metrics.{name}" for name in METRICS if name not in result["metrics"]]
    if missing:
        return f"it lacks {', '.join(missing)}"
    parts = {name: result[name] for name in ("hashes", "scores", "curves", "overrides", "environment")}
    parts.update({f"metrics.{name}": result["metrics"][name] for name in METRICS if name != "steps"})
    # each set's figures, each kind of text's, each curve: mappings as well
    inner = {"metrics.result": {"test": None}, "metrics.training_text": {}, "curves": {}}
    for name, content in inner.items():
        if isinstance(parts[name], dict):
            parts.update({f"{name}.{key}": value for key, value in {**content, **parts[name]}.items()})
    odd = [name for name, part in parts.items() if not isinstance(part, dict)]
    if odd:
        return f"{', '.join(odd)}: no mapping"
    if not isinstance(result["metrics"]["steps"], int):
        return "metrics.steps is no number"
    return _wrong_figures(result) or _wrong_parts(result["metrics"])


def _wrong_figures(result: dict[str, Any]) -> str:
    costs = result["metrics"]["costs"]
    if not _numbers(costs.values()):
        return "metrics.costs are not all numbers"
    # without them a run would seem to cost nothing
    if not all(costs.get(f"{unit}_training", 0) > 0 for unit in ("tokens", "seconds")):
        return "metrics.costs lack tokens_training or seconds_training"
    for name, test in result["metrics"]["result"].items():
        if not _numbers([test.get("rouge_l"), test.get("examples")]):
            return f"metrics.result.{name} lacks rouge_l or examples"
        kinds = test.get("rouge_l_by_category")
        if not isinstance(kinds, dict) or not _numbers(kinds.values()):
            return f"metrics.result.{name} lacks rouge_l_by_category"
        # runs recorded before exact match was counted by kind have none
        kinds = test.get("exact_match_by_category", {})
        if not isinstance(kinds, dict) or not _numbers(kinds.values()):
            return f"metrics.result.{name}.exact_match_by_category is no mapping of numbers"
        rest = [test[figure] for figure in FIGURES if test.get(figure) is not None]
        if not _numbers(rest) or not isinstance(test.get("rouge_l_by_seed", {}), dict):
            return f"metrics.result.{name} has figures that are no numbers"
        scores = result["scores"].get(name)
        if not isinstance(scores, list) or not _numbers(scores) or len(scores) != test["examples"]:
            return f"scores.{name} are not those of {test['examples']} rows"
    for name, curve in result["curves"].items():
        columns = curve.get("steps"), curve.get("values")
        if not all(isinstance(c, list) and _numbers(c) for c in columns) or len(columns[0]) != len(columns[1]):
            return f"curves.{name} is torn"
    looks = [result["curves"].get(name, {}).get("steps") for name in ("val/rouge_l", "cost/tokens")]
    # what was reached is read off together with what it had cost
    if None not in looks and looks[0] != looks[1]:
        return "curves.val/rouge_l and curves.cost/tokens are not of the same steps"
    return ""


def _wrong_parts(metrics: Mapping[str, Any]) -> str:
    """What a run may have or lack, but not as anything else than numbers by name."""
    parts = {name: metrics.get(name) or {} for name in ("scrg", "exposure", "corrections")}
    for model in ("teacher", "sft_start"):
        figures = metrics.get(model) or {}
        if not isinstance(figures, dict) or not all(isinstance(test, dict) for test in figures.values()):
            return f"metrics.{model} is no mapping of test sets"
    parts.update({f"training_text.{kind}": figures for kind, figures in metrics["training_text"].items()})
    for name, figures in parts.items():
        if not isinstance(figures, dict) or not _numbers(v for v in figures.values() if not _is_list_or_none(v)):
            return f"metrics.{name} is no mapping of numbers"
    return ""


def _is_list_or_none(value: Any) -> bool:
    return value is None or isinstance(value, (list, dict))


def _numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)


def recorded(root: Path, pattern: str = "*/results/*/seed=*.json") -> Iterator[dict[str, Any]]:
    """Every readable result of all studies below a folder."""
    for path in sorted(root.glob(pattern)):
        try:
            result = read_result(path)
        except DataError:
            continue
        if result is not None:
            yield result
