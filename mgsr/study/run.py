"""`mgsr ablate`: arms x seeds. What is complete is skipped, what was begun goes on, nothing is mixed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock
from typing import Any

import torch

import mgsr
from mgsr.config.load import dump, fingerprint
from mgsr.config.schema import ExperimentConfig
from mgsr.runtime.environment import numerics_of
from mgsr.runtime.errors import ConfigError, RunInterruptedError, UserError
from mgsr.runtime.files import write_atomically
from mgsr.runtime.progress import Advance, progress, say
from mgsr.runtime.wording import duration, plural
from mgsr.study.collect import collect
from mgsr.study.machines import agree_on_threads, threads_of, torch_threads
from mgsr.study.results import (
    hashes,
    of_commit,
    other_hashes,
    other_keys,
    plain,
    read_result,
    recorded,
    ways_out,
    write_result,
)
from mgsr.study.starting_models import refuse_other_start
from mgsr.study.study import Study, result_path
from mgsr.study.study_keys import refuse_unknown_arm
from mgsr.study.summary import summarise
from mgsr.study.tensorboard_events import remove_events, write_events, write_layout
from mgsr.study.written_study import baseline_of, write_study
from mgsr.training.run_folder import ENVIRONMENT, METRICS, read_run_file, run_folder
from mgsr.training.train import prepare, train


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: str
    seed: int
    config: ExperimentConfig
    hashes: dict[str, str]
    path: Path

    @property
    def folder(self) -> Path:
        return run_folder(self.config)


def run_study(
    study: Study,
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    *,
    arms: Sequence[str] = (),
    jobs: int = 1,
    record: bool = False,
) -> dict[str, Any]:
    """Run every arm with every seed.

    Args:
        arms: only these (empty: all).
        jobs: runs side by side, each a process of its own with its share of the processor or a device.
        record: read and write result files where the study has its own; otherwise under the run root, and beside
            them the study as it was run, for `mgsr report`.

    Returns:
        The summary that is written to `<run_root>/<study>/metrics.json`.

    Raises:
        UserError: a result or a begun run comes from another numerics version, another configuration, other data
            or another number of threads.
    """
    refuse_unknown_arm(study.path, arms, study.arms)
    # in the order of the study, whatever was typed first
    arms = [arm for arm in study.arms if arm in arms or not arms]
    runs = _plan(study, seeds, overrides, arms, record)
    folder = Path(runs[0].config.run_root) / study.name
    agree_on_threads(study, [(run.config, run.path) for run in runs], jobs)
    done = {(run.arm, run.seed): result for run in runs if (result := _complete(run, study, record)) is not None}
    pending = [run for run in runs if (run.arm, run.seed) not in done]
    for run in pending:
        _refuse_other_numerics(run)
    if runs[0].path.parents[1] == folder / "results":
        write_study(study, folder, arms, overrides)
    if len(arms) > 1 and baseline_of(study, arms) != study.baseline:
        say(f"{study.name}: compared with `{arms[0]}`, as `{study.baseline}` is not among these arms")
    if done:
        say(f"{study.name}: {len(done)} of {plural(len(runs), 'run')} complete already")
    # runs that were recorded elsewhere get TensorBoard events: their folders have none
    complete = [run for run in runs if (run.arm, run.seed) in done]
    if written := [run for run in complete if write_events(run.folder, run.config, done[run.arm, run.seed])]:
        say(f"{study.name}: TensorBoard events of {plural(len(written), 'run')} written from their results")
    # an arm that reads another's result comes after it
    reads = [run for run in pending if any("{results}" in str(v) for v in study.arms[run.arm].values())]
    run_all(study, [run for run in pending if run not in reads], jobs, first=len(done), total=len(runs))
    run_all(study, reads, jobs, first=len(runs) - len(reads), total=len(runs))
    for run in pending:
        found = read_result(run.path)
        assert found is not None
        done[run.arm, run.seed] = found
    metrics: dict[str, dict[int, dict[str, Any]]] = {run.arm: {} for run in runs}
    for (arm, seed), result in done.items():
        metrics[arm][seed] = result["metrics"]
    summary = summarise(study, metrics)
    write_atomically(folder / "metrics.json", json.dumps(summary, indent=2) + "\n")
    write_layout(folder / "layout")
    return summary


def _plan(
    study: Study, seeds: Sequence[int], overrides: Sequence[str], arms: Sequence[str], record: bool
) -> list[Run]:
    """All runs, their configurations checked: a bad arm is refused before the first one has run for an hour."""
    base = study.base_config(overrides)
    root = Path(base.run_root)
    runs: list[Run] = []
    same: dict[str, str] = {}
    for seed in seeds:
        for arm in arms:
            folder = study.results if record else root / study.name / "results"
            config = study.config(arm, seed, overrides, folder)
            found = hashes(config, base)
            if seed == seeds[0] and found["data"] != same.setdefault("data", found["data"]):
                raise ConfigError(f"{study.path}: arm `{arm}` reads other data than {arms[0]}: no fair comparison")
            runs.append(Run(arm, seed, config, found, result_path(folder, arm, seed)))
    return runs


def _complete(run: Run, study: Study, record: bool) -> dict[str, Any] | None:
    """The run's result where it is there, or where another study has recorded the very same run."""
    result = read_result(run.path)
    if result is not None:
        changed = other_hashes(result, run.hashes)
        if changed:
            keys = other_keys(result, run.folder, run.config, study.arms[run.arm])
            raise UserError(
                f"{run.path}: comes from another {', '.join(changed)}{keys}{of_commit(result['environment'])}; "
                f"results are never mixed: {ways_out(run.path, run.folder, result, changed, record)}"
            )
        return result
    if record:
        for other in recorded(study.home.parent):
            if _is_same_run(run, other):
                mine = {**other, "study": study.name, "arm": run.arm, "overrides": plain(study.arms[run.arm])}
                refuse_other_start(run.path.parents[1], mine)
                write_result(run.path, mine)
                say(f"{study.name}: {run.arm}, seed {run.seed}: the same run as {other['study']}/{other['arm']}")
                return mine
    return None


