"""Progress of long work: a bar with rate and time left in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

Advance = Callable[[int], None]

# of several processes that do the same work one speaks
_silent = False


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
    description: str, total: int, *, unit: str = "items", enabled: bool = True, every: float = 10.0
) -> Iterator[Advance]:
    """Show how far `total` items have come; yields `advance(n)`.

    In a terminal: a bar with rate and time left. Elsewhere: a line at most every `every` seconds.
    """
    if not enabled or _silent:
        yield lambda n: None
    elif sys.stdout.isatty():
        yield from _bar(description, total, unit)
    else:
        yield from _lines(description, total, unit, every)


def _columns() -> Progress:
    """A bar that is gone when it is done: what, how far, how many of how many, and a text."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        transient=True,
    )


def _bar(description: str, total: int, unit: str) -> Iterator[Advance]:
    start, done = time.monotonic(), 0
    with _columns() as bar:
        task = bar.add_task(description, total=total, state="")

        def advance(n: int) -> None:
            nonlocal done
            done += n
            bar.update(task, completed=done, state=pace(done, total, time.monotonic() - start, unit))

        yield advance


def _lines(description: str, total: int, unit: str, every: float) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= every:
            last = now
            how = pace(done, total, now - start, unit)
            say(f"{description}: {done}/{total} {unit}" + (f", {how}" if how else ""))

    yield advance


def pace(done: int, total: int, seconds: float, unit: str) -> str:
    """Rate since the beginning and time left, or nothing as long as neither can be told.

    A minute may pass between two items: a rate over the last moments would be none at all.

    >>> pace(3, 45, 171.0, "runs")
    '1.1 runs/min, 40 min left'
    """
    if done <= 0 or seconds <= 0:
        return ""
    rate = done / seconds
    each, per = next(((rate * n, per) for n, per in ((1, "s"), (60, "min")) if rate * n >= 1), (rate * 3600, "h"))
    return f"{each:.1f} {unit}/{per}, {duration((total - done) / rate)} left"


def duration(seconds: float) -> str:
    """Seconds for people, in the largest unit that tells enough.

    >>> duration(95), duration(1500), duration(5692)
    ('95 s', '25 min', '1 h 35 min')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class StepBar:
    """A bar over optimiser steps that is moved to where they are, with the latest figures behind it."""

    def __init__(self, description: str, total: int) -> None:
        self._bar = _columns()
        self._task = self._bar.add_task(description, total=total, state="")
        self._total = total
        self._bar.start()

    def show(self, step: int, rate: float, figures: str) -> None:
        """Move to `step`, at `rate` steps per second; nothing but the step is shown as long as the rate is 0."""
        left = (self._total - step) / rate if rate > 0 else float("inf")
        state = f"{rate:.1f} steps/s, {left:.0f} s left, {figures}" if rate > 0 else ""
        self._bar.update(self._task, completed=step, state=state)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()
