"""Learned bounds: their curves in a report, and the arm that takes their mean from a recorded run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import mgsr
from mgsr.config.load import load_config
from mgsr.runtime.errors import ConfigError
from mgsr.study import pool
from mgsr.study.report.plots import curve
from mgsr.study.report.write import report
from mgsr.study.study import Study
from mgsr.study.view import look
from mgsr.training.build import mean_bounds
from tests.study.pooled import STUDY, result_of, study_in

Curves = Mapping[str, Mapping[str, list[float]]]
MEAN = '{clip.mode: mean_of_run, clip.run: "{run:full}"}'


def record(study: Study, arm: str, seed: int, curves: Curves, **metrics: Any) -> Path:
    result = result_of(study.config(arm, seed), 50.0 + seed, start=f"student-{seed}")
    result["curves"] |= curves
    result["metrics"] |= metrics
    return pool.record(study.pool(), result)


def learned(*points: tuple[int, float]) -> Curves:
    return {"dac/lower": {"steps": [step for step, _ in points], "values": [value for _, value in points]}}


def test_bounds_are_drawn_of_arms_that_have_them(tmp_path: Path) -> None:
    study = study_in(tmp_path, STUDY.replace("[0, 1, 2, 3, 4]", "[0, 1]"))
    for seed in (0, 1):
        record(study, "full", seed, learned((0, 0.2), (10, 0.1)))
        record(study, "removed", seed, {})
    page, _ = report(study)
    # README.md shows the forest alone
    assert [path.name for path in page.parent.glob("*.svg")] == ["forest.svg"]
    html = page.with_name("report.html").read_text()
    figures = {words: svg for svg, words in re.findall(r"<figure>(.*?)<figcaption>(.*?)</figcaption>", html, re.S)}
    lower = figures["lower bound, cumulative mass while training, mean over seeds"]
    rouge = figures["dev ROUGE-L, greedy while training, mean over seeds"]
    assert ">full<" in lower and ">removed<" not in lower and ">removed<" in rouge
    assert not any(words.startswith("upper bound") for words in figures)
    # every plot of the page has ids of its own, and what it refers to is there
    ids = re.findall(r'\bid="([^"]+)"', html)
    used = set(re.findall(r"url\(#([^)]+)\)", html)) | set(re.findall(r'href="#([^"]+)"', html))
    assert len(ids) == len(set(ids)) and used <= set(ids) and used


def test_a_curve_is_the_mean_over_seeds_at_steps_that_all_of_them_have(tmp_path: Path) -> None:
    """The plot of two runs is that of one run with their mean."""
    study = study_in(tmp_path)
    drawn = []
    for number, runs in enumerate(
        (
            [((0, 0.2), (5, 0.9), (10, 0.1)), ((0, 0.4), (10, 0.3), (20, 0.7))],
            [((0, 0.3), (10, 0.2))],
            [((0, 0.2), (5, 0.9), (10, 0.1))],
        )
    ):
        study = study_in(tmp_path / str(number))
        for seed, points in enumerate(runs):
            record(study, "full", seed, learned(*points))
        drawn.append(curve(look(study, study.pool()), "dac/lower", "lower bound"))
    assert drawn[0] == drawn[1] != drawn[2]
    assert curve(look(study, study.pool()), "dac/upper", "upper bound") is None


def test_an_arm_takes_the_bounds_of_the_recorded_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_in(tmp_path, STUDY.replace("{scrg.passes: 3}", MEAN))
    assert (study.needs("other"), study.needs("full")) == (["full"], [])
    places = {
        seed: str(record(study, "full", seed, {}, dac={"lower": 0.1 + seed, "upper": 0.9 + seed}))
        for seed in (0, 1)
    }
    for seed, place in places.items():
        config = study.config("other", seed, recorded={"full": place})
        assert mean_bounds(config) == (0.1 + seed, 0.9 + seed)
    # what it takes them from is told by the message, whatever is wrong with it
    version = mgsr.NUMERICS_VERSION
    monkeypatch.setattr(mgsr, "NUMERICS_VERSION", version + 1)
    with pytest.raises(ConfigError, match=f"is of numerics version {version}, this code is of {version + 1}"):
        mean_bounds(study.config("other", 0, recorded={"full": places[0]}))
    with pytest.raises(ConfigError, match=r"`clip\.run`: .*gone\.json"):
        mean_bounds(study.config("other", 0, recorded={"full": str(tmp_path / "gone.json")}))


def test_a_run_without_learned_bounds_is_refused(tmp_path: Path) -> None:
    study = study_in(tmp_path, STUDY.replace("{scrg.passes: 3}", MEAN))
    place = record(study, "full", 0, {})
    with pytest.raises(ConfigError, match=r"`metrics\.dac` is missing; name a finished run"):
        mean_bounds(study.config("other", 0, recorded={"full": str(place)}))
    # any other way to have bounds reads no run
    assert mean_bounds(load_config("demo", ["clip.mode=fixed"])) is None
