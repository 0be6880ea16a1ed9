"""A study as a view on the pool: which recorded run is which arm's, and their figures as a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from mgsr.study import pool
from mgsr.study.analysis import Comparison, compare, contrast
from mgsr.study.study import Study

Result = Mapping[str, Any]
TERMS = {"sft": "cross-entropy", "dac_kl": "divergence", "span": "spans"}
"""Terms of the loss as curves name them, and in words."""


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

    @cached_property
    def figures(self) -> pd.DataFrame:
        """A row per run: every number of `metrics.json` under its place, as in `exposure/teacher_perplexity`.

        Beside an accuracy or an exact match stands `right`: the first of them that is known. `share/TERM` are per
        cent of the gradient.
        """
        rows = [{**run.result["metrics"], "share": _shares(run.result)} for run in self.runs]
        table = pd.json_normalize(rows, sep="/").apply(pd.to_numeric, errors="coerce")
        places = {
            name.removesuffix(f"/{last}")
            for last in ("accuracy", "exact_match")
            for name in table
            # kinds of task have names of their own
            if name.endswith(f"/{last}") and "_by_category/" not in name
        }
        nothing = pd.Series(math.nan, table.index)
        found = {
            f"{place}/right": table.get(f"{place}/accuracy", nothing).fillna(
                table.get(f"{place}/exact_match", nothing)
            )
            for place in places
        }
        return pd.concat([table, pd.DataFrame(found, table.index)], axis=1)

    @cached_property
    def _means(self) -> pd.DataFrame:
        return self.figures.groupby([run.arm for run in self.runs]).mean()

    def mean(self, arm: str, name: str) -> float | None:
        """Over the runs that have the figure; None where none has."""
        if name not in self._means or arm not in self._means.index:
            return None
        value = float(self._means.at[arm, name])
        return None if math.isnan(value) else value

    def known(self, name: str) -> bool:
        """Whether any arm has the figure."""
        return any(self.mean(arm, name) is not None for arm in self.arms)

    def frame(self, name: str) -> pd.DataFrame:
        """Columns arm, block, seed and score; runs without the figure are left out."""
        rows = [(run.arm, run.block, run.seed) for run in self.runs]
        table = pd.DataFrame(rows, columns=["arm", "block", "seed"])
        return table.assign(score=self.figures.get(name, math.nan)).dropna()

    def judged(self, name: str) -> pd.DataFrame:
        """`frame` of the arms that have run with all declared seeds: who looks before has looked twice."""
        frame = self.frame(name)
        return frame[~frame["arm"].isin(self.absent)]

    def compared(self, name: str) -> dict[str, Comparison]:
        """Every arm against the baseline; empty where the baseline has no such figure."""
        if name not in self._compared:
            frame, study = self.judged(name), self.study
            there = study.baseline in set(frame["arm"])
            asked = [[arm] for arm in study.asked]
            self._compared[name] = compare(frame, study.baseline, study.margin, asked) if there else {}
        return self._compared[name]

    @cached_property
    def _compared(self) -> dict[str, dict[str, Comparison]]:
        # a report asks for one several times
        return {}

    def contrasted(self, name: str) -> dict[str, Comparison]:
        """Every contrast of the study; empty where the baseline has no such figure."""
        frame, study = self.judged(name), self.study
        if not study.contrasts or study.baseline not in set(frame["arm"]):
            return {}
        return contrast(frame, study.baseline, study.contrasts, study.margin)

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
        # a seed is no part of the fingerprint
        key = key_in(study, arm, 0, overrides)
        known = pool.seeds_in(place, key.config)
        extra = [seed for seed in known if study.seeds and seed not in study.seeds]
        if extra:
            undeclared[arm] = extra
        for seed in study.seeds or known:
            for result in pool.find(place, key._replace(seed=seed)):
                found.append(Run(arm, seed, block_of(result), result))
    if not data:
        data = _most(found)
    same = [run for run in found if run.result["data"] in data]
    return View(study, tuple(same), undeclared, len(found) - len(same))


def _most(runs: Sequence[Run]) -> set[str]:
    """The rows of most runs, and for each arm what most of its own runs had there beside them."""
    shared = Counter(pool.shared_part(run.result["data"]) for run in runs)
    found = set()
    for arm in {run.arm for run in runs}:
        own = Counter(run.result["data"] for run in runs if run.arm == arm)
        rows = shared.most_common(1)[0][0]
        found |= {*[data for data, _ in own.most_common() if pool.shared_part(data) == rows][:1]}
    return found


def key_in(study: Study, arm: str, seed: int, overrides: Sequence[str] = ()) -> pool.Key:
    """Of an arm's run; recorded runs that it reads count by their own fingerprints, wherever they lie."""
    others = {name: pool.key_of(study.config(name, seed, overrides)).config for name in study.needs(arm)}
    return pool.key_of(study.config(arm, seed, overrides, others))


def block_of(result: Result) -> str:
    """The seed and the student that a run began with."""
    return f"{result['seed']}/{str(result['start']['student'])[:12]}"


def _shares(result: Result) -> dict[str, float]:
    """Per cent of the norms of all terms' gradients that a term has, mean over the steps that were measured."""
    known = {term: result["curves"].get(f"grad_norm/{term}", {}).get("values") for term in TERMS}
    curves = {term: values for term, values in known.items() if values}
    steps = [each for each in zip(*curves.values(), strict=False) if sum(each) > 0]
    means = [
        sum(own / sum(each) for own, each in zip(column, steps, strict=True)) / len(steps)
        for column in zip(*steps, strict=True)
    ]
    return {term: 100.0 * mean for term, mean in zip(curves, means, strict=False)}


def rouge_l(test_set: str = "test", *, sampled: bool = False) -> str:
    """The name of ROUGE-L of greedy answers, or of sampled ones."""
    return f"result/{test_set}/{'sampled/' if sampled else ''}rouge_l"


def right(test_set: str = "test", *, sampled: bool = False) -> str:
    """The name of the share of right answers; exact match where rows cannot be checked."""
    return f"result/{test_set}/{'sampled/' if sampled else ''}right"
