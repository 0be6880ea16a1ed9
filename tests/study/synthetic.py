"""Result files with known figures, for reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mgsr.study.report.evidence import read_evidence
from mgsr.study.report.write_report import contents, readme
from mgsr.study.results import write_result

import mgsr
from mgsr.study.study import Study, load_study, result_path

STUDY = """
study: sample
question: Does it help?
answer: {part: the part, arm: removed, where: made-up data}
base: demo
baseline: full
arms:
  full: {}
  removed: {scrg.enabled: false}
  other: {scrg.passes: 3}
contrasts:
  SCRG: {with: [full, other], without: [removed]}
"""
FIGURES = {
    "full": [60.0, 62.0, 61.0, 63.0],
    "removed": [50.0, 51.5, 50.5, 52.0],
    "other": [60.5, 61.0, 62.0, 62.5],
}


def make_study(folder: Path, text: str = STUDY) -> Study:
    path = folder / "sample" / "study.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return load_study(path)


def make_result(study: Study, arm: str, seed: int, rouge_l: float, **changes: Any) -> dict[str, Any]:
    test = {
        "rouge_l": rouge_l,
        "rouge_l_by_category": {"count": rouge_l + 1, "<b>sort</b>": rouge_l - 1},
        "exact_match": 2.0,
        "examples": 4,
        **{f"distinct_{n}": n / 10 for n in (1, 2, 3)},
        "self_bleu": 0.5,
    }
    curve = {"steps": [9, 19], "values": [rouge_l - 5, rouge_l]}
    return {
        "study": study.name,
        "arm": arm,
        "seed": seed,
        "hashes": {"data": "da7a", "base": "ba5e", "config": f"{arm}{seed}"},
        "overrides": study.arms[arm],
        "environment": {
            "commit": "0123456789",
            "numerics": mgsr.NUMERICS_VERSION,
            "python": "3.11",
            "torch": "2",
            "lightning": "2",
            "transformers": "5",
            "machine": "x86_64",
            "threads": 1,
            "devices": [],
        },
        "metrics": {
            "steps": 20,
            "result": {"test": test},
            "costs": {"seconds_training": 10.0, "tokens_training": 1000, "seconds_generation": 2.0},
            "training_text": {"ground_truth": {"distinct_1": 0.2}, "written": {"distinct_1": 0.3}},
            "exposure": {"ex_acc_err_at_end": 12.0, "teacher_perplexity": 3.0},
            "corrections": {"rouge_l_raised": 0.25, "rouge_l_lowered": 0.5, "teacher_log_likelihood_raised": 0.75},
        },
        "scores": {"test": [rouge_l - 2, rouge_l, rouge_l, rouge_l + 2]},
        "curves": {
            "val/rouge_l": curve,
            "val/loss": curve,
            "cost/seconds": {"steps": [9, 19], "values": [6.0, 12.0]},
            "cost/tokens": {"steps": [9, 19], "values": [500.0, 1000.0]},
        },
        **changes,
    }


def record(study: Study, figures: dict[str, list[float]] | None = None) -> None:
    for arm, values in (FIGURES if figures is None else figures).items():
        for seed, value in enumerate(values):
            write_result(result_path(study.results, arm, seed), make_result(study, arm, seed, value))


def readme_of(study: Study) -> str:
    """README of a study's report, without plots: those take most of a report's time."""
    return readme(contents(read_evidence(study, study.results), {}, study.home))
