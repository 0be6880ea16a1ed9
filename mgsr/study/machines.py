"""What kinds of machine a study's runs come from: threads, processor and torch decide how sums are rounded.

Rounding grows into other texts and other weights, so all runs of a study have one number of threads. Processor and
torch are not always in one's hand: a mixture of those is named, not refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mgsr.config.schema import ExperimentConfig, TrainerConfig
from mgsr.runtime.environment import cpu_model
from mgsr.runtime.errors import UserError
from mgsr.runtime.processor import described, usable_cores
from mgsr.runtime.processor import name as cpu
from mgsr.runtime.progress import say
from mgsr.runtime.wording import plural
from mgsr.study.results import results_in
from mgsr.study.study import Study
from mgsr.training.run_folder import ENVIRONMENT, is_begun, read_run_file, run_folder


class Machine(NamedTuple):
    """What a run's environment says; None where an older one says nothing."""

    threads: int | None
    cpu: str | None
    torch: str | None
    devices: tuple[str, ...] = ()
    cpu_model: str | None = None

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'} per run" if self.threads else ""
        devices = ", ".join(self.devices) or "no GPU"
        cpu = f"{self.cpu} ({self.cpu_model})" if self.cpu and self.cpu_model else self.cpu
        return ", ".join(filter(None, (threads, cpu, f"torch {self.torch}" if self.torch else "", devices)))


def machine_of(environment: Mapping[str, Any]) -> Machine:
    found = {name: environment.get(name) for name in ("threads", "cpu", "torch", "cpu_model")}
    return Machine(**found, devices=tuple(environment.get("devices") or ()))


def machine_lines(results: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    """Every kind of machine in words, and a line that warns where there is more than one, otherwise empty.

    Arms are compared seed by seed, so that it matters whether a seed's runs have one kind among them.
    """
    of_seed: dict[int, list[Machine]] = {}
    for result in results:
        of_seed.setdefault(int(result["seed"]), []).append(machine_of(result["environment"]))
    counts = Counter(machine for machines in of_seed.values() for machine in machines)
    # by their names as well: of equally many runs the order must not be chance
    counted = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    if len(counted) == 1:
        return str(counted[0][0]), ""
    words = "; ".join(f"{machine} ({runs} run{'' if runs == 1 else 's'})" for machine, runs in counted)
    found = differing(machine for machine, _ in counted)
    if not found:
        return words, ""
    what = " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)
    said = f"**More than one kind of machine:** the runs differ in {what}, and rounding with it"
    mixed = [str(seed) for seed, machines in sorted(of_seed.items()) if differing(machines)]
    if not mixed:
        silent = any(machine.cpu is None for machine in counts)
        known = ", as far as they recorded it" if silent else ""
        return (
            words,
            f"{said}. All runs of a training seed have the same kind{known}: "
            "arms, paired by seed, can be compared.",
        )
    return words, (
        f"{said}: at training seed {', '.join(mixed)} differences between arms are not those of the arms alone."
    )


def differing(machines: Iterable[Machine]) -> list[str]:
    """In what machines are known to differ; what one of them doesn't say is no difference.

    >>> differing([Machine(1, None, "2.13"), Machine(2, "a Xeon", "2.13")])
    ['threads']
    """
    there = list(machines)
    values = {name: {getattr(m, name) for m in there} - {None} for name in Machine._fields}
    return [name for name, found in values.items() if len(found) > 1]


def threads_of(trainer: TrainerConfig, jobs: int) -> int:
    """CPU threads of a run: as configured; alone, torch's choice; otherwise its share of the processor."""
    if trainer.threads or jobs * trainer.devices == 1:
        return trainer.threads or min(torch.get_num_threads(), usable_cores())
    return max(1, usable_cores() // (jobs * trainer.devices))


@contextmanager
def torch_threads() -> Iterator[None]:
    """Whatever number of threads is set inside, torch has its own again behind it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def agree_on_threads(study: Study, runs: Sequence[tuple[ExperimentConfig, Path]], jobs: int) -> None:
    """Give every run the number of threads that the study's runs have; where there are none, their own.

    Args:
        runs: configuration, whose `trainer.threads` is set, and place of the result file.

    Raises:
        UserError: a run to come is configured otherwise, one was begun otherwise, the study's runs have several
            numbers already, or this process may not use so many cores.
    """
    folder = runs[0][1].parents[1]
    pending = [config for config, path in runs if not path.exists()]
    begun = {_name(c): read_run_file(run_folder(c), ENVIRONMENT) for c in pending if is_begun(run_folder(c))}
    there = {
        f"{result['arm']}, seed {result['seed']}": result["environment"]
        for result in results_in(folder)
        if result["arm"] in study.arms
    }
    there.update(begun)
    numbers = {int(found["threads"]): name for name, found in there.items() if found.get("threads")}
    adopted = min(numbers, default=0)
    for config in pending:
        wanted = config.trainer.threads
        if not wanted and len(numbers) > 1:
            named = " and ".join(f"{number} ({name})" for number, name in sorted(numbers.items()))
            raise UserError(
                f"{folder}: its runs have {named} threads; choose one of them by trainer.threads={adopted}"
            )
        if wanted and numbers and wanted not in numbers:
            raise UserError(
                f"{folder}: trainer.threads={wanted} would give other numbers, as {numbers[adopted]} has "
                f"{adopted}; set trainer.threads={adopted}, or leave it out"
            )
        started = begun.get(_name(config), {}).get("threads")
        if wanted and started not in (None, wanted):
            raise UserError(
                f"{run_folder(config)}: begun with trainer.threads={started}; to have {wanted}, delete that folder"
            )
    _say_other_machine(study, there.values() if pending else ())
    if adopted and any(not c.trainer.threads and threads_of(c.trainer, jobs) != adopted for c in pending):
        say(f"{study.name}: trainer.threads={adopted}, as its runs have until now")
    for config, _ in runs:
        config.trainer.threads = config.trainer.threads or adopted or threads_of(config.trainer, jobs)
    most, cores = max((config.trainer.threads for config in pending), default=0), usable_cores()
    if most > cores:
        ways = "add runs where there are as many" if numbers else f"set trainer.threads={cores}"
        raise UserError(
            f"{folder}: its runs would have {most} threads, and this process may use {plural(cores, 'core')}; "
            f"{ways}"
        )


def _name(config: ExperimentConfig) -> str:
    return f"{config.arm}, seed {config.seed}"


def _say_other_machine(study: Study, environments: Iterable[Mapping[str, Any]]) -> None:
    here = Machine(None, cpu(), torch.__version__, cpu_model=cpu_model(described()))
    others = {name: machine_of(e) for e in environments for name in differing([here, machine_of(e)])}
    others.pop("devices", None)
    for name, other in others.items():
        mine, theirs = getattr(here, name), getattr(other, name)
        say(f"{study.name}: has runs with {name} {theirs}, here it is {mine}: the report names both")
