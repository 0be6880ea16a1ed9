"""What is no regular file is never opened: a pipe may never write, and a device never end."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from mgsr.config.yaml_reader import read_yaml
from mgsr.data.row_files import read_rows
from mgsr.runtime.errors import UserError


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def socket_file(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


@pytest.mark.parametrize("read", [read_rows, read_yaml])
@pytest.mark.parametrize(
    ("make", "kind"),
    [(pipe, "a pipe"), (device, "a device"), (socket_file, "a socket"), (Path.mkdir, "directory")],
)
def test_only_files_are_read(
    make: object, kind: str, read: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the name of a socket has to be short
    monkeypatch.chdir(tmp_path)
    path = Path("rows.jsonl")
    make(path)  # type: ignore[operator]
    with pytest.raises(UserError, match=f"^rows.jsonl: .*{kind}"):
        read(path)  # type: ignore[operator]


def test_process_substitution_is_a_pipe_and_told_as_one() -> None:
    """`data.train=<(zcat rows.gz)` gives /dev/fd/63: that it does not end in .jsonl is not what is wrong."""
    reading, writing = os.pipe()
    with pytest.raises(UserError, match="is a pipe, which a run cannot read again; write it to a file"):
        read_rows(f"/dev/fd/{reading}")
    os.close(reading)
    os.close(writing)
