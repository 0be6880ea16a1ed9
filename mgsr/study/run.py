"""`mgsr ablate`: arms x seeds. What is recorded is skipped, what was begun goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock
from typing import Any

import mgsr
from mgsr.config.load import fingerprint
from mgsr.config.origin import placed
from mgsr.config.schema import ExperimentConfig
from mgsr.models.preflight import check_objective_of
from mgsr.runtime import processor
from mgsr.runtime.environment import cpu_model
from mgsr.runtime.errors import ConfigError, UserError
from mgsr.runtime.files import write_atomically
from mgsr.runtime.progress import Advance, progress, say
from mgsr.runtime.wording import duration, plural
from mgsr.study import pool, view
from mgsr.study.processes import devices_here, in_process
from mgsr.study.study import Study, load_study
from mgsr.study.study_keys import refuse_unknown_arm
from mgsr.study.summary import summarise
from mgsr.study.tensorboard_events import remove_events, write_events, write_layout
from mgsr.study.written_study import write_study
from mgsr.training.run_folder import ENVIRONMENT, METRICS, START, read_run_file, run_folder
from mgsr.training.train import prepare, train

STARTS = ("teacher", "student", "trainer", "data")
"""Parts of a configuration that make the student which a run begins with."""


@dataclass(frozen=True)
class Run:
    """One arm with one seed, and what is recorded of it."""

    arm: str
    seed: int
    config: ExperimentConfig
    recorded: tuple[dict[str, Any], ...]

    @property
    def folder(self) -> Path:
        return run_folder(self.config)


def run_study(
    study: Study,
    seeds: Sequence[int] = (),
    overrides: Sequence[str] = (),
    *,
    arms: Sequence[str] = (),
    jobs: int = 1,
    record: bool = False,
) -> dict[str, Any]:
    """Run every arm with every seed.

    Args:
        seeds: empty: those that the study declares, or 0.
        arms: only these (empty: all).
        jobs: runs side by side, each a process of its own with its share of the processor or a device.
        record: read and write the pool beside the study's folder. Otherwise it lies below the run root, and the
            study as it was run lies beside its runs, for `mgsr report`.

    Returns:
        The summary that is written to `<run_root>/<study>/metrics.json`.

    Raises:
        UserError: an arm reads other data than the others, or a begun run comes from another numerics version.
    """
    refuse_unknown_arm(study.path, arms, study.arms)
    # in the order of the study, whatever was typed first
    arms = [arm for arm in study.arms if arm in arms or not arms]
    seeds = list(seeds or study.seeds or (0,))
    root = Path(study.base_config(overrides).run_root)
    place = study.pool(root, record=record)
    _check(study, seeds[0], overrides, arms)
    told = study
    if undeclared := [seed for seed in seeds if study.seeds and seed not in study.seeds]:
        what = plural(len(undeclared), "seed")
        say(f"{study.name}: {what} not declared in {study.path}: recorded, and in no verdict of its report")
    if not record:
        write_study(study, root / study.name, arms, overrides, seeds)
        told = load_study(root / study.name)

    def found(some: Sequence[str]) -> list[Run]:
        return [_run(study, arm, seed, overrides, place) for seed in seeds for arm in some]

    # seed by seed, so that one that is whole can be compared; what reads another's result comes after it
    own = sorted((arm for arm in arms if not study.needs(arm)), key=lambda arm: arm != study.baseline)
    later = [arm for arm in arms if study.needs(arm)]
    total, done, skipped, said = len(arms) * len(seeds), 0, 0, 0
    ran: set[tuple[str, int]] = set()
    for group in (own, later):
        # what an arm reads has to begin with the student that it will begin with itself
        read = sorted({name for arm in group for name in study.needs(arm)})
        waiting = {run.seed for run in found(group) if not run.recorded}
        foreign = [run for run in found(read) if run.seed in waiting and (run.arm, run.seed) not in ran]
        foreign = [run for run in foreign if run.recorded and not _is_of_this_processor(run.recorded[0])]
        run_all(study, foreign, jobs, place, first=total - len(foreign), total=total)
        ran |= {(run.arm, run.seed) for run in foreign}
        runs = found(group)
        pending = [run for run in runs if not run.recorded]
        skipped += len(runs) - len(pending)
        if skipped > said and (pending or group is later):
            say(f"{study.name}: {skipped} of {plural(total, 'run')} complete already")
            said = skipped
        run_all(study, pending, jobs, place, first=done + len(runs) - len(pending), total=total)
        done += len(runs)
        ran |= {(run.arm, run.seed) for run in pending}
    # what was recorded on another machine may have begun with a student that the baseline has not, or the others
    for again in ({study.baseline}, {*arms} - {study.baseline}):
        runs = found(arms)
        apart = _apart(runs, study.baseline) - ran
        pending = [run for run in runs if run.arm in again and (run.arm, run.seed) in apart]
        if pending:
            say(f"{study.name}: {plural(len(pending), 'run')} again: recorded from another start than the others'")
        run_all(study, pending, jobs, place, first=total - len(pending), total=total)
    runs = found(arms)
    for run in runs:
        write_events(run.folder, run.config, run.recorded[0])
    if not told.seeds or {*seeds} & {*told.seeds}:
        seen = view.look(told, place, overrides, data={pool.data_of(run.config) for run in runs})
    else:  # figures of seeds that are in no verdict
        all_of = [view.Run(r.arm, r.seed, view.block_of(result), result) for r in runs for result in r.recorded]
        seen = view.View(told, tuple(all_of), {})
    if told.baseline not in seen.arms:
        told = replace(told, baseline=seen.arms[0], asked=tuple(arm for arm in told.asked if arm != seen.arms[0]))
        seen = replace(seen, study=told)
    if len(seen.arms) > 1 and told.baseline != study.baseline:
        say(f"{study.name}: compared with `{told.baseline}`, as `{study.baseline}` is not among these arms")
    summary = summarise(seen)
    write_atomically(root / study.name / "metrics.json", json.dumps(summary, indent=2) + "\n")
    write_layout(root / study.name / "layout")
    return summary


def _apart(runs: Sequence[Run], baseline: str) -> set[tuple[str, int]]:
    """Arms and seeds that began with no student of the baseline's, and the baseline with these seeds.

    An arm with models of its own begins with another one by right.
    """
    base = {run.seed: run for run in runs if run.arm == baseline}
    starts = {(run.arm, run.seed): {view.block_of(result) for result in run.recorded} for run in runs}
    apart = {
        (run.arm, run.seed)
        for run in runs
        if run.seed in base
        and not starts[run.arm, run.seed] & starts[baseline, run.seed]
        and all(getattr(run.config, part) == getattr(base[run.seed].config, part) for part in STARTS)
    }
    return apart | {(baseline, seed) for _, seed in apart}


def _check(study: Study, seed: int, overrides: Sequence[str], arms: Sequence[str]) -> None:
    """Refuse, before the first run has run for an hour, an arm that cannot run or has other data."""
    data: dict[str, str] = {}
    for arm in arms:
        config = study.config(arm, seed, overrides, {name: name for name in study.arms})
        with placed(config):
            check_objective_of(config)
        data[arm] = pool.shared_part(pool.data_of(config))
        if data[arm] != data[arms[0]]:
            raise ConfigError(f"{study.path}: arm `{arm}` reads other data than {arms[0]}: no fair comparison")


def _run(study: Study, arm: str, seed: int, overrides: Sequence[str], place: Path) -> Run:
    """The run as it stands, with what is recorded of it on the same rows."""
    others = {}
    for name in study.needs(arm):
        if found := _recorded(study.config(name, seed, overrides), place):
            others[name] = str(pool.path_in(place, found[0]))
    config = study.config(arm, seed, overrides, others)
    return Run(arm, seed, config, tuple(_recorded(config, place)))


def _recorded(config: ExperimentConfig, place: Path) -> list[dict[str, Any]]:
    """Runs of a configuration on its rows; first those of this kind of processor, as their start is made here."""
    data = pool.data_of(config)
    same = (result for result in pool.find(place, pool.key_of(config)) if result["data"] == data)
    return sorted(same, key=lambda result: not _is_of_this_processor(result))


def _is_of_this_processor(result: Mapping[str, Any]) -> bool:
    return bool(result["environment"].get("cpu_model") == cpu_model(processor.described()))


def _refuse_other_numerics(run: Run) -> None:
    """A begun run goes on only with the numerics version that it began with."""
    if not (run.folder / ENVIRONMENT).exists():
        return
    version = read_run_file(run.folder, ENVIRONMENT)["numerics"]
    if version != mgsr.NUMERICS_VERSION:
        raise UserError(
            f"{run.folder}: begun with numerics version {version}, here it is {mgsr.NUMERICS_VERSION}; take the "
            "code of that version, or delete the folder to run it anew"
        )


def _refuse_other_models(run: Run, place: Path) -> None:
    """A run that is complete counts for what it was made of, and not for what lies there now."""
    if not (run.folder / METRICS).exists():
        return
    start, now = read_run_file(run.folder, START), pool.data_of(run.config)
    was = [each["data"] for each in pool.find(place, pool.key_of(run.config)) if each["start"] == start]
    if was and now not in was:
        shared = pool.shared_part(now) in map(pool.shared_part, was)
        what = "the student's source, or code of your own," if shared else "the rows or the teacher"
        raise UserError(
            f"{run.folder}: complete, but {what} changed since: put that back, name another run_root, or delete "
            "the folder to run it anew"
        )


def run_all(study: Study, pending: Sequence[Run], jobs: int, place: Path, *, first: int, total: int) -> None:
    """Run and record them, `jobs` side by side; `first` of `total` need no more work."""
    if not pending:
        return
    for run in pending:
        _refuse_other_numerics(run)
        _refuse_other_models(run, place)
    several = [run for run in pending if run.config.trainer.devices * run.config.trainer.num_nodes > 1]
    if several and jobs > 1:
        raise ConfigError("`--jobs`: runs of several devices go one after another; leave --jobs out")
    _prepare([run for run in pending if run not in several and not (run.folder / METRICS).exists()])
    for run in pending:
        remove_events(run.folder)
    with progress(study.name, total, unit="runs", first=first, every=0.0 if jobs > 1 else 10.0) as advance:
        if jobs > 1:
            _side_by_side(study, pending, jobs, place, advance)
            return
        for number, run in enumerate(pending, first + 1):
            say(f"[{number}/{total}] {study.name}: {run.arm}, seed {run.seed}")
            if run in several:
                in_process(run.config, 1, None)
            else:
                train(run.config, resume=(run.folder / "config.yaml").exists())
            _record(study, run, place)
            advance(1)


def _prepare(runs: Sequence[Run]) -> None:
    """What runs start from is made once, before all of them and with torch's own number of threads.

    A teacher that was fine-tuned with another number of threads is another one: it must not hang on `jobs`.
    """
    starts = {fingerprint(r.seed, r.config.teacher, r.config.student, r.config.evaluation): r for r in runs}
    for run in starts.values():
        prepare(run.config)


def _side_by_side(study: Study, pending: Sequence[Run], jobs: int, place: Path, advance: Advance) -> None:
    """Each run takes a device that is free; where there are fewer than jobs, several share one."""
    devices, failed, lock = devices_here(), Event(), Lock()
    free: SimpleQueue[str | None] = SimpleQueue()
    for number in range(jobs):
        free.put(devices[number % len(devices)] if devices else None)

    def work(run: Run) -> None:
        if failed.is_set():
            return
        device = free.get()
        try:
            in_process(run.config, jobs, device)
            _record(study, run, place)
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


def _record(study: Study, run: Run, place: Path) -> None:
    _refuse_other_numerics(run)
    result = pool.collect(run.folder, run.config)
    pool.record(place, result)
    test, seconds = result["metrics"]["result"]["test"], result["metrics"]["seconds"]
    right = f", {test['accuracy']:.1f} % right" if "accuracy" in test else ""
    say(f"{study.name}: {run.arm}, seed {run.seed}: ROUGE-L {test['rouge_l']:.2f}{right}, {duration(seconds)}")
