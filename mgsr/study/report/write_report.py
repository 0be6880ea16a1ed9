"""`mgsr report`: a study's README.md, plots and a self-contained HTML page, from its recorded results alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgsr.config.shipped import as_typed, shipped
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
        results: folder of the result files (default: the study's own).
        out: folder to write to (default: the study's own, `Study.home`).

    Returns:
        The README's path.

    Raises:
        UserError: no results, results that can't be compared, or a README that was written by hand.
    """
    folder = study.home if out is None else out
    path = folder / "README.md"
    if path.exists() and MARK not in path.read_text(encoding="utf-8"):
        raise UserError(f"{path}: was written by hand and stays; choose another folder with --out")
    evidence = read_evidence(study, study.results if results is None else results)
    found = contents(evidence, all_plots(evidence), folder)
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


def contents(evidence: Evidence, plots: Mapping[str, tuple[str, str]], folder: Path) -> Contents:
    """A report to stand in a folder: the working folder of whoever wrote it does not change it."""
    study = evidence.study
    return Contents(
        f"Study: {study.name}",
        answers(evidence),
        _command(evidence, folder),
        facts(evidence, study.typed.get("base") or as_typed(study.base, "config", folder)),
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


def _command(evidence: Evidence, folder: Path) -> str:
    """What records these results again: on the same kind of machine, with the same number of threads.

    A line for all arms that have the same seeds; `arguments` of the study are said again. Among its runs lies a
    study as it was typed; another one is typed in the report's folder, or by the name that is shipped.
    """
    study, typed = evidence.study, evidence.study.typed
    threads = {r["environment"].get("threads") for r in evidence.runs}
    same = [f"trainer.threads={number}" for number in threads if number and len(threads) == 1]
    if any(said.startswith("trainer.threads=") for said in study.arguments):
        same = []
    name = typed.get("study") or as_typed(study.path, "study", folder)
    head = ["mgsr", "ablate", name, *(["--config", typed["config"]] if "config" in typed else [])]
    rest = [*([] if typed else ["--record"]), *same, *study.arguments]
    groups: dict[tuple[int, ...], list[str]] = {}
    for arm, by_seed in evidence.results.items():
        if by_seed:
            groups.setdefault(tuple(by_seed), []).append(arm)
    lines = [] if typed or name in shipped("study") else ["# in this folder"]
    for seeds, arms in groups.items():
        named = ["--arms", *arms] if typed or len(arms) < len(study.arms) else []
        lines.append(shlex.join([*head, *named, "--seeds", *map(str, seeds), *rest]))
    return "\n".join([*lines, shlex.join(["mgsr", "report", typed.get("folder") or name])])
