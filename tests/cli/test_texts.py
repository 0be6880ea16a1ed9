"""`mgsr texts`: colours in a terminal, Markdown in a pipe, and no text that steers either."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mgsr.cli.main import main
from mgsr.rounds.render import markdown_revision, terminal_revision
from mgsr.scrg import RevisedSequence
from mgsr.scrg.records import Correction

Capture = pytest.CaptureFixture[str]


class Words:
    """A tokenizer of five words, some of which would like to steer the terminal."""

    pieces = ("[bold]hi[/bold]", " \x1b[2Jwrong", " right", " on\n", "`<b>`")

    def decode(self, ids: list[int], **options: Any) -> str:
        return "".join(self.pieces[i] for i in ids)


def revised() -> RevisedSequence:
    correction = Correction(1, 1, 1, 2, 0.5, 0.1, 0.9, 0.9, 0.1, 3, 3, -1.0, 1, 3)
    return RevisedSequence(7, (0,), (0, 1, 3), (0, 2, 3), (correction,), "corrected", 0, 0)


def shown_in_terminal(**options: Any) -> str:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=60, markup=False, **options)
    console.print(terminal_revision(revised(), Words()))
    return shown.getvalue()


def test_texts_in_a_terminal_strike_the_students_token_and_show_the_teachers_in_green() -> None:
    shown = shown_in_terminal(color_system="standard")
    # strike and red; bold and green
    assert re.search(r"\x1b\[9;31m\\x1b\[2Jwrong\x1b\[0m", shown), shown
    assert "\x1b[1;32mright\x1b[0m" in shown and "\x1b[2m[bold]hi[/bold]" in shown
    assert "position 1, KL 0.50 nats" in shown and "before" in shown
    assert "\x1b[2J" not in shown


def test_texts_without_colours_still_tell_the_two_tokens_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown = shown_in_terminal()
    assert not re.search(r"\x1b\[[\d;]*3\dm", shown)
    assert "wrong→right" in re.sub(r"\x1b\[[\d;]*m", "", shown)


def test_texts_in_a_pipe_are_markdown_without_control_characters(two_set_run: Path, capsys: Capture) -> None:
    assert "\x1b" not in markdown_revision(revised(), Words())
    assert main(["texts", str(two_set_run), "--round", "0", "--number", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("### round 0, example ") == 2 and out.count("**prompt** ") == 2
    assert "\x1b" not in out and "→ **" in out


def test_texts_asks_the_output_and_not_the_environment(
    two_set_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["texts", str(two_set_run), "--number", "1"]) == 0
    assert capsys.readouterr().out.startswith("### round 2, example ")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["texts", str(two_set_run), "--number", "1"]) == 0
    out = capsys.readouterr().out
    assert "###" not in out and "\x1b[1m" in out and "round 2, example" in out
