"""A study's figures in short, for the terminal and `<run_root>/<study>/metrics.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mgsr.study import pool
from mgsr.study.view import View, rouge_l


def summarise(view: View) -> dict[str, Any]:
    """Mean figures of every arm on the test set, of what they start from, the floors, and the comparisons.

    Runs and verdicts are those of the study's report.
    """
    summary: dict[str, Any] = {"study": view.study.name, "seeds": view.seeds}
    begins = view.of(view.study.baseline) or view.runs
    for name in ("teacher", "sft_start"):
        tests = [run.result["metrics"][name]["test"] for run in begins if run.result["metrics"].get(name)]
        if tests:
            summary[name] = _mean(tests)
    summary["floors"] = (begins[0].result["metrics"].get("floors") or {}).get("test", {})
    for arm in view.arms:
        summary[arm] = _mean([run.result["metrics"]["result"]["test"] for run in view.of(arm)])
    if len(view.arms) > 1:
        compared = view.compared(rouge_l())
        summary["comparisons"] = {
            f"{arm} - {view.study.baseline}": pool.rounded(asdict(one)) for arm, one in compared.items()
        }
    return summary


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
