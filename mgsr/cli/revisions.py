"""`mgsr texts`: revised sequences of a run, to be read by people."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.rule import Rule
from rich.text import Text

from mgsr import models
from mgsr.cli.console import console
from mgsr.rounds.render import markdown_revision, terminal_revision
from mgsr.rounds.store import read_manifest, read_round, round_folder, round_folders
from mgsr.runtime.errors import UserError
from mgsr.runtime.wording import plural
from mgsr.scrg import RevisedSequence
from mgsr.training.run_folder import METRICS, STUDENT, load_run_config


@dataclass(frozen=True)
class Revisions:
    """Corrected sequences of a round, by example id; `note`: what a reader has to know of them, or nothing."""

    round: int
    shown: list[RevisedSequence]
    tokenizer: Any
    note: str = ""


def revised_texts(run: str | Path, round_: int | None = None, number: int = 10) -> Revisions:
    """The first corrected sequences of a round.

    Args:
        run: a run folder.
        round_: None takes the last whole one.
        number: how many at most.

    Raises:
        UserError: not a run, or it holds no such round.
    """
    run = Path(run)
    load_run_config(run)
    whole = {number for number, path in round_folders(run).items() if read_manifest(path) is not None}
    if not whole:
        raise UserError(f"{run}: no round of text in it")
    if round_ is None:
        round_ = max(whole)
    if round_ not in whole:
        raise UserError(f"{run}: no round {round_}; it has {', '.join(map(str, sorted(whole)))}")
    found = read_round(round_folder(run, round_))
    entries = [] if found is None else found.entries
    corrected = sorted((e.revised for e in entries if e.revised.corrections), key=lambda r: r.example_id)
    notes = []
    if not (run / METRICS).exists():
        notes.append(f"The run is not finished (no {METRICS}): these are texts of its rounds so far.")
    if not corrected:
        notes.append(f"Round {round_} has {plural(len(entries), 'sequence')}, and none was corrected.")
    return Revisions(round_, corrected[:number], models.load_tokenizer(str(run / STUDENT)), " ".join(notes))


def show_texts(found: Revisions) -> None:
    """Print them: with colours in a terminal, as Markdown elsewhere."""
    if not sys.stdout.isatty():
        print("\n\n".join(_markdown(found)))
        return
    screen = console()
    if found.note:
        screen.print(Text(found.note, "italic"))
    for number, revised in enumerate(found.shown):
        if number:
            screen.print()
        screen.print(Rule(f"round {found.round}, example {revised.example_id}", align="left", style="dim"))
        screen.print(terminal_revision(revised, found.tokenizer))


def _markdown(found: Revisions) -> Iterator[str]:
    if found.note:
        yield f"*{found.note}*"
    for revised in found.shown:
        text = markdown_revision(revised, found.tokenizer)
        yield f"### round {found.round}, example {revised.example_id}\n\n{text}"
