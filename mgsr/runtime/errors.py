"""Errors that are the user's to mend: one line each, no traceback, exit code 2."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class UserError(Exception):
    """Something in the user's hands is wrong. The message is one line: what, where, and what to do.

    A message quotes names out of files and folders. Line breaks and other control characters in them are
    written as escapes, so that no file can break the line or steer the terminal.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(_CONTROL.sub(lambda found: repr(found[0])[1:-1], message))


class ConfigError(UserError):
    """A configuration key, type or value that cannot be used.

    Attributes:
        keys: dotted names of the keys it is about; `mgsr.config.origin.placed` says where they were written.
    """

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = keys


class DataError(UserError):
    """A data file that cannot be read, named as ``file:line``."""


class RowsError(DataError):
    """Rows that cannot be used; the message is the first of them, and how many more there are.

    Attributes:
        bad: one line per row, in their order.
    """

    def __init__(self, bad: Sequence[str]) -> None:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        super().__init__(bad[0] + more)
        self.bad = list(bad)


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite; the message names the step and the term."""


class RunInterruptedError(UserError):
    """The user (or the scheduler) asked for an end; a resume point has been written.

    The exit code is what a shell reports for the signal: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, message: str, signal_number: int = 2) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known word, or nothing.

    >>> did_you_mean("sharpnes", ["sharpness", "form"])
    '; did you mean `sharpness`?'
    """
    close = get_close_matches(wrong, list(known), n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else ""
