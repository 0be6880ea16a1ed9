"""What the system refuses is told by its reason; small JSON files are of the shape asked for."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from mgsr.cli import main as command_line
from mgsr.runtime.errors import DataError, UserError
from mgsr.runtime.files import check, refused, system_error, write_atomically, write_checked
from mgsr.runtime.json_files import Each, ListOf, Maybe, misshapen, read_json

REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "quota of this user",
    errno.EACCES: "give this user the right",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EISDIR: "a folder stands where a file is needed",
    errno.EEXIST: "something of that name is in the way",
    errno.EROFS: "read-only disk",
    errno.ENAMETOOLONG: "choose shorter names",
    errno.EMFILE: "ulimit -n",
}


@pytest.mark.parametrize("number", REMEDIES)
def test_what_helps_depends_on_what_was_refused(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = OSError(number, os.strerror(number), "/there/it")
    said = str(refused("/there/it", error))
    others = {text for other, text in REMEDIES.items() if other != number and text not in REMEDIES[number]}
    assert REMEDIES[number] in said and os.strerror(number) in said and not any(text in said for text in others)

    def fails(_: Any) -> int:
        raise error

    # also where it comes up to the command line as it is
    monkeypatch.setitem(command_line._COMMANDS, "config", fails)
    assert command_line.main(["config"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("mgsr: error: /there/it: cannot be used") and REMEDIES[number] in told


def test_a_library_s_own_error_keeps_the_number_of_the_system() -> None:
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert "free some space" in str(refused("/there/it", system_error(error)))
    assert "cannot be written (odd)" in str(refused("/there/it", system_error(SafetensorError("odd"))))


def test_of_a_long_path_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match=rf"{tmp_path}/file: cannot be written .*move it away"):
        write_atomically(tmp_path / "file/a/b/c.json", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder: cannot be written .*move it away"):
        write_atomically(tmp_path / "folder", "x")
    with pytest.raises(UserError, match="shorter names"):
        write_atomically(tmp_path / ("x" * 300), "x")
    assert (tmp_path / "file").read_text() == "kept" and not list(tmp_path.rglob("*.tmp"))


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_checked(path, lambda file: file.write(b"x"))

    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match=r"cannot be read .*give this user the right") as caught:
        check(path)
    assert not isinstance(caught.value, DataError)


SHAPE = {
    "steps": int,
    "name": (str, None),
    "figures": Each(float, 1),
    "places": ListOf({"file": str}, 1),
    "more": Maybe(bool),
}
GOOD = {"steps": 1, "name": None, "figures": {"a": 1}, "places": [{"file": "x"}], "unknown": [1]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": True}, "`steps` is True, not a whole number"),
        ({"steps": 1.5}, "`steps` is 1.5, not a whole number"),
        ({"steps": 10**400}, "`steps` is too large a number, not a whole number"),
        ({"name": 3}, "`name` is 3, not text or null"),
        ({"figures": {}}, "`figures` is {}, not a mapping of 1 or more"),
        ({"figures": {"a": float("nan")}}, "`figures.a` is nan, not a number"),
        ({"figures": {"a": 1e300}}, "`figures.a` is 1e+300, not a number"),
        ({"places": []}, "`places` is [], not a list of 1 or more"),
        ({"places": [{}]}, "`places.0.file` is missing"),
        ({"more": 0}, "`more` is 0, not true or false"),
    ],
)
def test_a_field_of_the_wrong_shape_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    assert misshapen(GOOD, SHAPE) == ""
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(DataError) as caught:
        read_json(path, SHAPE, "mend it")
    assert str(caught.value) == f"{path}: {said}; mend it"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5_000, b"[]", b'"a"'])
def test_what_is_no_small_file_is_one_line_and_never_empty(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match="is not there; mend it"):
        read_json(path, {}, "mend it")
    assert read_json(path, {}, "", missing={"a": 1}) == {"a": 1}
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"; mend it$") as caught:
        read_json(path, {}, "mend it", missing={})
    assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value)) < len(str(path)) + 150
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="is no file"):
        read_json(path, {}, "mend it", missing={})
