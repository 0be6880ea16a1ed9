"""All runs of a study have one number of threads; other machines are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mgsr.config.schema import ExperimentConfig, TrainerConfig
from mgsr.runtime.errors import UserError
from mgsr.study import machines
from mgsr.study.machines import agree_on_threads, threads_of
from mgsr.study.results import write_result
from mgsr.study.study import Study, result_path
from mgsr.training.run_folder import run_folder
from tests.study.synthetic import make_result, make_study, record


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setattr(machines, "usable_cores", lambda: 64)
    return make_study(tmp_path)


def agreed(study: Study, *threads: int, jobs: int = 1) -> list[int]:
    """The number that runs of `other` come to have, which are configured to have `threads`."""
    configs = [
        ExperimentConfig(study.name, "other", seed, str(study.path.parent), trainer=TrainerConfig(threads=number))
        for seed, number in enumerate(threads)
    ]
    agree_on_threads(study, [(c, result_path(study.results, "other", c.seed)) for c in configs], jobs)
    return [config.trainer.threads for config in configs]


def with_threads(study: Study, arm: str, number: int, **more: Any) -> None:
    result = make_result(study, arm, 0, 60.0)
    result["environment"].update(threads=number, **more)
    write_result(result_path(study.results, arm, 0), result)


def test_without_results_a_run_has_its_own_number(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "usable_cores", lambda: 12)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert agreed(study, 0, 3) == [5, 3]
    assert agreed(study, 0, 3, jobs=4) == [3, 3]
    assert threads_of(TrainerConfig(devices=2), 1) == 6 and threads_of(TrainerConfig(), 100) == 1


def test_the_number_of_the_recorded_runs_is_taken_and_said(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    with_threads(study, "full", 61)
    assert agreed(study, 0, 61) == [61, 61]
    assert "sample: trainer.threads=61, as its runs have until now" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"threads=2 would give .* full, seed 0 has 61; set trainer.threads=61"):
        agreed(study, 2)


def test_results_with_several_numbers_ask_for_a_choice(study: Study) -> None:
    with_threads(study, "full", 61)
    with_threads(study, "removed", 62)
    with pytest.raises(UserError, match=r"61 \(full, seed 0\) and 62 \(removed, seed 0\) threads; choose"):
        agreed(study, 0)
    assert agreed(study, 62) == [62]
    # results of no arm, and of a run that is complete, ask nothing
    with_threads(study, "other", 61)
    assert agreed(study, 0) == [61]


def test_a_begun_run_goes_on_with_its_own_number(study: Study) -> None:
    folder = run_folder(ExperimentConfig(study.name, "other", 0, str(study.path.parent)))
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "environment.json").write_text(json.dumps({"threads": 61}))
    assert agreed(study, 0) == [61]
    with_threads(study, "full", 62)
    with pytest.raises(UserError, match=r"begun with trainer.threads=61; to have 62, delete"):
        agreed(study, 62)


def test_more_threads_than_cores_are_refused(study: Study) -> None:
    """A run of its own takes fewer and says so; in a study they would be other numbers."""
    with pytest.raises(UserError, match=r"would have 65 threads, .* 64 cores; set trainer.threads=64"):
        agreed(study, 65)
    with_threads(study, "full", 65)
    with pytest.raises(UserError, match="add runs where there are as many"):
        agreed(study, 0)


def test_another_processor_is_said(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    record(study, {"full": [60.0]})
    with_threads(study, "removed", 1, cpu="an abacus", torch=torch.__version__)
    agreed(study, 1)
    said = capsys.readouterr().out
    assert "has runs with cpu an abacus, here it is " in said
    assert "has runs with torch 2, here it is " in said
