"""What a report says in words, first of all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mgsr
from mgsr.config.shipped import located
from mgsr.runtime.errors import ConfigError
from mgsr.runtime.wording import plural
from mgsr.study.machines import machine_lines
from mgsr.study.report.evidence import Evidence, Result, read_evidence, replays, training_seeds
from mgsr.study.report.learned_bounds import bounds_answer, varies_clipping
from mgsr.study.report.table import number
from mgsr.study.study import load_study
from mgsr.study.verdicts import BETTER, WORSE, Verdict


def answers(evidence: Evidence) -> list[str]:
    """The study's question, and its answer as far as there is one."""
    study = evidence.study
    said = [study.question] if study.question else []
    if varies_clipping(evidence):
        said += bounds_answer(evidence)
    said += [_contrast(v) for v in evidence.contrasts()]
    answer = study.answer
    if not answer:
        return said
    part = answer["part"]
    asked = {f"Removing {part}": answer["arm"], **(answer.get("also") or {})}
    for name in evidence.test_sets:
        where = f"{answer['where']} ({name} set)" if name == "test" else name
        found = {v.arm: v for v in evidence.verdicts(name)}
        said += [f"**{what}, on {where}:** {sentence(found[arm], study.baseline)}" for what, arm in asked.items()]
    for other in answer["elsewhere"]:
        said += _elsewhere(part, other, study.path)
    return said


def _contrast(v: Verdict) -> str:
    if v.difference is None:
        return f"**{v.arm}:** not yet run with two training seeds in every arm."
    d = v.difference
    size = f"95 % interval {number(d.low, sign=True)} to {number(d.high, sign=True)} over {len(v.seeds)} seeds"
    more = f", {v.needed_in_words} needed" if v.needed_in_words else ""
    return (
        f"**{v.arm}:** {number(d.mean, sign=True)} ROUGE-L, averaged over what stands beside it ({size}): "
        f"{v.verdict}{more}."
    )


def _elsewhere(part: str, other: Mapping[str, Any], here: Path) -> list[str]:
    """The same question of other data or other steps, from another study's results."""
    path = located(other["study"], "study", here.parent)
    study = load_study(path)
    if other["arm"] not in study.arms:
        raise ConfigError(f"{here}: `answer.elsewhere` names {other['arm']}, which is no arm of {path}")
    if not any(study.results.glob("*/seed=*.json")):
        return [f"**Removing {part}, on {name}:** not yet run." for name in other["sets"]]
    evidence = read_evidence(study, study.results)
    said = []
    for name, key in other["sets"].items():
        if key not in evidence.test_sets:
            known = ", ".join(evidence.test_sets)
            raise ConfigError(f"{here}: `answer.elsewhere.sets` names {key}, but {path} has results of {known}")
        verdict = next(v for v in evidence.verdicts(key) if v.arm == other["arm"])
        where = f"{name} ({_size(evidence, key, other['arm'])})"
        said.append(f"**Removing {part}, on {where}:** {sentence(verdict, study.baseline)}")
    return said


def _size(evidence: Evidence, test_set: str, arm: str) -> str:
    """How little or how much a line on another study rests on."""

    def steps(of: str) -> str:
        return _range(int(r["metrics"]["steps"]) for r in evidence.results[of].values())

    test = evidence.runs[0]["metrics"]["result"][test_set]
    rows, samples = test["examples"], len(test.get("rouge_l_by_seed") or {})
    sampled = f", {plural(samples, 'sampling seed')}" if samples else ""
    baseline = evidence.study.baseline
    with_it = steps(baseline if evidence.results[baseline] else arm)
    without = steps(arm) if evidence.results[arm] else with_it
    against = "" if without == with_it else f", {without} without it"
    version = "" if evidence.numerics == mgsr.NUMERICS_VERSION else f", numerics version {evidence.numerics}"
    return f"{_counted(rows, 'row')}, {_counted(with_it, 'optimiser step')}{against}{sampled}{version}"


