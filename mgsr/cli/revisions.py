"""`mgsr texts`: revised sequences of a run, to be read by people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mgsr import models
from mgsr.rounds.render import markdown_revision
from mgsr.rounds.store import read_manifest, read_round, round_folder, round_folders
from mgsr.runtime.errors import UserError
from mgsr.training.run_folder import METRICS, STUDENT, load_run_config


def revised_texts(run: str | Path, round_: int | None = None, number: int = 10) -> Iterator[str]:
    """Markdown of the first corrected sequences of a round, by example id.

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
    folder = round_folder(run, round_)
    found = read_round(folder)
    entries = [] if found is None else found.entries
    if not (run / METRICS).exists():
        yield f"*The run is not finished (no {METRICS}): these are texts of its rounds so far.*"
    tokenizer = models.load_tokenizer(str(run / STUDENT))
    shown = sorted((e.revised for e in entries if e.revised.corrections), key=lambda r: r.example_id)
    for revised in shown[:number]:
        yield f"### round {round_}, example {revised.example_id}\n\n{markdown_revision(revised, tokenizer)}"
