"""Files that are whole or not there: a temporary name, fsync, rename; and a checksum where rot must be noticed.

`<name>.sha256` beside a file is what `sha256sum --check` reads. While a file is being replaced it names the old
content and the new one, so whichever stands under the name at a power cut is known.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mgsr.runtime.errors import DataError, UserError
from mgsr.runtime.faults import reach

SUFFIX = ".sha256"
_TEMPORARY = ".tmp"
_BLOCK = 1 << 20


class _Hashing:
    """A binary file that is hashed as it is written."""

    def __init__(self, file: Any, point: str, path: Path) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self._point, self._path = point, path
        # kept: whoever writes through this may turn it into an error of another kind
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        self._digest.update(content)
        try:
            reach(self._point, self._path)
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def write_whole(
    path: Path,
    write: Callable[[Any], Any],
    *,
    kind: str = "file",
    before_rename: Callable[[str], None] | None = None,
) -> str:
    """Write a file so that its name stands for the old content or the new, never for a part.

    Args:
        write: called with a binary file.
        kind: names the fail points on the way.
        before_rename: called with the SHA-256 when the content is on the disk under its temporary name.

    Returns:
        SHA-256 of the content, in hex.

    Raises:
        UserError: the disk is full, or the place cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{_TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        reach(f"{kind}.begin", path)
        with temporary.open("wb") as file:
            hashing = _Hashing(file, f"{kind}.write", temporary)
            try:
                write(hashing)
            except Exception as error:
                raise hashing.error or error from error
            file.flush()
            reach(f"{kind}.half", temporary)
            os.fsync(file.fileno())
        digest = hashing.hexdigest()
        if before_rename is not None:
            before_rename(digest)
        reach(f"{kind}.written", temporary)
        temporary.replace(path)
        sync_folder(path.parent)
        reach(f"{kind}.renamed", path)
    except BaseException as error:
        # where a file stands in the place of the folder, this is refused as well
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise refused(path, error) from error
        raise
    return digest


def read_regular(path: Path) -> bytes:
    """The content of a file; nothing else is opened: a pipe may never write, and a device never end.

    Raises:
        OSError: as reading does.
        DataError: it is a pipe (`<(...)` in a shell is one), a device or a socket.
    """
    mode = path.stat().st_mode
    kinds = {"pipe": stat.S_ISFIFO, "device": stat.S_ISCHR, "disk": stat.S_ISBLK, "socket": stat.S_ISSOCK}
    for kind, is_kind in kinds.items():
        if is_kind(mode):
            raise DataError(
                f"{path}: is a {kind}, which a run cannot read again; write it to a file, and name that"
            )
    return path.read_bytes()


def write_atomically(path: Path, text: str, *, kind: str = "file") -> None:
    """As `write_whole`, a text in UTF-8."""
    write_whole(path, lambda file: file.write(text.encode("utf-8")), kind=kind)


def write_checked(path: Path, write: Callable[[Any], Any], *, kind: str = "file") -> None:
    """As `write_whole`, with a checksum beside the file."""
    beside = path.with_name(path.name + SUFFIX)

    def announce(digest: str) -> None:
        known = _digests(path) if path.exists() else []
        lines = [f"{one}  {path.name}\n" for one in dict.fromkeys([digest, *known])]
        write_atomically(beside, "".join(lines), kind=f"{kind}.checksum")

    digest = write_whole(path, write, kind=kind, before_rename=announce)
    write_atomically(beside, f"{digest}  {path.name}\n", kind=f"{kind}.checksum")


class Background:
    """One thread that writes one thing at a time, while whoever gave it the work goes on."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, work: Callable[[], None]) -> None:
        """Wait for what was begun before, as `wait` does, then begin this."""
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="background", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when what was begun last is done; what it has met is raised here, once."""
        if self._thread is not None:
            self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if error is not None:
            raise error


def check(path: Path) -> None:
    """See that a file is the one that its checksum was written for.

    Raises:
        DataError: it is not there, is torn or was changed since.
        UserError: the system refuses to read it.
    """
    try:
        known, found = _digests(path), sha256(path)
    except FileNotFoundError:
        raise DataError(f"{path}: is not there") from None
    except OSError as error:
        # not the file's fault: nobody shall delete it for that
        raise refused(error.filename or path, error, "read") from error
    if not known:
        raise DataError(f"{path}: has no checksum beside it ({path.name}{SUFFIX})")
    if found not in known:
        raise DataError(f"{path}: torn or changed (its checksum differs)")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex, read block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def remove_checked(path: Path) -> None:
    """Remove a file, then its checksum."""
    path.unlink(missing_ok=True)
    path.with_name(path.name + SUFFIX).unlink(missing_ok=True)


def _digests(path: Path) -> list[str]:
    try:
        text = path.with_name(path.name + SUFFIX).read_text(encoding="ascii")
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def sync_folder(folder: Path) -> None:
    """Have the folder's list of names on the disk too; where a system cannot open folders, do nothing."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process has left under temporary names; only for whoever holds the folder's lock."""
    for path in folder.rglob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


_AWAY = "move it away"
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "make room: the disk quota of this user is used up",
    errno.EFBIG: "choose a disk that takes files of that size",
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "give this user the right to it",
    errno.EROFS: "it lies on a read-only disk",
    errno.ENOTDIR: f"a file stands where a folder is needed: {_AWAY}",
    errno.EEXIST: f"something of that name is in the way: {_AWAY}",
    errno.EISDIR: f"a folder stands where a file is needed: {_AWAY}",
    errno.ENOTEMPTY: f"a folder that is not empty is in the way: {_AWAY}",
    errno.ENAMETOOLONG: "choose shorter names (of experiment, arm or folder)",
    errno.ELOOP: "its symbolic links lead back to themselves: mend them",
    errno.ENOENT: "see that its folder is there",
    errno.EMFILE: "raise the number of open files (ulimit -n)",
    errno.ENFILE: "close some programs: the system has too many files open",
    errno.EIO: "the disk itself fails: look into the system's log",
    errno.ESTALE: "the network disk has lost it: mount it again",
}
_OR_ELSEWHERE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOENT}
_AGAIN = "then give the same command again (a run that had begun: with --resume)"


def system_error(error: Exception) -> OSError:
    """As the system's error, what a library has made of it: those in Rust leave the number in their words."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(0, str(error))


def refused(path: str | Path, error: OSError, doing: str = "written") -> UserError:
    """One line for what the system has refused: what, where, and what helps against just that.

    Args:
        doing: "written", "read" or "used", where it is not known which.
    """
    number = error.errno or 0
    if number in (errno.ENOTDIR, errno.EEXIST):
        # of a long path, what is in the way
        above = (place for place in Path(path).parents if place.exists())
        nearest = next(above, Path(path))
        path = nearest if not nearest.is_dir() else path
    remedy = _REMEDIES.get(number, "mend that")
    if doing == "written" and number in _OR_ELSEWHERE:
        remedy += ", or name another place"
    kept = "; what was there is kept" if doing == "written" else ""
    return UserError(f"{path}: cannot be {doing} ({error.strerror or error}){kept}: {remedy}, {_AGAIN}")
