"""Progress of long work: rate and time left by a clock that the tests turn."""

from __future__ import annotations

import io
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import rich
from rich.console import Console

from mgsr.runtime.progress import Tracker, pace, progress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("mgsr.runtime.progress.time", found)
    return found


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a terminal of 120 columns would show."""
    shown = io.StringIO()
    monkeypatch.setattr("mgsr.runtime.progress.sys", SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True)))
    monkeypatch.setattr(rich, "_console", Console(file=shown, force_terminal=True, color_system=None, width=120))
    yield shown


def test_a_bar_tells_rate_and_time_left_of_items_that_take_a_minute(clock: Clock, terminal: io.StringIO) -> None:
    with progress("grid", 4, unit="runs") as advance:
        clock.now += 60
        advance(1)
        assert_shown(terminal, "1/4 1.0 runs/min, 3 min left")
        clock.now += 30
        advance(2)
        assert_shown(terminal, "3/4 2.0 runs/min, 30 s left")


def assert_shown(terminal: io.StringIO, words: str) -> None:
    rich.get_console()._live_stack[0].refresh()  # type: ignore[attr-defined]
    assert words in terminal.getvalue()


def test_a_bar_begins_where_the_work_stands_and_its_rate_counts_what_is_done_here(
    clock: Clock, terminal: io.StringIO
) -> None:
    with progress("steps", 1000, unit="steps", first=600) as advance:
        assert_shown(terminal, "600/1000")
        assert "0/1000" not in terminal.getvalue().replace("600/1000", "")
        clock.now += 10
        advance(100)
        # not 70 steps a second
        assert_shown(terminal, "700/1000 10.0 steps/s, 30 s left")


def test_a_bar_may_stand_inside_another(clock: Clock, terminal: io.StringIO) -> None:
    with progress("grid", 2, unit="runs") as outer:
        with progress("round 0", 8, unit="sequences") as inner:
            clock.now += 2
            inner(4)
            assert_shown(terminal, "4/8 2.0 sequences/s, 2 s left")
        outer(1)
        assert_shown(terminal, "1/2 30.0 runs/min, 2 s left")


def test_a_name_is_no_markup_and_cannot_steer_the_terminal(clock: Clock, terminal: io.StringIO) -> None:
    with progress("[red]a\x1b[2Jb", 2):
        assert_shown(terminal, "[red]a\\x1b[2Jb")
    assert "\x1b[2J" not in terminal.getvalue()


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_shows_what_and_how_far_to_the_end(
    clock: Clock, terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    console = Console(file=terminal, force_terminal=True, color_system=None, width=width)
    monkeypatch.setattr(rich, "_console", console)
    bar = Tracker("demo/mgsr seed 0", 12000, unit="steps", first=3)
    clock.now += 10
    terminal.seek(terminal.truncate(0))
    bar.move(103, lambda: "loss 2.345, dev loss 2.345, dev ROUGE-L 12.345")
    assert_shown(terminal, "demo/mgsr seed 0")
    assert_shown(terminal, "103/12000 10.0 steps/s")
    bar.close()


def test_a_dumb_terminal_gets_lines(
    clock: Clock, terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with progress("grid", 4, unit="runs", every=0.0) as advance:
        advance(1)
    assert capsys.readouterr().out == "grid: 1/4 runs\n"


def test_lines_where_there_is_no_terminal(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("grid", 45, unit="runs", every=0.0) as advance:
        advance(1)
        clock.now += 57
        advance(1)
    assert capsys.readouterr().out == "grid: 1/45 runs\ngrid: 2/45 runs, 2.1 runs/min, 20 min 26 s left\n"
    with progress("round 0", 600, unit="sequences") as advance:
        for _ in range(3):
            clock.now += 6
            advance(100)
    assert capsys.readouterr().out == "round 0: 200/600 sequences, 16.7 sequences/s, 24 s left\n"


def test_a_long_run_does_not_fill_its_log(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", 36000, unit="steps") as advance:
        for _ in range(36000):
            clock.now += 1
            advance(1)
    lines = capsys.readouterr().out.splitlines()
    assert 100 < len(lines) < 300, len(lines)
    assert lines[0] == "train: 10/36000 steps, 1.0 steps/s, 10 h left"


def test_the_last_line_says_how_long_it_took(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Tracker("stage", 100, unit="steps", first=40)
    clock.now += 120
    bar.move(100)
    capsys.readouterr()
    bar.close(lambda: "loss 1.000")
    assert capsys.readouterr().out == "stage: 100/100 steps, 30.0 steps/min, took 2 min, loss 1.000\n"


def test_a_rate_is_never_shown_as_none() -> None:
    assert pace(1, 2, 3600.0, "runs") == "1.0 runs/h, 2 h left"
