"""`mgsr verify`: repeat recorded runs with the code as it is, and compare every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mgsr.runtime.errors import ConfigError, UserError
from mgsr.runtime.progress import say
from mgsr.study.machines import threads_of
from mgsr.study.results import hashes, read_result, result_path
from mgsr.study.run import Run, run_all
from mgsr.study.same_code import add_shown
from mgsr.study.study import Study
from mgsr.training.environment import code_fingerprint, environment


def verify(
    study: Study, seeds: Sequence[int], arms: Sequence[str], *, jobs: int = 1, overrides: Sequence[str] = ()
) -> list[str]:
    """Run arms again beside the study's runs, and compare with what is recorded.

    Returns:
        Every place in which a number differs. None: the code is noted as one that gives the same numbers.

    Raises:
        UserError: nothing is recorded for an arm and seed, or for another configuration or other data.
    """
    runs, recorded = [], {}
    base = study.base_config(overrides)
    for arm in arms or list(study.arms):
        if arm not in study.arms:
            raise ConfigError(f"{study.path}: no arm `{arm}`; it has {', '.join(study.arms)}")
        for seed in seeds:
            there = read_result(result_path(study.results, arm, seed))
            if there is None:
                raise UserError(f"{study.path}: {arm}, seed {seed} is not recorded; nothing to compare with")
            config = study.config(arm, seed, overrides, study.results)
            found = hashes(config, base, code_fingerprint())
            other = [name for name in ("config", "base", "data") if there["hashes"].get(name) != found[name]]
            if other:
                raise UserError(f"{study.path}: {arm}, seed {seed} was recorded for another {', '.join(other)}")
            # with another number of threads the numbers would be others, whatever the code
            known = there["environment"].get("threads")
            config.trainer.threads = config.trainer.threads or known or threads_of(config.trainer, jobs)
            # a place of its own, with caches of its own: teacher and SFT student are made by this code too
            config.run_root = str(Path(config.run_root) / "verify" / code_fingerprint())
            place = result_path(Path(config.run_root) / config.experiment / "results", arm, seed)
            runs.append(Run(arm, seed, config, found, place))
            recorded[arm, seed] = there
    # a repetition that is there already says nothing about the code as it is
    pending = [run for run in runs if (read_result(run.path) or {}).get("hashes") != run.hashes]
    run_all(study, pending, jobs)
    wrong = []
    for run in runs:
        result = read_result(run.path)
        assert result is not None
        before = recorded[run.arm, run.seed]
        found_here = [
            w for part in ("metrics", "scores", "curves") for w in differences(before[part], result[part], part)
        ]
        say(f"{run.arm}, seed {run.seed}: " + (f"{len(found_here)} numbers differ" if found_here else "identical"))
        wrong += [f"{run.arm}, seed {run.seed}: {where}" for where in found_here]
    if not wrong:
        _note(study, runs, recorded)
    return wrong


def _note(study: Study, runs: Sequence[Run], recorded: Mapping[tuple[str, int], Mapping[str, Any]]) -> None:
    """For every code that the recorded runs come from."""
    here = environment()
    for old in sorted({str(result["hashes"]["code"]) for result in recorded.values()}):
        compared = [run for run in runs if recorded[run.arm, run.seed]["hashes"]["code"] == old]
        if old == here["code"]:
            continue
        shown = {
            "code": here["code"],
            "commit": here["commit"],
            "equals": old,
            "runs": [f"{study.name}/{run.arm}/seed={run.seed}" for run in compared],
        }
        add_shown(study.path.parent.parent, old, str(here["code"]), shown)
        say(f"code {here['code']} gives the numbers of {old}: noted, by {len(compared)} runs")


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two nested results differ, times and rates aside; what only the second one has is new, not different.

    >>> differences({"x": [1.0, 2.0], "seconds": 3.0}, {"x": [1.0, 2.5], "seconds": 4.0, "new": 1})
    ['x[1]: 2.0 -> 2.5']
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        found = []
        for name in a:
            if "seconds" in str(name) or str(name).endswith("_per_second"):
                continue
            place = f"{where}.{name}" if where else str(name)
            found += differences(a[name], b[name], place) if name in b else [f"{place}: missing"]
        return found
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [w for i, (x, y) in enumerate(zip(a, b, strict=True)) for w in differences(x, y, f"{where}[{i}]")]
    return [] if a == b else [f"{where}: {a} -> {b}"]
