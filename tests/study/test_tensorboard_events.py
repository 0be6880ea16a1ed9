"""TensorBoard events of recorded runs: as a run's own, written once, gone when the run begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import mgsr.study.run
from mgsr.config.schema import ExperimentConfig
from mgsr.study import pool
from mgsr.study.run import run_study
from mgsr.study.study import Study, load_study
from mgsr.study.tensorboard_events import SUFFIX, write_events
from mgsr.training import trainer
from mgsr.training.run_folder import is_begun, open_run_folder, run_folder
from tests.study.pooled import result_of

STUDY = """
study: sample
base: {base}
arms:
  full: {{}}
  removed: {{scrg.enabled: false, data.synthetic.families: []}}
  head: {{clip.mode: fixed, clip.lower: -.inf}}
"""


class Began(Exception):
    """Instead of a training."""


def study_of(path: Path, text: str) -> Study:
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return load_study(path)


def make_result(study: Study, arm: str, seed: int, rouge_l: float) -> dict[str, Any]:
    return result_of(study.config(arm, seed), rouge_l)


@pytest.fixture
def study(tmp_path: Path, tiny_file: Path) -> Study:
    return study_of(tmp_path / "studies/sample/study.yaml", STUDY.format(base=tiny_file))


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(config: ExperimentConfig, **_: Any) -> None:
        raise Began(config.arm)

    monkeypatch.setattr(mgsr.study.run, "train", train)
    monkeypatch.setattr(mgsr.study.run, "in_process", lambda config, jobs, device: train(config))
    monkeypatch.setattr(mgsr.study.run, "prepare", lambda config: None)


def recorded_as(study: Study, arms: Mapping[str, float], seed: int, overrides: list[str]) -> dict[str, Path]:
    """Files that `mgsr ablate` takes for those of these very runs, by arm."""
    found = {}
    for arm, rouge_l in arms.items():
        config = study.config(arm, seed, overrides)
        result = result_of(config, rouge_l, data=pool.data_of(config))
        found[arm] = pool.record(study.pool(), result)
    return found


def events_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("events.*"))


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def hparams_of(events: EventAccumulator, tag: str) -> Any:
    data = HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)
    return getattr(data, data.WhichOneof("data"))


def test_scalars_are_the_curves_of_the_result(study: Study, tmp_path: Path) -> None:
    config = study.config("full", 3, [f"run_root={tmp_path}/runs"])
    result = make_result(study, "full", 3, 61.25)
    result["curves"]["train/loss"] = {"steps": [0, 7, 19], "values": [2.5, 1.125, 0.3]}
    assert write_events(run_folder(config), config, result)
    # TensorBoard calls a run by its folder
    (path,) = (tmp_path / "runs").rglob("events.*")
    assert path.parent == tmp_path / "runs/sample/full/seed=3"
    events = read(path.parent)
    assert set(events.Tags()["scalars"]) == {*result["curves"], "hp/rouge_l"}
    for tag, curve in result["curves"].items():
        points = events.Scalars(tag)
        assert [point.step for point in points] == curve["steps"]
        assert [point.value for point in points] == list(np.float32(curve["values"]))
    assert [(point.step, point.value) for point in events.Scalars("hp/rouge_l")] == [(10, 61.25)]


@pytest.mark.parametrize("arm", ["full", "removed", "head"])
def test_hparams_line_up_with_those_of_a_run(study: Study, tmp_path: Path, arm: str) -> None:
    config = study.config(arm, 1, [f"run_root={tmp_path}/runs"])
    result = make_result(study, arm, 1, 60.5)
    result["environment"]["threads"] = 5
    write_events(run_folder(config), config, result)
    config.trainer.threads = 5
    logger = TensorBoardLogger(tmp_path / "own", name="", version="", default_hp_metric=False)
    logger.log_hyperparams(trainer.shown_values(asdict(config)), {"hp/rouge_l": float("nan")})
    logger.experiment.close()
    own, recorded = read(tmp_path / "own"), read(run_folder(config))
    for tag in (metadata.EXPERIMENT_TAG, metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG):
        assert hparams_of(recorded, tag) == hparams_of(own, tag)
    row = hparams_of(recorded, metadata.SESSION_START_INFO_TAG).hparams
    assert (row["arm"].string_value, row["seed"].number_value) == (arm, 1)
    (metric,) = hparams_of(recorded, metadata.EXPERIMENT_TAG).metric_infos
    assert metric.name.tag == "hp/rouge_l"


def test_events_are_written_once_and_again_for_another_result(study: Study, tmp_path: Path) -> None:
    config, folder = study.config("full", 0), tmp_path / "run"
    assert write_events(folder, config, make_result(study, "full", 0, 60.0))
    (first,) = events_of(folder)
    content = (folder / first).read_bytes()
    assert first.endswith(SUFFIX)
    assert not write_events(folder, config, make_result(study, "full", 0, 60.0))
    assert events_of(folder) == [first] and (folder / first).read_bytes() == content
    # recorded anew: one file, of the later result
    assert write_events(folder, config, make_result(study, "full", 0, 61.0))
    (second,) = events_of(folder)
    assert second != first
    assert [point.value for point in read(folder).Scalars("hp/rouge_l")] == [61.0]


def test_a_run_that_has_events_keeps_them_alone(study: Study, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    own = tmp_path / "run" / "events.out.tfevents.1795812078.vm.9742.1"
    own.write_bytes(b"own")
    assert not write_events(own.parent, study.config("full", 0), make_result(study, "full", 0, 60.0))
    assert events_of(own.parent) == [own.name] and own.read_bytes() == b"own"


def test_a_folder_with_nothing_else_is_that_of_a_run_not_begun(study: Study, tmp_path: Path) -> None:
    config = study.config("full", 0, [f"run_root={tmp_path}/runs"])
    folder = run_folder(config)
    write_events(folder, config, make_result(study, "full", 0, 60.0))
    assert [path.name for path in folder.iterdir()] == events_of(folder)
    assert not is_begun(folder)
    open_run_folder(folder, config, resume=False)


def test_ablate_shows_runs_that_are_recorded_under_its_own_names(
    study: Study, tmp_path: Path, tiny_file: Path
) -> None:
    overrides = [f"run_root={tmp_path}/runs"]
    recorded_as(study, {"full": 60.0, "removed": 50.0, "head": 55.0}, 0, overrides)
    run_study(study, [0], overrides, record=True)
    assert len(list((tmp_path / "runs/sample").glob("*/seed=0/events.*"))) == 3
    text = f"study: other\nbase: {tiny_file}\narms: {{whole: {{}}}}\n"
    run_study(study_of(tmp_path / "studies/other/study.yaml", text), [0], overrides, record=True)
    events = read(tmp_path / "runs/other/whole/seed=0")
    row = hparams_of(events, metadata.SESSION_START_INFO_TAG).hparams
    assert (row["experiment"].string_value, row["arm"].string_value) == ("other", "whole")
    assert events.Scalars("hp/rouge_l")[0].value == 60.0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("events.*")}
    run_study(study, [0], overrides, record=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("events.*")} == before


@pytest.mark.parametrize("jobs", [1, 2])
def test_recorded_events_are_removed_when_the_run_begins(study: Study, tmp_path: Path, jobs: int) -> None:
    overrides = [f"run_root={tmp_path}/runs"]
    places = recorded_as(study, {"full": 60.0, "removed": 50.0}, 0, overrides)
    arms = ["full", "removed"]
    run_study(study, [0], overrides, arms=arms, record=True)
    folders = {arm: tmp_path / f"runs/sample/{arm}/seed=0" for arm in arms}
    own = folders["removed"] / "events.out.tfevents.1795812078.vm.9742.1"
    own.touch()
    places["removed"].unlink()
    with pytest.raises(Began, match="removed"):
        run_study(study, [0], overrides, arms=arms, jobs=jobs, record=True)
    assert events_of(folders["removed"]) == [own.name]
    assert len(events_of(folders["full"])) == 1


def test_a_result_without_a_number_of_threads_has_the_configured_one(study: Study, tmp_path: Path) -> None:
    result = make_result(study, "full", 0, 60.0)
    del result["environment"]["threads"]
    assert write_events(tmp_path / "run", study.config("full", 0, ["trainer.threads=3"]), result)
    row = hparams_of(read(tmp_path / "run"), metadata.SESSION_START_INFO_TAG).hparams
    assert row["trainer.threads"].number_value == 3
