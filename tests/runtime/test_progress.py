"""Progress of long work: rate and time left by a clock that the tests turn."""

from __future__ import annotations

import io
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import rich
from rich.console import Console

from mgsr.runtime.progress import pace, progress


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


def test_a_bar_may_stand_inside_another(clock: Clock, terminal: io.StringIO) -> None:
    with progress("grid", 2, unit="runs") as outer:
        with progress("round 0", 8, unit="sequences") as inner:
            clock.now += 2
            inner(4)
            assert_shown(terminal, "4/8 2.0 sequences/s, 2 s left")
        outer(1)
        assert_shown(terminal, "1/2 30.0 runs/min, 2 s left")


def test_lines_where_there_is_no_terminal(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("grid", 45, unit="runs", every=0.0) as advance:
        advance(1)
        clock.now += 57
        advance(1)
    assert capsys.readouterr().out == "grid: 1/45 runs\ngrid: 2/45 runs, 2.1 runs/min, 20 min left\n"
    with progress("round 0", 600, unit="sequences") as advance:
        for _ in range(3):
            clock.now += 6
            advance(100)
    assert capsys.readouterr().out == "round 0: 200/600 sequences, 16.7 sequences/s, 24 s left\n"


def test_a_rate_is_never_shown_as_none() -> None:
    assert pace(1, 3, 3600.0, "runs") == "1.0 runs/h, 2 h 0 min left"
