"""The real command line on two processes, and what a cluster's scheduler does to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.distributed.distributed_c10d import Backend, BackendConfig

from mgsr.config.load import load_config
from mgsr.config.schema import TrainerConfig
from mgsr.runtime.errors import ConfigError, UserError
from mgsr.runtime.faults import VARIABLE
from mgsr.training import launch
from mgsr.training.checkpoint import ResumePoint, newest_whole, rescale, step_of
from mgsr.training.launch import StopRequest, environment, in_slurm, joined, must_launch
from mgsr.training.optim import Length
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train
from tests.conftest import Make
from tests.reliability.harness import SMALL

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_NAME": "mgsr",
}


def mgsr(folder: Path, *words: str, points: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    path = folder / "small.yaml"
    path.write_text(SMALL)
    command = [sys.executable, "-m", "mgsr", "train", *words]
    own = {"OMP_NUM_THREADS": "1", VARIABLE: points, **variables}
    return subprocess.run(
        command, env={**os.environ, **own}, cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("mgsr: ")]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_ranks_one_of_which_dies_and_one_of_which_is_asked_to_stop(tmp_path: Path) -> None:
    run = tmp_path / "runs/torture/mgsr/seed=0"
    died = mgsr(tmp_path, "small.yaml", "trainer.devices=2", points="step.end=kill@8#1")
    assert died.returncode == 1, died.stderr
    said = lines(died.stderr)
    assert any("rank 1 was killed (SIGKILL)" in line and "--resume" in line for line in said), died.stderr
    assert "Traceback" not in died.stderr, died.stderr
    first = newest_whole(run)
    assert first is not None

    stopped = mgsr(tmp_path, "--resume", str(run), points="step.end=stop@1#1")
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert any("stopped by SIGTERM" in line for line in lines(stopped.stderr)), stopped.stderr
    second = newest_whole(run)
    assert second is not None and step_of(second) > step_of(first)
    # the first rank alone speaks, and all write text
    assert stopped.stdout.count("teacher: taken from") == 1
    assert {int(path.name.split("-")[1]) for path in run.glob("scrg/round=*/shard-*.jsonl")} == {0, 1}


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_slurm_job_at_its_end_saves_stops_and_is_queued_again(tmp_path: Path) -> None:
    fake = tmp_path / "bin" / "scontrol"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    fake.chmod(0o755)
    path = {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    words = ("small.yaml", "--resume", "auto")
    stopped = mgsr(tmp_path, *words, points="step.end=announce@7", **SLURM, **path)
    assert stopped.returncode == 128 + signal.SIGUSR1, stopped.stderr
    assert (tmp_path / "asked").read_text().split() == ["requeue", "7"]
    assert "SLURM job 7: queued again" in stopped.stdout
    # the same script again
    again = mgsr(tmp_path, *words, **SLURM, **path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "runs/torture/mgsr/seed=0/metrics.json").exists()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [n for n in os.environ if n.startswith(("SLURM", "TORCHELASTIC"))] + ["RANK", "WORLD_SIZE"]:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def config(devices: int = 1, nodes: int = 1) -> TrainerConfig:
    return TrainerConfig(accelerator="cpu", devices=devices, num_nodes=nodes)


def torchrun(bare: pytest.MonkeyPatch, world: int) -> None:
    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}
    for name, value in {**place, "TORCHELASTIC_RUN_ID": "x"}.items():
        bare.setenv(name, str(value))


def test_who_starts_the_ranks(bare: pytest.MonkeyPatch) -> None:
    assert not must_launch(config())
    assert must_launch(config(2))
    with pytest.raises(ConfigError, match="torchrun or srun on every node"):
        must_launch(config(2, 2))
    torchrun(bare, 4)
    assert not must_launch(config(2, 2))
    found = environment(config(2, 2))
    assert found is not None and found.world_size() == 4


def test_slurm_tasks_are_ranks_and_a_lone_task_starts_its_own(bare: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        bare.setenv(name, value)
    assert in_slurm()
    found = environment(config())
    # Lightning's own requeueing saves in mid-step
    assert found is not None and not found.auto_requeue  # type: ignore[attr-defined]
    assert must_launch(config(2))
    bare.setenv("SLURM_NTASKS", "8")
    # a batch script of eight tasks, without srun: waiting for the other seven would take half an hour
    assert must_launch(config(8))
    bare.setenv("SLURM_STEP_ID", "0")
    with pytest.raises(ConfigError, match="--ntasks-per-node"):
        must_launch(config(8))
    bare.setenv("SLURM_NTASKS_PER_NODE", "8")
    assert not must_launch(config(8))


def test_another_number_of_processes_than_devices_is_refused(bare: pytest.MonkeyPatch) -> None:
    torchrun(bare, 4)
    with pytest.raises(ConfigError, match="is 2, and 4 processes were started"), joined(config(2)):
        pass


def test_a_failed_requeue_is_said(bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bare.setenv("SLURM_ARRAY_JOB_ID", "5")
    bare.setenv("SLURM_ARRAY_TASK_ID", "3")
    bare.setenv("PATH", "")
    launch.requeue()
    assert "SLURM job 5_3: cannot be queued again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("teacher.placement=sharded",), "fsdp2"),
        (("trainer.strategy=fsdp2", "trainer.precision=16-mixed"), "bf16-mixed"),
        (("trainer.strategy=fsdp2", "trainer.compile=true"), "trainer.compile"),
        (("trainer.devices=2", "scrg.backend=vllm"), "scrg.backend"),
        (("teacher.placement=disk",), "replicated"),
        (("trainer.strategy=fsdp2", "teacher.placement=sharded", "objective.teacher_top_k=8"), "teacher_top_k"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, overrides: tuple[str, ...], named: str) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    with pytest.raises(ConfigError, match=named):
        load_config(path, overrides)


def test_progress_of_an_epoch_in_another_number_of_micro_batches() -> None:
    """Three steps of one micro-batch are three steps of four."""
    progress = {"ready": 3, "started": 3, "processed": 3, "completed": 2}
    loader = {"_sampler_iter_yielded": 3, "_num_yielded": 3, "_iterator_finished": False}
    loops = {
        "epoch_loop.batch_progress": {"current": progress},
        "state_dict": {"combined_loader": [loader]},
    }
    rescale(loops, 1, 4)
    assert progress == {"ready": 12, "started": 12, "processed": 12, "completed": 11}
    assert loader == {"_sampler_iter_yielded": 12, "_num_yielded": 12, "_iterator_finished": False}
    rescale(loops, 4, 2)
    assert progress["processed"] == 6


def test_other_steps_per_epoch_are_refused(tmp_path: Path) -> None:
    point = ResumePoint(tmp_path, 1, StopRequest(""), Length(5, 10, 2, 1))
    with pytest.raises(UserError, match="had 6 steps, here it has 5"):
        point.on_load_checkpoint(None, None, {"between_epochs": True, "steps_per_epoch": 6})  # type: ignore[arg-type]


def test_a_number_that_another_job_has_left_costs_a_run_no_curves(
    bare: pytest.MonkeyPatch, make_config: Make
) -> None:
    """Lightning takes it from single variables, when it is imported: other than the first rank writes nothing."""
    bare.setattr(rank_zero_only, "rank", 3)
    bare.setenv("RANK", "3")
    # of a shell within a job: there Lightning would ask for all tasks of it
    bare.setenv("SLURM_NTASKS", "8")
    small = make_config("train.epochs=1")
    train(small)
    assert len(list(run_folder(small).glob("events.*"))) >= 1


def test_a_gpu_that_is_not_there_is_refused(bare: pytest.MonkeyPatch) -> None:
    # whatever this machine has
    bare.setattr(torch.cuda, "device_count", lambda: 0)
    torchrun(bare, 2)
    wanted = TrainerConfig(accelerator="cuda", devices=2)
    with pytest.raises(ConfigError, match="this machine has 0 GPU"), joined(wanted):
        pass


@pytest.mark.parametrize(
    ("accelerator", "gpus", "devices", "there"),
    [("cpu", 0, 1_000_000_000, r"2 cores"), ("cuda", 2, 3, r"2 GPUs"), ("auto", 0, 9, r"2 cores")],
)
def test_more_processes_than_devices_are_not_even_started(
    accelerator: str, gpus: int, devices: int, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(launch, "usable_cores", lambda: 2)
    wanted = TrainerConfig(accelerator=accelerator, devices=devices)
    with pytest.raises(ConfigError, match=f"is {devices}, and this machine has {there}; lower it"):
        launch.launch(["train"], wanted)


def test_a_stage_that_was_never_torn_down_costs_the_next_one_nothing() -> None:
    """`signal` shows the handler before: of a long row of them that would take for ever."""
    before = signal.getsignal(signal.SIGINT)
    stops = [StopRequest("again") for _ in range(60)]
    for stop in stops:
        stop.watch()
    for stop in reversed(stops):
        stop.unwatch()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("accelerator", "backends"),
    [("cpu", {"cpu": "gloo", "cuda": "gloo"}), ("cuda", {"cpu": "gloo", "cuda": "nccl"})],
)
def test_what_processors_tell_one_another_goes_over_gloo(
    accelerator: str, backends: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With GPUs too: no rank's GPU is waited for, and none need be chosen for a barrier."""
    found: list[str] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **options: found.append(backend))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(launch, "environment", lambda config: FakeRanks())
    with joined(TrainerConfig(accelerator=accelerator, devices=2)):
        pass
    by_device = BackendConfig(Backend(found[0])).get_device_backend_map()
    assert {device: by_device[device] for device in backends} == backends


class FakeRanks(TorchElasticEnvironment):
    """The first of two."""

    def world_size(self) -> int:
        return 2

    def global_rank(self) -> int:
        return 0

    def local_rank(self) -> int:
        return 0
