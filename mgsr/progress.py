"""Progress of long work: a bar with rate and time left in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


def _bar(description: str, total: int, unit: str) -> Iterator[Advance]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(description, total=total, rate="")

        def advance(n: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=n, rate=f"{speed:.1f} {unit}/s" if speed else "")

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
            rate = done / (now - start)
            left = (total - done) / rate if rate > 0 else float("inf")
            say(f"{description}: {done}/{total} {unit}, {rate:.1f}/s, {left:.0f} s left")

    yield advance


class StepBar:
    """A bar over optimiser steps that is moved to where they are, with the latest figures behind it."""

    def __init__(self, description: str, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            transient=True,
        )
        self._task = self._bar.add_task(description, total=total, state="")
        self._total = total
        self._bar.start()

    def show(self, step: int, rate: float, figures: str) -> None:
        left = (self._total - step) / rate if rate > 0 else float("inf")
        state = f"{rate:.1f} steps/s, {left:.0f} s left, {figures}" if rate > 0 else ""
        self._bar.update(self._task, completed=step, state=state)

    def close(self) -> None:
        self._bar.stop()