def sentence(v: Verdict, baseline: str) -> str:
    """One arm against the baseline, in words.

    >>> sentence(Verdict("removed", float("nan"), float("nan"), ()), "full")
    'not yet run.'
    """
    if not v.seeds:
        return "not yet run."
    if v.difference is None:
        shared = f"{plural(len(v.paired), 'seed')} shared with `{baseline}`"
        return f"ROUGE-L {number(v.mean)}; {shared}: too few to say anything."
    d = v.difference
    change = {BETTER: "raises", WORSE: "lowers"}.get(v.verdict)
    interval = (
        f"95 % interval {number(d.low, sign=True)} to {number(d.high, sign=True)} over {len(v.paired)} seeds"
    )
    if change:
        judged = f"`{v.arm}` is {v.verdict} than `{baseline}`"
        return f"it {change} ROUGE-L by {number(abs(d.mean))} ({interval}): {judged}."
    more = ""
    if v.needed_in_words:
        level = f"power 0.8 at a level of {v.level}"
        more = f"; an effect of this size would take {v.needed_in_words} ({level})"
    return f"inconclusive, difference {number(d.mean, sign=True)} ROUGE-L ({interval}){more}."


def facts(evidence: Evidence, base: str) -> list[str]:
    """Where the numbers come from, and what is missing."""
    runs = evidence.runs
    commits = sorted({_commit(r["environment"]) for r in runs})
    packages = ", ".join(_versions(runs, name) for name in ("python", "lightning", "transformers"))
    machines, mixed = machine_lines(runs)
    said = [
        f"{plural(len(runs), 'run')}, {training_seeds(evidence.seeds)}, base `{base}`, "
        f"{_steps(int(r['metrics']['steps']) for r in runs)}, "
        f"{_counted(runs[0]['metrics']['result']['test']['examples'], 'test row')}. Commit {', '.join(commits)}; "
        f"numerics version {evidence.numerics}, {packages}. "
        f"Machine: {_different(runs, 'machine')}, {machines}.",
        *([mixed] if mixed else []),
        *evidence.oddities(),
    ]
    said.append(_prompts(evidence))
    missing = evidence.missing()
    if missing:
        said.append("Missing: " + "; ".join(missing) + ".")
    return said


def _commit(environment: Mapping[str, Any]) -> str:
    changed = " with changes" if environment.get("dirty") else ""
    return str(environment.get("commit"))[:7] + changed


def _prompts(evidence: Evidence) -> str:
    """How far the arms train on the same prompts at the same time."""
    replaying = [f"`{arm}`" for arm, overrides in evidence.study.arms.items() if replays(overrides)]
    steps = {r["metrics"]["steps"] for r in evidence.runs}
    far = "" if len(steps) == 1 else ", as far as each of them goes"
    said = (
        f"Runs of one training seed have the same prompts in the same order{far}, by which is meant: the same "
        "ones within each window of `train.bucket_steps` optimiser steps, sorted by length within it."
    )
    if replaying:
        said += (
            f" Arms with a replay buffer ({', '.join(replaying)}) draw the prompts of their written text from it."
        )
    return said


def _range(numbers: Iterable[int]) -> str:
    """
    >>> _range([400, 400]), _range([400, 311, 623])
    ('400', '311 to 623')
    """
    found = sorted(set(numbers))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _steps(numbers: Iterable[int]) -> str:
    return _counted(_range(numbers), "optimiser step")


def _counted(count: int | str, word: str) -> str:
    """As `plural`, of a range too, and without commas: in a list these part the counts."""
    return f"{count} {word}{'' if str(count) == '1' else 's'}"


def _versions(runs: Sequence[Result], name: str) -> str:
    return f"{name} {_different(runs, name)}"


def _different(runs: Sequence[Result], name: str) -> str:
    return " and ".join(sorted({str(r["environment"].get(name, "unknown")) for r in runs}))
