"""What a report is made of: the recorded results of one study, read and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import mgsr
from mgsr.config.schema import ExperimentConfig
from mgsr.config.shipped import as_typed
from mgsr.runtime.environment import numerics_of
from mgsr.runtime.errors import UserError
from mgsr.study.results import plain, read_result
from mgsr.study.starting_models import other_starts
from mgsr.study.study import Study, result_path, seed_of
from mgsr.study.verdicts import Values, Verdict, contrast_verdicts, verdicts_of_sets

Result = Mapping[str, Any]
Results = dict[str, dict[int, Result]]
"""Arm -> training seed -> result file."""


def replays(overrides: Mapping[str, Any]) -> bool:
    """Whether an arm draws written text of earlier rounds from a buffer."""
    replay = overrides.get("mixture.replay", "auto")
    return bool(replay == "on" or (replay == "auto" and overrides.get("mixture.kind") == "adaptive"))


CURVES = ("val/rouge_l", "cost/seconds", "cost/tokens")


def training_seeds(seeds: Iterable[int]) -> str:
    """
    >>> training_seeds([0]), training_seeds({2, 1})
    ('training seed 0', 'training seeds 1, 2')
    """
    found = sorted(seeds)
    return f"training seed{'' if len(found) == 1 else 's'} {', '.join(map(str, found))}"


def set_in_words(test_set: str) -> str:
    """
    >>> set_in_words("test"), set_in_words("vicuna")
    ('the test set', 'vicuna')
    """
    return "the test set" if test_set == "test" else test_set


@dataclass(frozen=True)
class Evidence:
    """Results of a study, all of one numerics version.

    Attributes:
        results: arms that have not run are there, empty.
        strangers: arms that there are results of and that the study doesn't have.
        apart: results of other numerics versions, by version: no figure is made of them.
    """

    study: Study
    results: Results
    strangers: tuple[str, ...] = ()
    apart: Mapping[int, Results] = field(default_factory=dict)

    @property
    def runs(self) -> list[Result]:
        return [result for by_seed in self.results.values() for result in by_seed.values()]

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for by_seed in self.results.values() for seed in by_seed})

    @property
    def numerics(self) -> int:
        return numerics_of(self.runs[0]["environment"])

    @property
    def test_sets(self) -> list[str]:
        """`test` first: the tables of text are of it."""
        return sorted(self.runs[0]["metrics"]["result"], key=lambda name: name != "test")

    def of_shared_seeds(self) -> Evidence:
        """The runs of those seeds that all arms have that have run at all.

        Arms with seeds of their own, some of which are easier than others, would seem better or worse by them.
        Without such a seed, all runs.
        """
        each = [set(by_seed) for by_seed in self.results.values() if by_seed]
        shared = set.intersection(*each) if each else set()
        if not shared:
            return self
        kept = {arm: {s: r for s, r in by_seed.items() if s in shared} for arm, by_seed in self.results.items()}
        return replace(self, results=kept)

    def having(self, has: Callable[[Result], bool]) -> Evidence:
        """The runs for which it holds."""
        kept = {arm: {s: r for s, r in by_seed.items() if has(r)} for arm, by_seed in self.results.items()}
        return replace(self, results=kept)

    @property
    def seeds_in_words(self) -> str:
        """Which seeds means over all of these runs are of."""
        each = [set(by_seed) for by_seed in self.results.values() if by_seed]
        if each and all(seeds == each[0] for seeds in each):
            return training_seeds(each[0])
        return "an arm's own training seeds, which other arms need not have"

    @property
    def one_answer(self) -> list[str] | None:
        """Kinds of task that the base configuration says have one right answer; early runs recorded others too."""
        named = self.study.said_in_base("evaluation.one_answer")
        return None if named is None else list(map(str, named))

    def values(self, read: Callable[[Result], float | None]) -> Values:
        """One figure of every run; runs without it are left out."""
        return {
            arm: {seed: value for seed, result in by_seed.items() if (value := read(result)) is not None}
            for arm, by_seed in self.results.items()
        }

    def rouge_l(self, test_set: str = "test") -> Values:
        return self.values(lambda r: r["metrics"]["result"].get(test_set, {}).get("rouge_l"))

    def verdicts(self, test_set: str = "test") -> list[Verdict]:
        return self._verdicts[test_set]

    @cached_property
    def _verdicts(self) -> dict[str, list[Verdict]]:
        # a report asks for every table, plot and sentence
        each = {name: self.rouge_l(name) for name in self.test_sets}
        return verdicts_of_sets(each, self.study.baseline, self.study.looks)

    def contrasts(self) -> list[Verdict]:
        return contrast_verdicts(self.rouge_l(), self.study.contrasts, self.study.looks)

    def missing(self) -> list[str]:
        """Arms and seeds that the study has, as far as some other arm has that seed, and that have not run."""
        groups: dict[str, list[str]] = {}
        for arm, by_seed in self.results.items():
            absent = [seed for seed in self.seeds if seed not in by_seed]
            if absent:
                what = f"seed {', '.join(map(str, absent))}" if by_seed else "not yet run"
                groups.setdefault(what, []).append(arm)
        return [f"{', '.join(arms)}: {what}" for what, arms in groups.items()]

    def oddities(self) -> list[str]:
        """What a reader should know before comparing: unequal lengths of training, results left out."""
        steps: dict[int, list[str]] = {}
        for arm, by_seed in self.results.items():
            each = {seed: int(result["metrics"]["steps"]) for seed, result in by_seed.items()}
            for number in sorted(set(each.values())):
                seeds = [str(seed) for seed, found in each.items() if found == number]
                steps.setdefault(number, []).append(
                    arm if len(seeds) == len(each) else f"{arm} (seed {', '.join(seeds)})"
                )
        said = []
        if len(steps) > 1:
            named = "; ".join(f"{number} in {', '.join(arms)}" for number, arms in sorted(steps.items()))
            said.append(f"**Not all runs have the same number of optimiser steps:** {named}.")
        apart = self._unequal_starts()
        if apart:
            named = ", ".join(map(str, apart))
            said.append(
                f"**Not all runs of training seed {named} began with the same models:** their teachers or SFT "
                "students are others, as where another kind of machine fine-tuned them. There, "
                "differences between arms are not those of the arms alone."
            )
        if self.numerics != mgsr.NUMERICS_VERSION:
            said.append(
                f"**These results are of numerics version {self.numerics}:** the code is at version "
                f"{mgsr.NUMERICS_VERSION}, of which there are none yet."
            )
        for version, results in self.apart.items():
            named = "; ".join(
                f"{arm}, seed {', '.join(map(str, sorted(by_seed)))}" for arm, by_seed in results.items()
            )
            said.append(f"**Of numerics version {version}, and in no figure or verdict here:** {named}.")
        if self.strangers:
            said.append(f"Left out, being no arms of the study: results of {', '.join(self.strangers)}.")
        return said

    def _unequal_starts(self) -> list[int]:
        """Seeds whose runs began with different teachers or SFT students; not of arms that set these."""
        found = []
        for seed in self.seeds:
            runs = [by_seed[seed] for by_seed in self.results.values() if seed in by_seed]
            if any(any(other_starts(a, b)) for a, b in combinations(runs, 2)):
                found.append(seed)
        return found


def read_evidence(study: Study, folder: Path) -> Evidence:
    """All result files of the study's arms below `folder`.

    Those of the code's numerics version are taken, or, where there are none, those of the latest one before it.

    Raises:
        UserError: there are none; they come from different data or another base; one is partial; the arms of the
            file and of the study differ.
    """
    versions: dict[int, Results] = {}
    for arm in study.arms:
        for path in sorted((folder / arm).glob("seed=*.json")):
            seed = seed_of(path)
            found = None if seed is None else read_result(path)
            if seed is not None and found is not None:
                version = numerics_of(found["environment"])
                versions.setdefault(version, {}).setdefault(arm, {})[seed] = found
    strangers = sorted({path.parent.name for path in folder.glob("*/seed=*.json")} - set(study.arms))
    if not versions:
        name = as_typed(study.path, "study")
        # as it was run on other bases, not recorded
        runs = sorted(Path(ExperimentConfig().run_root).glob(f"{study.name}*/study.yaml"))
        if runs:
            raise UserError(f"{folder}: no results of {study.name}; type mgsr report {runs[0].parent}")
        raise UserError(
            f"{folder}: no results of {study.name}; run mgsr ablate {name} --record first, or of runs that were "
            f"not recorded type mgsr report <run_root>/{study.name}"
        )
    known = [version for version in versions if version <= mgsr.NUMERICS_VERSION]
    if not known:
        raise UserError(
            f"{folder}: all results are of a later numerics version than this code's, {mgsr.NUMERICS_VERSION}; "
            "take the code that recorded them"
        )
    taken = max(known)
    results = versions.pop(taken)
    ordered = {arm: dict(sorted(results.get(arm, {}).items())) for arm in study.arms}
    evidence = Evidence(study, ordered, tuple(strangers), dict(sorted(versions.items())))
    for what in ("data", "base"):
        _refuse_mixture(evidence, folder, what)
    _refuse_partial(evidence, folder)
    _refuse_copies(evidence, folder)
    for arm, by_seed in evidence.results.items():
        for seed, result in by_seed.items():
            if result["overrides"] != plain(study.arms[arm]):
                path = result_path(folder, arm, seed, evidence.numerics)
                raise UserError(
                    f"{path}: recorded with other overrides than arm `{arm}` of {study.path} has now; delete it "
                    "to run it anew"
                )
    return evidence


def _refuse_mixture(evidence: Evidence, folder: Path, what: str) -> None:
    seen: dict[str, str] = {}
    for arm, by_seed in evidence.results.items():
        for seed, result in by_seed.items():
            found = str(result["hashes"].get(what))
            seen.setdefault(found, str(result_path(folder, arm, seed, evidence.numerics)))
    if len(seen) > 1:
        first, second = list(seen.values())[:2]
        raise UserError(
            f"{first} and {second} come from different {what}: they can't be compared; rerun one of them"
        )


def _refuse_copies(evidence: Evidence, folder: Path) -> None:
    """The hash of a configuration holds the seed: the same for two seeds means that one is a copy of the other."""
    for arm, by_seed in evidence.results.items():
        seen: dict[str, int] = {}
        for seed, result in by_seed.items():
            other = seen.setdefault(str(result["hashes"].get("config")), seed)
            if other != seed:
                path = result_path(folder, arm, seed, evidence.numerics)
                raise UserError(
                    f"{path}: has the configuration of seed {other}, so that it is no run of its own; delete it "
                    "to have it run"
                )


def _refuse_partial(evidence: Evidence, folder: Path) -> None:
    """Every run must have the test sets of the first, and the curves that costs are read from."""
    for arm, by_seed in evidence.results.items():
        for seed, result in by_seed.items():
            has = result["metrics"]["result"]
            lacks = [f"metrics.result.{name}" for name in evidence.test_sets if name not in has]
            lacks += [f"curves.{name}" for name in CURVES if not result["curves"].get(name, {}).get("values")]
            if lacks:
                path = result_path(folder, arm, seed, evidence.numerics)
                raise UserError(f"{path}: lacks {', '.join(lacks)}; restore it, or delete it to have it run again")


def mean(values: Mapping[int, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None
