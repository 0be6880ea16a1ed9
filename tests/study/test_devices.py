"""Runs side by side share devices and cores."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import mgsr.study.processes
import mgsr.study.run
from mgsr.config.schema import ExperimentConfig, TrainerConfig
from mgsr.runtime.errors import ConfigError
from mgsr.study.processes import threads_of
from mgsr.study.run import Run, run_all
from mgsr.study.study import Study
from tests.study.pooled import study_in


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Nothing is prepared and nothing is recorded."""
    monkeypatch.setattr(mgsr.study.run, "_record", lambda study, run, place: None)
    monkeypatch.setattr(mgsr.study.run, "prepare", lambda config: None)
    return study_in(tmp_path)


def test_a_run_takes_a_device_that_is_free(
    make_config: Any, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run is a long one: all others have to share the other device, one after another."""
    busy: dict[str, str] = {}
    ran: list[tuple[str, str]] = []
    last = threading.Event()

    def in_process(config: ExperimentConfig, jobs: int, device: str) -> None:
        assert device not in busy, f"{config.arm} and {busy[device]} on one device"
        busy[device] = config.arm
        ran.append((config.arm, device))
        if config.arm == "long":
            assert last.wait(20), "the last run never began"
        if config.arm == "d":
            last.set()
        del busy[device]

    monkeypatch.setattr(mgsr.study.run, "in_process", in_process)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    runs = [Run(arm, 0, make_config(f"arm={arm}"), ()) for arm in ("long", "a", "b", "c", "d")]
    run_all(study, runs, 2, tmp_path, first=0, total=5)
    devices = dict(ran)
    assert sorted(devices) == ["a", "b", "c", "d", "long"]
    assert {devices[arm] for arm in "abcd"} == {"4", "GPU-7"} - {devices["long"]}


def test_more_jobs_than_devices_share_them_evenly(
    make_config: Any, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(4, timeout=20)
    taken: list[str] = []

    def in_process(config: ExperimentConfig, jobs: int, device: str) -> None:
        taken.append(device)
        together.wait()

    monkeypatch.setattr(mgsr.study.run, "in_process", in_process)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    runs = [Run(arm, 0, make_config(f"arm={arm}"), ()) for arm in "abcd"]
    run_all(study, runs, 4, tmp_path, first=0, total=4)
    assert sorted(taken) == ["0", "0", "1", "1"]


def test_runs_of_several_devices_go_one_after_another(make_config: Any, study: Study, tmp_path: Path) -> None:
    runs = [Run(arm, 0, make_config(f"arm={arm}", "trainer.devices=2"), ()) for arm in "ab"]
    with pytest.raises(ConfigError, match="leave --jobs out"):
        run_all(study, runs, 2, tmp_path, first=0, total=2)


def test_a_run_has_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mgsr.study.processes, "usable_cores", lambda: 12)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    # alone as torch has it, though never more than there are; side by side a share; what is configured counts
    assert [threads_of(TrainerConfig(), jobs) for jobs in (1, 4, 100)] == [5, 3, 1]
    assert threads_of(TrainerConfig(devices=2), 1) == 6 and threads_of(TrainerConfig(threads=7), 4) == 7
    monkeypatch.setattr(mgsr.study.processes, "usable_cores", lambda: 2)
    assert threads_of(TrainerConfig(), 1) == 2
