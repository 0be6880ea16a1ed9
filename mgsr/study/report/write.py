"""README.md and report.html of a study, and the index over several; laid out by the templates beside this file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mgsr.config.schema import ExperimentConfig
from mgsr.config.shipped import as_typed
from mgsr.runtime.errors import UserError
from mgsr.runtime.files import write_atomically
from mgsr.study.report.content import Content, content_of
from mgsr.study.report.tables import Table
from mgsr.study.study import Study
from mgsr.study.view import look

INDEX = "README.md"
MARK = "<!-- written by mgsr report -->"


def report(study: Study, *, out: Path | None = None) -> tuple[Path, Content]:
    """Write a study's report, and say where.

    Args:
        out: folder of the report (None: the study's home).

    Raises:
        UserError: nothing is recorded, or a README that was written by hand stands there.
    """
    folder = study.home if out is None else out
    path = folder / "README.md"
    _refuse_by_hand(path, "choose another folder with --out")
    pool = study.pool()
    view = look(study, pool)
    if not view.runs:
        named = study.base_layer().get("run_root")
        own = Path(ExperimentConfig().run_root if named is None else named.value, study.name)
        if (own / "study.yaml").exists() and own.resolve() != study.home.resolve():
            way = f"mgsr report {shlex.quote(str(own))}"
            raise UserError(f"{study.path}: nothing is recorded with --record; of the runs without it type {way}")
        typed = study.typed.get("study") or f"{as_typed(study.path, 'study')} --record"
        raise UserError(f"{study.path}: nothing is recorded yet; run it first: mgsr ablate {typed}")
    found = content_of(view, folder, pool)
    # the page has its plots in it; README.md shows the first
    for name, (_, svg) in list(found.plots.items())[:1]:
        write_atomically(folder / name, svg)
    write_atomically(folder / "report.html", filled("report.html.j2", found))
    write_atomically(path, filled("report.md.j2", found))
    return path, found


def _refuse_by_hand(path: Path, remedy: str) -> None:
    if path.exists() and MARK not in path.read_text(encoding="utf-8"):
        raise UserError(f"{path}: was written by hand and stays; {remedy}")


def index(folder: Path, studies: Sequence[Study]) -> list[str]:
    """Reports of all studies in a folder, and README.md over them; names of those without an answer: they declare
    no seeds, or not all are recorded.

    Studies that ask something come first, before the others those that look at their question in other settings.
    """
    path = folder / INDEX
    _refuse_by_hand(path, "move it away")
    entries, unrecorded = [], []
    for study in sorted(
        (study for study in studies if study.seeds), key=lambda study: (not study.asked, not study.settings)
    ):
        # a baseline that another study has recorded answers nothing, nor does half of what was declared
        view = look(study, study.pool())
        if not view.runs or {*view.absent} & {study.baseline, *(study.asked or study.arms)}:
            unrecorded.append(study.name)
            continue
        written, content = report(study)
        entries.append((study, written.parent.name, content.answers))
    write_atomically(path, filled("index.md.j2", entries=entries, unrecorded=unrecorded))
    return unrecorded + [f"{study.name} (declares none)" for study in studies if not study.seeds]


def filled(template: str, content: Content | None = None, **more: Any) -> str:
    """A template with a report's content in it."""
    text = _environment().get_template(template).render(content=content, mark=MARK, **more)
    return text.rstrip() + "\n"


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    found = Environment(
        loader=PackageLoader("mgsr.study.report"),
        # of a page everything is escaped that comes from a file
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"markdown": markdown, "inline": inline, "bare": bare}
    return found


def markdown(table: Table) -> str:
    """A table in Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(table.header), "|" + "---|" * len(table.header), *map(line, table.rows)])


def inline(text: str) -> Any:
    """Escaped, with `code` as Markdown has it."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def bare(svg: str, name: str) -> Any:
    """SVG to stand inside HTML: no prologue, and ids of its own, as several plots share one document."""
    from markupsafe import Markup

    body = svg[svg.index("<svg") :]
    prefix = re.sub(r"\W", "_", name)
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r'href="#', f'href="#{prefix}-', body)
    return Markup(re.sub(r"url\(#", f"url(#{prefix}-", body))
