"""Standard output and error: any text reaches any terminal, and one that nobody reads ends a command quietly."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from mgsr.runtime.errors import UserError

_LONGEST = 2000


class _Watched(io.FileIO):
    """A descriptor that remembers why it could not be written: its errors look like those of any file."""

    error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.error = error
            raise


def with_safe_streams(command: Callable[[], int]) -> int:
    """Run a command; returns its exit code.

    Where standard output is gone it is 141, as a shell reports SIGPIPE (`mgsr config | head`); where it cannot be
    written, as on a full disk, it is 2, and standard error says so.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # closed by the shell (`>&-`)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            # what an encoding lacks is escaped
            stream.reconfigure(errors="backslashreplace")
    out: Any = sys.stdout
    # unbuffered (`python -u`) there is no layer between text and descriptor
    layer = getattr(out, "buffer", None)
    if not isinstance(getattr(layer, "raw", layer), io.FileIO):
        return _flushed(command)
    raw = _Watched(out.fileno(), "w", closefd=False)
    watched = io.TextIOWrapper(
        io.BufferedWriter(raw) if hasattr(layer, "raw") else raw,
        out.encoding,
        "backslashreplace",
        line_buffering=out.line_buffering,
        write_through=out.write_through,
    )
    code = 0
    try:
        with contextlib.redirect_stdout(watched):
            code = _flushed(command)
    except SystemExit:
        # of --help, and of rich where a pipe is broken
        if raw.error is None:
            raise
    finally:
        if raw.error is not None:
            # what is left in the buffer: from Python 3.13 on its destructor would report it
            _forget(raw.fileno())
    if isinstance(raw.error, BrokenPipeError):
        return 128 + getattr(signal, "SIGPIPE", 13)
    if raw.error is not None:
        reason = raw.error.strerror
        tell(f"error: standard output cannot be written ({reason}); free some space or send it elsewhere")
        return UserError.exit_code
    return code


def _flushed(command: Callable[[], int]) -> int:
    try:
        return command()
    finally:
        # now: at the interpreter's end an error would be a traceback
        with contextlib.suppress(OSError):
            sys.stdout.flush()


def output_is_broken() -> bool:
    """Whether standard output could not be written: that ends the command, whatever it was about."""
    layer = getattr(sys.stdout, "buffer", None)
    raw = getattr(layer, "raw", layer)
    return isinstance(raw, _Watched) and raw.error is not None


def prints(text: str) -> bool:
    """Whether standard output has all characters of a text."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def tell(message: str) -> None:
    """One line on standard error, `mgsr: message`, control characters escaped; nothing if it cannot be written."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(message.split()))
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    try:
        print(f"mgsr: {line}", file=sys.stderr, flush=True)
    except OSError:
        _forget(2)


def _forget(descriptor: int) -> None:
    """Let what is still to be written vanish."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
