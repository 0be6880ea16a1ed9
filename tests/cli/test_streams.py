"""Output that a terminal lacks characters for, that nobody reads, or that cannot be written."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mgsr.cli import answer
from mgsr.cli import main as cli
from mgsr.cli.streams import tell, with_safe_streams

PROMPT = "prompts are “quoted” — é"


def on_descriptor(monkeypatch: pytest.MonkeyPatch, descriptor: int, encoding: str = "utf-8") -> None:
    """Standard output as a process has it: text over a buffer over a descriptor."""
    raw = io.FileIO(descriptor, "w", closefd=False)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(raw), encoding))


def written(monkeypatch: pytest.MonkeyPatch, path: Path, *words: str, encoding: str = "ascii") -> str:
    """What a command writes to a terminal of an encoding."""
    with path.open("wb") as file:
        on_descriptor(monkeypatch, file.fileno(), encoding)
        assert cli.main(list(words)) == 0
    return path.read_text(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_without_a_character_shows_its_escape(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "out").open("wb") as file:
        on_descriptor(monkeypatch, file.fileno(), encoding)
        assert with_safe_streams(lambda: print("λ", PROMPT) or 0) == 0
    assert (tmp_path / "out").read_bytes().startswith(b"\\u03bb prompts are ")


def test_what_programs_read_keeps_its_values_in_ascii(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = written(monkeypatch, tmp_path / "config", "config", str(tiny_file), "experiment=é")
    assert yaml.safe_load(text)["experiment"] == "é"
    config = tmp_path / "é.yaml"
    config.write_text(tiny_file.read_text())
    report = json.loads(written(monkeypatch, tmp_path / "json", "doctor", str(config), "--json"))
    assert "é.yaml" in json.dumps(report, ensure_ascii=False)


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def closed_pipe() -> int:
    """What `| head` leaves behind."""
    read, write = os.pipe()
    os.close(read)
    return write


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("opened", "code", "line"),
    [(full_disk, 2, "error: standard output cannot be written (No space left on device)"), (closed_pipe, 141, "")],
)
@pytest.mark.parametrize("words", [["config"], ["--help"], ["plan", "TINY"], ["doctor", "TINY"]])
def test_output_that_cannot_be_written_ends_a_command(
    words: list[str],
    opened: object,
    code: int,
    line: str,
    tiny_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    descriptor = opened()  # type: ignore[operator]
    on_descriptor(monkeypatch, descriptor)
    assert cli.main([str(tiny_file) if word == "TINY" else word for word in words]) == code
    # at the interpreter's end nothing is left that fails again
    sys.stdout.flush()
    os.close(descriptor)
    error = capsys.readouterr().err
    assert error.startswith(f"mgsr: {line}") and error.count("\n") == 1 if line else not error


def test_a_whole_process_with_closed_and_full_streams(tmp_path: Path) -> None:
    """The interpreter's end is part of it: there Python flushes once more, and exits with 120 where that fails."""
    command = f"{sys.executable} -m mgsr"
    script = (
        f"{command} --version >/dev/full 2>/dev/full; echo $?; {command} --version >&-; echo $?; "
        f"{command} nothing 2>&- >&-; echo $?; {command} nothing 2>/dev/full; echo $?"
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.stdout.split(), done.stderr) == (["2", "0", "2", "2"], "")


def test_a_line_holds_no_control_characters_and_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    tell("error: a\x1b[31m\n b\udcff " + "c" * 10_000)
    line = capsys.readouterr().err
    assert line.startswith("mgsr: error: a\\x1b[31m b\\udcff ccc") and len(line) < 2100 and line.count("\n") == 1


@pytest.mark.parametrize("where", ["parse", "_prepare"])
def test_ctrl_c_is_one_line_wherever_it_comes(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While words are read; while torch is imported, which a command does after `_prepare`."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(answer, where, interrupted)
    assert cli.main(["config"]) == 130
    assert capsys.readouterr().err == "mgsr: stopped\n"
