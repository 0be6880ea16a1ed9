"""`mgsr report`: a study's README.md, plots and a self-contained HTML page, from its recorded results alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgsr.runtime.errors import UserError
from mgsr.runtime.files import write_atomically
from mgsr.study.report.answers import answers, facts
from mgsr.study.report.evidence import Evidence, read_evidence
from mgsr.study.report.page import page
from mgsr.study.report.plots import all_plots
from mgsr.study.report.score_tables import all_tables
from mgsr.study.report.table import Table
from mgsr.study.study import Study

MARK = "*Written by `mgsr report`: change the results or the study, not this file.*"
"""Stands at the end of every README.md that may be written again."""


def report(study: Study, *, results: Path | None = None, out: Path | None = None) -> Path:
    """Write README.md, its plots and report.html. The same results give the same bytes.

    Args:
        results: folder of the result files (default: beside the study's file).
        out: folder to write to (default: the study's).

    Returns:
        The README's path.

    Raises:
        UserError: no results, results that can't be compared, or a README that was written by hand.
    """
    folder = study.path.parent if out is None else out
    path = folder / "README.md"
    if path.exists() and MARK not in path.read_text(encoding="utf-8"):
        raise UserError(f"{path}: was written by hand and stays; choose another folder with --out")
    evidence = read_evidence(study, study.results if results is None else results)
    found = contents(evidence, all_plots(evidence))
    for name, (_, svg) in found.plots.items():
        write_atomically(folder / name, svg)
    write_atomically(
        folder / "report.html",
        page(found.title, found.answers, found.facts, found.command, found.tables, found.plots),
    )
    write_atomically(path, readme(found))
    return path


@dataclass(frozen=True)
class Contents:
    """What README and page have in common; plots: file name -> (caption, SVG)."""

    title: str
    answers: list[str]
    command: str
    facts: list[str]
    tables: Sequence[Table]
    plots: Mapping[str, tuple[str, str]]


def contents(evidence: Evidence, plots: Mapping[str, tuple[str, str]]) -> Contents:
    return Contents(
        f"Study: {evidence.study.name}",
        answers(evidence),
        _command(evidence),
        facts(evidence),
        all_tables(evidence),
        plots,
    )


def readme(found: Contents) -> str:
    pictures = [f"![{caption}]({name})" for name, (caption, _) in found.plots.items()]
    first, *rest = (table.markdown() for table in found.tables)
    parts = [
        f"# {found.title}",
        *found.answers,
        f"```\n{found.command}\n```",
        *found.facts,
        "[The same as one page](report.html), with tables that sort.",
        first.rstrip(),
        *pictures,
        *(text.rstrip() for text in rest),
        MARK,
    ]
    return "\n\n".join(parts) + "\n"


def _command(evidence: Evidence) -> str:
    """What records these results again: on the same kind of machine, with the same number of threads.

    A line for all arms that have the same seeds; `arguments` of the study are said again.
    """
    path = evidence.study.path
    threads = {r["environment"].get("threads") for r in evidence.runs}
    same = [f"trainer.threads={number}" for number in threads if number and len(threads) == 1]
    same += map(shlex.quote, evidence.study.arguments)
    groups: dict[tuple[int, ...], list[str]] = {}
    for arm, by_seed in evidence.results.items():
        if by_seed:
            groups.setdefault(tuple(by_seed), []).append(arm)
    lines = []
    for seeds, arms in groups.items():
        named = ["--arms", *arms] if len(arms) < len(evidence.study.arms) else []
        lines.append(" ".join(["mgsr ablate", str(path), *named, "--seeds", *map(str, seeds), "--record", *same]))
    return "\n".join([*lines, f"mgsr report {path}"])
