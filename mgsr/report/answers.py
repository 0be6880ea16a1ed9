"""What a report says in words, first of all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mgsr.errors import ConfigError
from mgsr.machines import machine_lines
from mgsr.report.bounds import bounds_answer
from mgsr.report.cells import number
from mgsr.report.evidence import Evidence, Result, read_evidence
from mgsr.report.tables import needed_seeds
from mgsr.studies import load_study
from mgsr.verdicts import BETTER, WORSE, Verdict, contrast


def answers(evidence: Evidence) -> list[str]:
    """The study's question, and its answer as far as there is one."""
    study = evidence.study
    said = [study.question] if study.question else []
    said += [_contrast(evidence, name) for name in study.contrasts]
    said += bounds_answer(evidence)
    answer = study.answer
    if not answer:
        return said
    part = answer["part"]
    asked = {f"Removing {part}": answer["arm"], **(answer.get("also") or {})}
    for name in evidence.test_sets:
        where = f"{answer['where']} ({name} set)" if name == "test" else name
        found = {v.arm: v for v in evidence.verdicts(name)}
        said += [f"**{what}, on {where}:** {sentence(found[arm], study.baseline)}" for what, arm in asked.items()]
    if "elsewhere" in answer:
        said += _elsewhere(part, answer["elsewhere"], study.path)
    return said


def _contrast(evidence: Evidence, name: str) -> str:
    found = contrast(evidence.rouge_l(), *evidence.study.contrasts[name])
    if found is None:
        return f"**{name}:** not yet run with two training seeds in every arm."
    d, seeds = found
    size = f"95 % interval {number(d.low, sign=True)} to {number(d.high, sign=True)} over {len(seeds)} seeds"
    return f"**{name}:** {number(d.mean, sign=True)} ROUGE-L, averaged over what stands beside it ({size})."


def _elsewhere(part: str, other: Mapping[str, Any], here: Path) -> list[str]:
    """The same question on other data, from another study's results."""
    path = Path(other["study"])
    if not path.exists():
        path = here.resolve().parents[2] / path
    study = load_study(path)
    if other["arm"] not in study.arms:
        raise ConfigError(f"{here}: `answer.elsewhere` names {other['arm']}, which is no arm of {path}")
    if not any(study.results.glob("*/seed=*.json")):
        return [f"**Removing {part}, on {name}:** not yet run." for name in other["sets"]]
    evidence = read_evidence(study, study.results)
    said = []
    for name, key in other["sets"].items():
        verdict = next(v for v in evidence.verdicts(key) if v.arm == other["arm"])
        run = evidence.runs[0]["metrics"]
        size = f"{run['result'][key]['examples']} rows, {run['steps']} optimiser steps"
        said.append(f"**Removing {part}, on {name} ({size}):** {sentence(verdict, study.baseline)}")
    return said


def sentence(v: Verdict, baseline: str) -> str:
    """One arm against the baseline, in words.

    >>> sentence(Verdict("removed", float("nan"), float("nan"), ()), "full")
    'not yet run.'
    """
    if not v.seeds:
        return "not yet run."
    if v.difference is None:
        return (
            f"ROUGE-L {number(v.mean)}; {len(v.paired)} seed(s) shared with `{baseline}`: too few to say anything."
        )
    d = v.difference
    change = {BETTER: "raises", WORSE: "lowers"}.get(v.verdict)
    interval = (
        f"95 % interval {number(d.low, sign=True)} to {number(d.high, sign=True)} over {len(v.paired)} seeds"
    )
    if change:
        judged = f"`{v.arm}` is {v.verdict} than `{baseline}`"
        return f"it {change} ROUGE-L by {number(abs(d.mean))} ({interval}): {judged}."
    needed = needed_seeds(v)
    more = f"; an effect of this size would take {'about ' if v.needed else ''}{needed} seeds" if needed else ""
    return f"inconclusive, difference {number(d.mean, sign=True)} ROUGE-L ({interval}){more}."


def facts(evidence: Evidence) -> list[str]:
    """Where the numbers come from, and what is missing."""
    runs = evidence.runs
    commits = sorted({str(r["environment"].get("commit"))[:7] for r in runs})
    packages = ", ".join(_versions(runs, name) for name in ("python", "lightning", "transformers"))
    machines, mixed = machine_lines(r["environment"] for r in runs)
    said = [
        f"{len(runs)} runs, training seeds {', '.join(map(str, evidence.seeds))}, base `{evidence.study.base}`, "
        f"{runs[0]['metrics']['steps']} optimiser steps, "
        f"{runs[0]['metrics']['result']['test']['examples']} test rows. Commit {', '.join(commits)}; {packages}. "
        f"Machine: {_different(runs, 'machine')}, {machines}.",
        *([mixed] if mixed else []),
        *_shared(evidence),
        *_prompts(evidence),
        *evidence.oddities(),
    ]
    missing = evidence.missing()
    if missing:
        said.append("Missing: " + "; ".join(missing) + ".")
    return said


def _shared(evidence: Evidence) -> list[str]:
    """Arms whose runs stand in another study beside this one as well: one run, counted in both."""
    folder = evidence.study.path.resolve().parent
    elsewhere: dict[str, list[str]] = {}
    for arm, by_seed in evidence.results.items():
        own = {(r["hashes"]["base"], r["hashes"]["config"], seed) for seed, r in by_seed.items()}
        for other in _others(folder):
            if own & other[1]:
                elsewhere.setdefault(arm, []).append(other[0])
    if not elsewhere:
        return []
    named = "; ".join(f"`{arm}` ({', '.join(sorted(set(studies)))})" for arm, studies in elsewhere.items())
    return [f"Runs that other studies count too: {named}."]


@cache
def _others(folder: Path) -> tuple[tuple[str, frozenset[tuple[str, str, int]]], ...]:
    """Every other study beside the folder, by name, with what tells its recorded runs apart."""
    found = []
    for study in sorted(folder.parent.glob("*/study.yaml")):
        if study.parent == folder:
            continue
        runs = [json.loads(path.read_text()) for path in sorted(study.parent.glob("results/*/seed=*.json"))]
        keys = frozenset((r["hashes"]["base"], r["hashes"]["config"], r["seed"]) for r in runs)
        found.append((study.parent.name, keys))
    return tuple(found)


def _prompts(evidence: Evidence) -> list[str]:
    """What "the same prompts" means."""
    said = (
        "All arms of a seed start from one SFT student and see the same prompts within each window of "
        "`train.bucket_steps` steps; within a window they are sorted by the length of the text"
    )
    replays = [
        arm
        for arm, overrides in evidence.study.arms.items()
        if overrides.get("mixture.replay") == "on" or overrides.get("mixture.kind") == "adaptive"
    ]
    named = ", ".join(f"`{arm}`" for arm in replays)
    more = f"; {named} {'draws' if len(replays) == 1 else 'draw'} from a buffer of older text" if replays else ""
    return [f"{said}{more}."]


def _versions(runs: Sequence[Result], name: str) -> str:
    return f"{name} {_different(runs, name)}"


def _different(runs: Sequence[Result], name: str) -> str:
    return " and ".join(sorted({str(r["environment"].get(name, "unknown")) for r in runs}))
