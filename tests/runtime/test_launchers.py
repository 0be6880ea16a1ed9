"""Variables that another job has left in the environment do not make a rank of a process."""

from __future__ import annotations

import pytest

from mgsr.runtime.launchers import by_srun, by_torchrun, forget_strangers

TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "x",
}
SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
}


@pytest.mark.parametrize(
    "left",
    [
        {"RANK": "3"},
        {"LOCAL_RANK": "1"},
        {"SLURM_PROCID": "4"},
        {"JSM_NAMESPACE_RANK": "2"},
        {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"},
        # what Lightning would end in a traceback for when it is imported
        {"RANK": "abc"},
        {"LOCAL_RANK": ""},
        # complete, and contradictory
        {**TORCHRUN, "RANK": "4"},
        {**TORCHRUN, "LOCAL_RANK": "-1"},
        {**SRUN, "SLURM_PROCID": "8"},
        # a batch script of eight tasks that srun did not start
        {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"},
    ],
)
def test_what_started_no_rank_is_forgotten_and_named(left: dict[str, str]) -> None:
    environ = dict(left)
    assert not by_torchrun(environ) and not by_srun(environ)
    named = forget_strangers(environ)
    assert named and all(line.partition("=")[2] == left[line.partition("=")[0]] for line in named)
    assert not {"RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"} & set(environ)
    assert forget_strangers(environ) == []


@pytest.mark.parametrize("launcher", [TORCHRUN, SRUN])
def test_what_started_this_process_stays(launcher: dict[str, str]) -> None:
    environ = {**launcher, "HOME": "/"}
    assert by_torchrun(environ) or by_srun(environ)
    assert forget_strangers(environ) == [] and environ == {**launcher, "HOME": "/"}


def test_the_one_task_of_a_batch_script_is_a_rank_and_silent() -> None:
    one = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert by_srun(one) and forget_strangers(dict(one)) == []
    # without --ntasks SLURM numbers it too, and says nothing of tasks
    assert forget_strangers({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) == []


def test_torchrun_within_a_slurm_job_leaves_its_ranks_alone() -> None:
    environ = {**TORCHRUN, **SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert forget_strangers(dict(environ)) == [] and by_torchrun(environ)