def _is_same_run(run: Run, result: Mapping[str, Any]) -> bool:
    environment = result["environment"]
    return (
        not other_hashes(result, run.hashes)
        and numerics_of(environment) == mgsr.NUMERICS_VERSION
        and environment.get("threads", run.config.trainer.threads) == run.config.trainer.threads
    )


def _refuse_other_numerics(run: Run) -> None:
    """A begun run goes on only with the numerics version that it began with."""
    if not (run.folder / ENVIRONMENT).exists():
        return
    begun = read_run_file(run.folder, ENVIRONMENT)
    version = numerics_of(begun)
    if version != mgsr.NUMERICS_VERSION:
        raise UserError(
            f"{run.folder}: begun with numerics version {version}{of_commit(begun)}, here it is "
            f"{mgsr.NUMERICS_VERSION}; take the code of that version, or delete the folder to run it anew"
        )


def run_all(study: Study, pending: Sequence[Run], jobs: int, *, first: int = 0, total: int | None = None) -> None:
    """Run them and write their result files, `jobs` side by side; `first` runs of `total` are complete."""
    if not pending:
        return
    total = first + len(pending) if total is None else total
    several = [run for run in pending if run.config.trainer.devices * run.config.trainer.num_nodes > 1]
    if several and jobs > 1:
        raise ConfigError("`--jobs`: runs of several devices go one after another; leave --jobs out")
    _prepare([run for run in pending if run not in several and not (run.folder / METRICS).exists()])
    for run in pending:
        remove_events(run.folder)
    with progress(study.name, total, unit="runs", first=first, every=0.0 if jobs > 1 else 10.0) as advance:
        if jobs > 1:
            _side_by_side(study, pending, jobs, advance)
            return
        for number, run in enumerate(pending, first + 1):
            say(f"[{number}/{total}] {study.name}: {run.arm}, seed {run.seed}")
            if run in several:
                _in_process(run, 1, None)
            else:
                with torch_threads():
                    train(run.config, resume=(run.folder / "config.yaml").exists())
            _record(study, run)
            advance(1)


def _prepare(runs: Sequence[Run]) -> None:
    """What runs start from is made once, before all of them and with torch's own number of threads.

    A teacher that was fine-tuned with another number of threads is another one: it must not hang on `jobs`.
    """
    starts = {fingerprint(r.seed, r.config.teacher, r.config.student, r.config.evaluation): r for r in runs}
    for run in starts.values():
        prepare(run.config)


def _side_by_side(study: Study, pending: Sequence[Run], jobs: int, advance: Advance) -> None:
    """Each run takes a device that is free; where there are fewer than jobs, several share one."""
    devices, failed, lock = _devices(), Event(), Lock()
    free: SimpleQueue[str | None] = SimpleQueue()
    for number in range(jobs):
        free.put(devices[number % len(devices)] if devices else None)

    def work(run: Run) -> None:
        if failed.is_set():
            return
        device = free.get()
        try:
            _in_process(run, jobs, device)
            _record(study, run)
        except BaseException:
            failed.set()
            raise
        finally:
            free.put(device)
        with lock:
            advance(1)

    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(work, pending):
            pass


def _record(study: Study, run: Run) -> None:
    result = collect(run.folder, study.name, run.arm, study.arms[run.arm], run.hashes)
    begun = numerics_of(result["environment"])
    if begun != mgsr.NUMERICS_VERSION:
        here = mgsr.NUMERICS_VERSION
        raise UserError(f"{run.folder}: begun with numerics version {begun}, here it is {here}; delete it")
    refuse_other_start(run.path.parents[1], result)
    write_result(run.path, result)
    rouge, seconds = result["metrics"]["result"]["test"]["rouge_l"], result["metrics"]["seconds"]
    say(f"{study.name}: {run.arm}, seed {run.seed}: test ROUGE-L {rouge:.2f}, {duration(seconds)}")


def _devices() -> list[str]:
    """The devices this process may use, by the names its children know them by."""
    allowed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return allowed or [str(number) for number in range(torch.cuda.device_count())]


def _in_process(run: Run, jobs: int, device: str | None) -> None:
    """`mgsr train` of one run, with its share of the processor; what it says goes to `train.log`.

    Raises:
        UserError: it failed; its last line is in the message.
    """
    queue = run.folder.parent / f".{run.folder.name}.yaml"
    write_atomically(queue, dump(run.config))
    log = run.folder.parent / f"{run.folder.name}.log"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads_of(run.config.trainer, jobs))}
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    command = [sys.executable, "-m", "mgsr", "train", str(queue), f"run_root={run.config.run_root}"]
    if (run.folder / "config.yaml").exists():
        command += ["--resume", str(run.folder)]
    with log.open("a", encoding="utf-8") as out:
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"# {started} {' '.join(command)}", file=out, flush=True)
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=environment, check=False)
    queue.unlink(missing_ok=True)
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if done.returncode in (130, 143) and lines:
            raise RunInterruptedError(lines[-1].removeprefix("mgsr: "), done.returncode - 128)
        raise UserError(f"{run.arm}, seed {run.seed} failed ({log}): {lines[-1] if lines else 'no output'}")
