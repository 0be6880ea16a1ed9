"""A study's figures in short, for the terminal and `<run_root>/<study>/metrics.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mgsr.evaluation.statistics import mean_std, paired_t_interval
from mgsr.study.study import Study
from mgsr.study.written_study import baseline_of


def summarise(study: Study, results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Mean test ROUGE-L per arm, of what the arms start from, and paired differences over training seeds."""
    base = baseline_of(study, list(results))
    runs = list(results[base].values())
    summary: dict[str, Any] = {"study": study.name, "seeds": sorted(results[base])}
    for name in ("teacher", "sft_start"):
        found = [run[name]["test"] for run in runs if "test" in (run.get(name) or {})]
        if len(found) == len(runs):
            summary[name] = _over_seeds(found)
    for arm, by_seed in results.items():
        summary[arm] = _over_seeds([run["result"]["test"] for run in by_seed.values()])
        # of text that nobody searched for errors there is no rate
        rounds = [run["scrg"] for run in by_seed.values() if (run.get("scrg") or {}).get("disagreement_rate")]
        if rounds and (arm == base or "scrg" not in summary):
            shared = set.intersection(*map(set, rounds))
            summary["scrg"] = {k: sum(r[k] for r in rounds) / len(rounds) for k in sorted(shared)}
    differences = {}
    for arm in results:
        if arm == base or len(runs) < 2:
            continue
        pairs = [
            run["result"]["test"]["rouge_l"] - results[base][seed]["result"]["test"]["rouge_l"]
            for seed, run in results[arm].items()
        ]
        interval = paired_t_interval(pairs)
        # the sign of every report: above zero the arm is better than the baseline
        differences[f"{arm} - {base}"] = {
            "mean": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "p": interval.p,
            "by_seed": pairs,
        }
    if differences:
        summary["paired_difference"] = differences
    return summary


def _over_seeds(tests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One training seed: as measured. Several: mean and standard deviation over training seeds."""
    if len(tests) == 1:
        return {k: tests[0].get(k) for k in ("rouge_l", "rouge_l_std", "std_over", "exact_match", "distinct_2")}
    mean, std = mean_std([test["rouge_l"] for test in tests])[:2]
    return {
        "rouge_l": mean,
        "rouge_l_std": std,
        "std_over": "training seeds",
        **{name: _mean([test.get(name) for test in tests]) for name in ("exact_match", "distinct_2")},
        "by_seed": [test["rouge_l"] for test in tests],
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """None where a run was recorded before there was the figure."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
