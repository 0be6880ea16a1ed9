"""A pool of made-up results: what a study's report is tested on without running anything."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mgsr
from mgsr.config.schema import ExperimentConfig
from mgsr.study import pool
from mgsr.study.study import Study, load_study

STUDY = """
study: made_up
question: Does the part help?
base: base
baseline: full
asked: [removed]
seeds: [0, 1, 2, 3, 4]
margin: 0.5
arms:
  full: {}
  removed: {objective.w_span: 0.0}
  other: {scrg.passes: 3}
"""
BASE = "data: {train: synthetic}\nteacher: {source: init}\nstudent: {source: init}\n"


def study_in(folder: Path, text: str = STUDY, name: str = "made_up") -> Study:
    """A study in a folder of its own, beside a pool."""
    home = folder / name
    home.mkdir(parents=True, exist_ok=True)
    (home / "study.yaml").write_text(text)
    (home / "base.yaml").write_text(BASE)
    (folder / "results").mkdir(exist_ok=True)
    (home / "study.yaml").write_text(text.replace("base: base", "base: base.yaml"))
    return load_study(home / "study.yaml")


def result_of(
    config: ExperimentConfig, rouge_l: float, *, start: str = "s" * 16, sampled: float | None = None, **more: Any
) -> dict[str, Any]:
    """A result of a run that never was; `sampled`: ROUGE-L of its sampled answers."""
    measures = {"rouge_l": rouge_l, "exact_match": rouge_l / 2, "accuracy": rouge_l / 2, "distinct_2": 0.5}
    test = {
        **measures,
        "rouge_l_by_category": {"one": rouge_l, "two": rouge_l - 1},
        "accuracy_by_category": {"one": 1.0, "two": 2.0},
        "examples": 10,
        "within": {"rouge_l": rouge_l + 1, "accuracy": 3.0, "examples": 4},
        "sampled": {**measures, "rouge_l": rouge_l - 5 if sampled is None else sampled, "rouge_l_std": 0.1},
    }
    floor = {"rouge_l": 12.0, "exact_match": 0.0, "accuracy": 0.0, "within": {"rouge_l": 13.0, "accuracy": 1.0}}
    metrics = {
        "steps": 10,
        "seconds": 20.0,
        "result": {"test": test},
        "teacher": {"test": {**test, "rouge_l": 80.0}},
        "sft_start": {"test": {**test, "rouge_l": 40.0}},
        "floors": {"test": {"echo": floor, "constant": floor, "nearest": floor}},
        "exposure": {"ex_acc_err_at_end": 20.0, "teacher_perplexity": 3.0},
        "costs": {
            "tokens_training": 2_000_000,
            "tokens_validation": 7,
            "tokens_generation": 500_000,
            "flops": 2.5e12,
        },
        "val": {"loss": 1.5},
    }
    return {
        "config": pool.key_of(config).config,
        "data": "d" * 16,
        "seed": config.seed,
        "start": {"teacher": "t" * 16, "student": start},
        "settings": pool.settings_of(config),
        "environment": {
            "cpu": "Some processor",
            "cpu_model": "family 6, model 1",
            "torch": "2.13.0",
            "threads": 1,
            "commit": "0" * 40,
            "numerics": mgsr.NUMERICS_VERSION,
        },
        "metrics": metrics,
        "curves": {
            "val/rouge_l": {"steps": [0, 10], "values": [40.0, rouge_l]},
            "grad_norm/sft": {"steps": [0, 5], "values": [3.0, 1.0]},
            "grad_norm/dac_kl": {"steps": [0, 5], "values": [1.0, 1.0]},
        },
        "first": {"study": config.experiment, "arm": config.arm},
        **more,
    }


def fill(
    study: Study,
    effects: Mapping[str, float],
    seeds: Sequence[int] = range(5),
    spread: float = 0.2,
    sampled: Mapping[str, float] | None = None,
) -> None:
    """Record runs: level of the seed, effect of the arm, and noise; `sampled`: effects on sampled answers."""
    draw = random.Random(0)
    level = {seed: 50 + draw.gauss(0, 3) for seed in seeds}
    for arm, effect in effects.items():
        for seed in seeds:
            config = study.config(arm, seed, study.arguments)
            score = level[seed] + effect + draw.gauss(0, spread)
            other = None if sampled is None else score + sampled[arm] - effect
            pool.record(study.pool(), result_of(config, score, start=f"student-{seed}", sampled=other))
