"""Is a result file whole, and can its figures be what they should be? Files are edited, merged and torn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mgsr.runtime.json_files import LARGEST

METRICS = ("steps", "result", "costs", "training_text")
PERCENTAGES = ("exact_match", "self_bleu", "distinct_1", "distinct_2", "distinct_3")
KEYS = ("study", "arm", "seed", "hashes", "metrics", "scores", "curves", "overrides", "environment")
LISTS = {"exposure": ("ex_acc_err",)}
"""Figures that are lists of numbers."""


def what_is_wrong(result: Any) -> str:
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
    checks: tuple[Callable[[dict[str, Any]], str], ...] = (
        _no_mappings,
        _wrong_names,
        _wrong_costs,
        _wrong_tests,
        _wrong_curves,
        _wrong_parts,
    )
    return next(filter(None, (check(result) for check in checks)), "")


def _no_mappings(result: dict[str, Any]) -> str:
    parts = {name: result[name] for name in ("hashes", "scores", "curves", "overrides", "environment")}
    parts.update({f"metrics.{name}": result["metrics"][name] for name in METRICS if name != "steps"})
    # each set's figures, each kind of text's, each curve: mappings as well
    inner = {"metrics.result": {"test": None}, "metrics.training_text": {}, "curves": {}}
    for name, content in inner.items():
        if isinstance(parts[name], dict):
            parts.update({f"{name}.{key}": value for key, value in {**content, **parts[name]}.items()})
    odd = [name for name, part in parts.items() if not isinstance(part, dict)]
    return f"{', '.join(odd)}: no mapping" if odd else ""


def _wrong_names(result: dict[str, Any]) -> str:
    """Words and whole numbers that name the run and where it was made."""
    if not isinstance(result["study"], str) or not isinstance(result["arm"], str):
        return "study and arm are no names"
    for name, number in (("seed", result["seed"]), ("metrics.steps", result["metrics"]["steps"])):
        if not _is_count(number):
            return f"{name} is no number"
    environment = dict(result["environment"])
    devices, threads = environment.pop("devices", None) or [], environment.pop("threads", None)
    if not isinstance(devices, list) or not all(isinstance(device, str) for device in devices):
        return "environment.devices is no list of names"
    if threads is not None and not _is_count(threads):
        return "environment.threads is no number"
    # results recorded before there was a numerics version have none
    if not _is_count(environment.get("numerics", 1)):
        return "environment.numerics is no number"
    start = result.get("start", {})
    if not isinstance(start, dict) or not all(value is None or isinstance(value, str) for value in start.values()):
        return "start is no mapping of fingerprints"
    odd = [name for name, value in environment.items() if not (value is None or isinstance(value, (str, int)))]
    odd += [f"hashes.{name}" for name, value in result["hashes"].items() if not isinstance(value, str)]
    return f"{odd[0]} is neither a word nor a number" if odd else ""


def _wrong_costs(result: dict[str, Any]) -> str:
    costs = result["metrics"]["costs"]
    if not _numbers(costs.values(), low=0.0):
        return "metrics.costs are not all numbers from 0 on"
    # without them a run would seem to cost nothing
    if not all(costs.get(f"{unit}_training", 0) > 0 for unit in ("tokens", "seconds")):
        return "metrics.costs lack tokens_training or seconds_training"
    return ""


def _wrong_tests(result: dict[str, Any]) -> str:
    for name, test in result["metrics"]["result"].items():
        if not _numbers([test.get("rouge_l")], 0.0, 100.0) or not _is_count(test.get("examples")):
            return f"metrics.result.{name} lacks rouge_l or examples (rouge_l of 0 to 100)"
        kinds = test.get("rouge_l_by_category")
        if not isinstance(kinds, dict) or not _numbers(kinds.values(), 0.0, 100.0):
            return f"metrics.result.{name} lacks rouge_l_by_category"
        # runs recorded before exact match was counted by kind have none
        kinds = test.get("exact_match_by_category", {})
        if not isinstance(kinds, dict) or not _numbers(kinds.values(), 0.0, 100.0):
            return f"metrics.result.{name}.exact_match_by_category is no mapping of numbers"
        rest = [test[figure] for figure in PERCENTAGES if test.get(figure) is not None]
        if not _numbers(rest, 0.0, 100.0) or not isinstance(test.get("rouge_l_by_seed", {}), dict):
            return f"metrics.result.{name} has figures that are no numbers, or out of their range"
        if not _numbers([test.get("rouge_l_std") or 0.0], 0.0) or not isinstance(test.get("std_over") or "", str):
            return f"metrics.result.{name} has figures that are no numbers, or out of their range"
        scores = result["scores"].get(name)
        if not isinstance(scores, list) or not _numbers(scores, 0.0, 100.0) or len(scores) != test["examples"]:
            return f"scores.{name} are not those of {test['examples']} rows"
        # scores are rounded to two digits
        if scores and abs(sum(scores) / len(scores) - test["rouge_l"]) > 0.02:
            return f"scores.{name} have another mean than metrics.result.{name}.rouge_l"
    return ""


def _wrong_curves(result: dict[str, Any]) -> str:
    for name, curve in result["curves"].items():
        columns = curve.get("steps"), curve.get("values")
        if not all(isinstance(c, list) and _numbers(c) for c in columns) or len(columns[0]) != len(columns[1]):
            return f"curves.{name} is torn"
    looks = [result["curves"].get(name, {}).get("steps") for name in ("val/rouge_l", "cost/tokens")]
    # what was reached is read off together with what it had cost
    if None not in looks and looks[0] != looks[1]:
        return "curves.val/rouge_l and curves.cost/tokens are not of the same steps"
    return ""


def _wrong_parts(result: dict[str, Any]) -> str:
    """What a run may have or lack, but not as anything else than numbers by name."""
    metrics = result["metrics"]
    parts = {name: metrics.get(name) or {} for name in ("scrg", "exposure", "corrections", "dac")}
    for model in ("teacher", "sft_start"):
        figures = metrics.get(model) or {}
        if not isinstance(figures, dict) or not all(isinstance(test, dict) for test in figures.values()):
            return f"metrics.{model} is no mapping of test sets"
        if not _numbers(test.get("rouge_l", 0.0) for test in figures.values()):
            return f"metrics.{model} has figures that are no numbers"
    parts.update({f"training_text.{kind}": figures for kind, figures in metrics["training_text"].items()})
    for name, figures in parts.items():
        if not isinstance(figures, dict) or not all(
            _numbers(_known(value) if key in LISTS.get(name, ()) else [value])
            for key, value in figures.items()
            if value is not None
        ):
            return f"metrics.{name} is no mapping of numbers"
    return ""


def _known(value: Any) -> list[Any]:
    """A list's members where they are known; anything else as it is, to be refused."""
    return [member for member in value if member is not None] if isinstance(value, list) else [value, ""]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _numbers(values: Iterable[Any], low: float = -LARGEST, high: float = LARGEST) -> bool:
    """All of them numbers within the limits; an integer of any size is compared without becoming a float."""
    return all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
        for value in values
    )
