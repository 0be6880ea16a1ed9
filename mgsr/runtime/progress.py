"""Progress of long work: a bar with rate and time left in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from rich import get_console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from mgsr.runtime.wording import duration, literal

Advance = Callable[[int], None]

# of several processes that do the same work one speaks
_silent = False
# in a pipe: no line sooner than after this share of the time until now, so that a long run does not fill its log
_SHARE = 1 / 50


def silence(on: bool) -> None:
    """Whether this process keeps quiet; errors are printed all the same."""
    global _silent  # noqa: PLW0603
    _silent = on


def say(message: str) -> None:
    """One plain line, seen at once."""
    if not _silent:
        print(message, flush=True)


@cache
def say_once(message: str) -> None:
    """As `say`, once per process: what is true of the machine, and asked for by every stage."""
    say(message)


@contextmanager
def progress(
    description: str, total: int, *, unit: str = "items", first: int = 0, every: float = 10.0
) -> Iterator[Advance]:
    """Show how far `total` items have come; yields `advance(n)`.

    Args:
        first: items that were there at the beginning; the rate counts those that are made here.
        every: seconds between two lines where there is no terminal.
    """
    tracker = Tracker(description, total, unit=unit, first=first, every=every)
    try:
        yield tracker.advance
    finally:
        tracker.close()


class Tracker:
    """How far `total` items have come: a bar in a terminal, plain lines elsewhere, nothing on a silent rank.

    Args:
        unit: of the items, in the plural.
        first: items that were there at the beginning; the rate counts those that are made here.
        every: seconds between two lines where there is no terminal.
    """

    def __init__(
        self, description: str, total: int, *, unit: str = "items", first: int = 0, every: float = 10.0
    ) -> None:
        self.description, self.total, self.unit, self.every = literal(description), total, unit, every
        self.done = self._first = first
        self._start = self._last = time.monotonic()
        self._bar: Progress | None = None
        if not _silent and sys.stdout.isatty() and not get_console().is_dumb_terminal:
            self._bar = _columns(self.description)
            self._task = self._bar.add_task(self.description, total=total, completed=first, state="")
            self._bar.start()

    def advance(self, n: int) -> None:
        """`n` more are done."""
        self.move(self.done + n)

    def move(self, done: int, figures: Callable[[], str] = str) -> None:
        """`done` of all are done.

        Args:
            figures: gives what else there is to show; asked only when something is shown.
        """
        self.done = done
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, state=self._state(now, figures()))
        elif now - self._last >= (max(self.every, _SHARE * (now - self._start)) if self.every else 0.0):
            self._last = now
            self._line(now, figures())

    def close(self, figures: Callable[[], str] | None = None) -> None:
        """Take the bar away; with `figures` a last line tells them, and how long it took."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if figures is not None:
            self._line(time.monotonic(), figures())

    def _line(self, now: float, figures: str) -> None:
        state = self._state(now, figures)
        say(f"{self.description}: {self.done}/{self.total} {self.unit}" + (f", {state}" if state else ""))

    def _state(self, now: float, figures: str) -> str:
        how = pace(self.done - self._first, self.total - self.done, now - self._start, self.unit)
        return ", ".join(filter(None, (how, figures)))


def _columns(description: str) -> Progress:
    """A bar that is gone when it is done: what, how far, how many of how many, and a text."""
    # where the terminal is narrow the bar goes first, then the end of the text
    name = Column(no_wrap=True, min_width=min(len(description), 24))
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=name),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[state]}", markup=False),
        transient=True,
    )


def pace(done: int, left: int, seconds: float, unit: str) -> str:
    """Rate since the beginning and time left (or taken), or nothing as long as neither can be told.

    A minute may pass between two items: a rate over the last moments would be none at all.

    Args:
        done: items made in these seconds. left: those still to be made.

    >>> pace(3, 42, 171.0, "runs"), pace(45, 0, 90.0, "runs")
    ('1.1 runs/min, 39 min 54 s left', '30.0 runs/min, took 1 min 30 s')
    """
    if done <= 0 or seconds <= 0:
        return ""
    rate = done / seconds
    each, per = next(((rate * n, per) for n, per in ((1, "s"), (60, "min")) if rate * n >= 1), (rate * 3600, "h"))
    ends = f"{duration(left / rate)} left" if left > 0 else f"took {duration(seconds)}"
    return f"{each:.1f} {unit}/{per}, {ends}"
