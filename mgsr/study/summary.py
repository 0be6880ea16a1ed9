"""A study's figures in short, for the terminal and `<run_root>/<study>/metrics.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from mgsr.study import view
from mgsr.study.study import Study
from mgsr.study.view import Run, View
from mgsr.study.written_study import baseline_of


def summarise(
    study: Study, arms: Sequence[str], found: Sequence[tuple[str, int, Sequence[Mapping[str, Any]]]]
) -> dict[str, Any]:
    """Mean figures of every arm on the test set, of what they start from, the floors, and the comparisons.

    Args:
        found: arm, seed, and the runs recorded of it.
    """
    runs = [Run(arm, seed, view.block_of(result), result) for arm, seed, results in found for result in results]
    looked = View(study, tuple(run for arm in arms for run in runs if run.arm == arm), {})
    first = looked.runs[0].result["metrics"]
    summary: dict[str, Any] = {"study": study.name, "seeds": looked.seeds}
    for name in ("teacher", "sft_start"):
        tests = [run.result["metrics"][name]["test"] for run in looked.runs if run.result["metrics"].get(name)]
        if tests:
            summary[name] = _mean(tests)
    summary["floors"] = (first.get("floors") or {}).get("test", {})
    for arm in looked.arms:
        summary[arm] = _mean([run.result["metrics"]["result"]["test"] for run in looked.of(arm)])
    base = baseline_of(study, looked.arms)
    if len(looked.arms) > 1:
        asked = tuple(arm for arm in study.asked if arm in looked.arms and arm != base)
        of_base = replace(looked, study=replace(study, baseline=base, asked=asked))
        compared = of_base.compared(view.rouge_l(), study.margin)
        summary["comparisons"] = {f"{arm} - {base}": _plain(asdict(one)) for arm, one in compared.items()}
    return summary


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value for name, value in found.items()
    }


def _mean(tests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean over training seeds of what all runs have."""

    def mean(some: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        names = [name for name, value in some[0].items() if isinstance(value, (int, float))]
        return {
            name: sum(one[name] for one in some) / len(some)
            for name in names
            if all(isinstance(one.get(name), (int, float)) for one in some)
        }

    sampled = [test["sampled"] for test in tests if test.get("sampled")]
    return {**mean(tests), **({"sampled": mean(sampled)} if len(sampled) == len(tests) else {})}
