"""A study as a view on the pool: which recorded run is which arm's, and their figures as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from mgsr.study import pool
from mgsr.study.analysis import Comparison, compare
from mgsr.study.study import Study

Result = Mapping[str, Any]
Reader = Callable[[Result], float | None]


@dataclass(frozen=True)
class Run:
    """A recorded run under its arm's name; `block`: its seed and the student that it began with."""

    arm: str
    seed: int
    block: str
    result: Result


@dataclass(frozen=True)
class View:
    """Recorded runs of a study, all of the same rows.

    Attributes:
        runs: of declared seeds, in the order of the arms.
        undeclared: arm -> seeds that were recorded and not declared: no figure is made of them.
        other_data: runs that were left out, as their rows were others.
    """

    study: Study
    runs: tuple[Run, ...]
    undeclared: Mapping[str, Sequence[int]]
    other_data: int = 0

    @property
    def arms(self) -> list[str]:
        """Those that have run."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    @property
    def test_sets(self) -> list[str]:
        """`test` first."""
        return sorted(self.runs[0].result["metrics"]["result"], key=lambda name: name != "test")

    def of(self, arm: str) -> list[Run]:
        return [run for run in self.runs if run.arm == arm]

    def frame(self, read: Reader) -> pd.DataFrame:
        """Columns arm, block, seed and score; runs without the figure are left out."""
        rows = [(run.arm, run.block, run.seed, read(run.result)) for run in self.runs]
        known = [row for row in rows if row[3] is not None]
        return pd.DataFrame(known, columns=["arm", "block", "seed", "score"])

    def judged(self, read: Reader) -> pd.DataFrame:
        """`frame` of the arms that have run with all declared seeds: who looks before has looked twice."""
        frame = self.frame(read)
        return frame[~frame["arm"].isin(self.absent)]

    def compared(self, read: Reader) -> dict[str, Comparison]:
        """Every arm against the baseline; empty where the baseline has no such figure."""
        if read not in self._compared:
            frame, study = self.judged(read), self.study
            there = study.baseline in set(frame["arm"])
            asked = [[arm] for arm in study.asked]
            self._compared[read] = compare(frame, study.baseline, study.margin, asked) if there else {}
        return self._compared[read]

    @cached_property
    def _compared(self) -> dict[Reader, dict[str, Comparison]]:
        # a report asks for one several times
        return {}

    def mean(self, arm: str, read: Reader) -> float | None:
        """Over the runs that have the figure."""
        values = [value for run in self.of(arm) if (value := read(run.result)) is not None]
        return sum(values) / len(values) if values else None

    @cached_property
    def absent(self) -> dict[str, list[int]]:
        """Declared seeds that an arm lacks, of arms that lack some.

        A study that lies among its runs is judged as it stands: it declares what was typed, arm by arm.
        """
        if "folder" in self.study.typed:
            return {}
        ran = {arm: {run.seed for run in self.of(arm)} for arm in self.study.arms}
        found = {arm: [seed for seed in self.study.seeds if seed not in seeds] for arm, seeds in ran.items()}
        return {arm: seeds for arm, seeds in found.items() if seeds}

    @property
    def missing(self) -> list[str]:
        """Arms with the declared seeds that they lack, in words; those without any run alone."""
        return [
            f"{arm} ({', '.join(map(str, seeds))})" if self.of(arm) else arm for arm, seeds in self.absent.items()
        ]


def look(study: Study, place: Path, overrides: Sequence[str] | None = None, *, data: Collection[str] = ()) -> View:
    """Find a study's runs.

    Args:
        place: the pool.
        overrides: words of a command line, which the runs had too (None: those that the study says it needs).
        data: fingerprints of the rows that count (empty: of those of most runs).
    """
    overrides = study.arguments if overrides is None else overrides
    found: list[Run] = []
    undeclared: dict[str, list[int]] = {}
    for arm in study.arms:
        known = pool.seeds_in(place, key_in(study, arm, 0, overrides).config)
        extra = [seed for seed in known if study.seeds and seed not in study.seeds]
        if extra:
            undeclared[arm] = extra
        for seed in study.seeds or known:
            for result in pool.find(place, key_in(study, arm, seed, overrides)):
                found.append(Run(arm, seed, block_of(result), result))
    if not data:
        data = [most for most, _ in Counter(run.result["data"] for run in found).most_common(1)]
    same = [run for run in found if run.result["data"] in data]
    return View(study, tuple(same), undeclared, len(found) - len(same))


def key_in(study: Study, arm: str, seed: int, overrides: Sequence[str] = ()) -> pool.Key:
    """Of an arm's run; recorded runs that it reads count by their own fingerprints, wherever they lie."""
    others = {name: pool.key_of(study.config(name, seed, overrides)).config for name in study.needs(arm)}
    return pool.key_of(study.config(arm, seed, overrides, others))


def block_of(result: Result) -> str:
    """The seed and the student that a run began with."""
    return f"{result['seed']}/{str(result['start']['student'])[:12]}"


# ---- figures of a run


@cache
def rouge_l(test_set: str = "test", *, sampled: bool = False) -> Reader:
    """ROUGE-L of greedy answers, or of sampled ones."""
    return _of_set(test_set, "rouge_l", sampled)


@cache
def right(test_set: str = "test", *, sampled: bool = False) -> Reader:
    """Share of right answers; exact match where rows cannot be checked."""
    accuracy, exact = _of_set(test_set, "accuracy", sampled), _of_set(test_set, "exact_match", sampled)

    def read(result: Result) -> float | None:
        found = accuracy(result)
        return exact(result) if found is None else found

    return read


def _of_set(test_set: str, name: str, sampled: bool) -> Reader:
    def read(result: Result) -> float | None:
        figures = result["metrics"]["result"].get(test_set, {})
        return (figures.get("sampled") or {} if sampled else figures).get(name)

    return read


def figure(*path: str) -> Reader:
    """A figure of `metrics.json` by its place, as in `figure("exposure", "teacher_perplexity")`."""

    def read(result: Result) -> float | None:
        value: Any = result["metrics"]
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    return read
