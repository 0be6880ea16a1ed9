"""How the processes of a run are started, find one another, and are asked to stop.

`mgsr train` with several devices starts one process per device itself, by torch's elastic agent; under torchrun
and srun they are there already. Either way Lightning finds the process group that is made here.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from mgsr.config.schema import ExperimentConfig, TrainerConfig
from mgsr.runtime import progress
from mgsr.runtime.devices import working_device
from mgsr.runtime.errors import ConfigError, RunInterruptedError, UserError
from mgsr.runtime.launchers import by_srun, by_torchrun
from mgsr.runtime.processor import usable_cores, usable_threads
from mgsr.runtime.progress import say
from mgsr.runtime.ranks import BACKENDS, is_first
from mgsr.runtime.wording import plural
from mgsr.training.run_folder import run_folder

# between a worker's request to stop and its death: a resume point takes seconds
GRACE = 30


def environment(config: TrainerConfig) -> ClusterEnvironment | None:
    """Who started this process among others: torchrun (or `launch`), SLURM, or None."""
    if by_torchrun():
        return TorchElasticEnvironment()
    if by_srun() and in_slurm():
        tasks = int(os.environ.get("SLURM_NTASKS", "1"))
        # the one task of a job may start its own ranks
        if tasks > 1 or config.devices * config.num_nodes == 1:
            if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
                raise ConfigError(f"SLURM has {tasks} tasks by --ntasks; ask for them by --ntasks-per-node")
            # Lightning would save wherever a run stands, and queue it again: see ResumePoint
            return SLURMEnvironment(auto_requeue=False)
    return None


def cluster_environment(config: TrainerConfig) -> ClusterEnvironment:
    """As `environment`, but for Lightning: a process that nobody started among others is the first one."""
    found = environment(config)
    if found is None:
        found = LightningEnvironment()
        # Lightning has numbered it when it was imported, perhaps by what another job had left
        found.set_global_rank(0)
    return found


def in_slurm() -> bool:
    """Whether a SLURM job runs this process: it may ask for an end by SIGUSR1, and be queued again."""
    return "SLURM_JOB_ID" in os.environ and SLURMEnvironment.detect()


def must_launch(config: TrainerConfig) -> bool:
    """Whether this process has to start the ranks, because nobody has.

    Raises:
        ConfigError: several nodes, which one process cannot start.
    """
    if config.devices * config.num_nodes == 1 or environment(config) is not None:
        return False
    if config.num_nodes > 1:
        raise ConfigError(
            f"`trainer.num_nodes` is {config.num_nodes}: start the processes with torchrun or srun on every node"
        )
    return True


def launch(words: Sequence[str], config: TrainerConfig) -> int:
    """Run `mgsr WORDS` on every device of this machine; returns the exit code.

    One rank that dies ends all: the others are asked to stop, and killed after `GRACE` seconds.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _check_devices(config)
    _quiet_agent()
    threads = usable_threads(config.threads or max(1, usable_cores() // config.devices))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.devices,
        run_id=uuid.uuid4().hex[:8],
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.2,
        shutdown_timeout=GRACE,
    )
    try:
        elastic_launch(agent, sys.executable)("-m", "mgsr", *words)
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        codes = {number: failure.exitcode for number, failure in error.failures.items()}
        return _explained(codes, error.get_first_failure()[0])
    return 0


def _check_devices(config: TrainerConfig) -> None:
    """Refuse more processes than there is anything for, before they are started.

    Raises:
        ConfigError: fewer GPUs; or, on a CPU, far fewer cores.
    """
    if working_device(config.accelerator).type == "cuda":
        most, what = torch.cuda.device_count(), "GPU"
    else:
        # a few on one core are for trying things out
        most, what = max(8, usable_cores()), "core"
    if config.devices > most:
        have = plural(most if what == "GPU" else usable_cores(), what)
        raise ConfigError(f"`trainer.devices` is {config.devices}, and this machine has {have}; lower it")


def _explained(codes: dict[int, int], first: int) -> int:
    """The exit code of the job from those of its ranks; a rank that could say nothing itself is spoken for."""
    code = codes[first]
    if code > 0:
        # it has said why
        return code
    name = signal.Signals(-code).name
    print(
        f"mgsr: error: rank {first} was killed ({name}) and the others were stopped; the resume points are whole: "
        "go on with mgsr train --resume RUN",
        file=sys.stderr,
    )
    return 1


def _quiet_agent() -> None:
    """The agent's own reports tell what the ranks have told already."""
    import logging

    for name in ("elastic", "elastic.agent.server.api", "launcher", "run"):
        logging.getLogger(f"torch.distributed.{name}").setLevel(logging.CRITICAL)


@contextmanager
def joined(config: TrainerConfig) -> Iterator[None]:
    """This process as one of the ranks that `config` asks for, for as long as the block lasts.

    Raises:
        ConfigError: another number of processes was started, or this one's GPU is not there.
        UserError: the ranks do not find one another.
    """
    wanted, place = config.devices * config.num_nodes, environment(config)
    if place is None or (wanted == 1 and place.world_size() == 1):
        if wanted > 1:
            raise ConfigError(f"`trainer.devices`: {wanted} processes are wanted and this is the only one")
        yield
        return
    if place.world_size() != wanted:
        raise ConfigError(
            f"`trainer.devices` x `trainer.num_nodes` is {wanted}, and {place.world_size()} processes were "
            "started; make them agree"
        )
    gpu = config.accelerator in ("gpu", "cuda") or (config.accelerator == "auto" and torch.cuda.is_available())
    if gpu:
        if place.local_rank() >= torch.cuda.device_count():
            raise ConfigError(
                f"`trainer.devices` is {config.devices}, and this machine has "
                f"{plural(torch.cuda.device_count(), 'GPU')}"
            )
        torch.cuda.set_device(place.local_rank())
    try:
        dist.init_process_group(
            BACKENDS[gpu],
            init_method=f"tcp://{place.main_address}:{place.main_port}"
            if isinstance(place, SLURMEnvironment)
            else "env://",
            rank=place.global_rank(),
            world_size=wanted,
            timeout=timedelta(minutes=config.timeout_minutes),
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the {wanted} ranks do not find one another: {str(error).splitlines()[0]}") from error
    progress.silence(place.global_rank() > 0)
    try:
        yield
    finally:
        progress.silence(False)
    # not after an error: the others may be gone, and this would wait for them
    dist.destroy_process_group()


def requeue() -> None:
    """Have SLURM queue this job again, to be called by the first rank; says so where that fails."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], check=False, capture_output=True, text=True, timeout=60
        )
        failed = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        failed = str(error)
    progress.say(f"SLURM job {job}: {'cannot be queued again: ' + failed if failed else 'queued again'}")


def _signal(number: int) -> str:
    """A signal by the name that people have for it."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


@dataclass
class StopRequest:
    """A user's wish to stop: noted when the signal comes, carried out where nothing is lost.

    The first Ctrl-C (or SIGTERM) lets the step or batch at hand finish; a second one ends at once. Under SLURM
    SIGUSR1 announces the end of the job's time, as in `#SBATCH --signal=USR1@120`, and the job is queued again.

    Args:
        go_on: the command that takes up a stopped stage.
        stage: its name, where it is not the run's main job.
        standing: where the newest resume point is, as `step 3 of 12`.
    """

    go_on: str
    stage: str = ""
    standing: str = ""
    asked: int | None = None
    # `signal` shows the handler that it replaces, and that one what it has replaced: two of them, and so on
    _previous: dict[int, Any] = field(default_factory=dict, repr=False)

    def watch(self) -> None:
        """Handle the signals from here on; of no effect outside the main thread, whose owner handles them."""
        announced = (signal.SIGUSR1,) if in_slurm() else ()
        for number in (signal.SIGINT, signal.SIGTERM, *announced):
            try:
                before = signal.signal(number, self._ask)
            except ValueError:
                return
            self._previous.setdefault(number, before)

    def unwatch(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number
        say("\nstopping after this step; once more to stop at once")

    def check(self) -> None:
        """Called between batches of long work without steps (a round, the dev set): stop there if asked."""
        if self.asked is not None:
            if self.asked == signal.SIGUSR1 and is_first():
                requeue()
            raise self.ended()

    def ended(self) -> RunInterruptedError:
        """What a stop is answered with: where the stage stands, and how it goes on."""
        number = self.asked or signal.SIGINT
        place = (f" in {self.stage}" if self.stage else "") + (f" at {self.standing}" if self.standing else "")
        return RunInterruptedError(f"stopped by {_signal(number)}{place}; go on with: {self.go_on}", number)


def stop_request(config: ExperimentConfig, stage: str = "") -> StopRequest:
    """Of a run, or of a stage of its own that comes before; the run's folder takes both up once it is there."""
    folder = run_folder(config)
    begun = (folder / "config.yaml").exists()
    return StopRequest(f"mgsr train --resume {shlex.quote(str(folder))}" if begun else "the same command", stage)
