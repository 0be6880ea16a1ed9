"""Help that fits and names its own arguments, one section of the keys, completion in a shell."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mgsr.cli.arguments import build_parser
from mgsr.cli.completion import script
from mgsr.cli.main import main
from mgsr.config.keys import walk
from mgsr.config.schema import ExperimentConfig

SCRG = [name for name, *_ in walk(ExperimentConfig()) if name.startswith("scrg.")]
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("name", "first", "count"),
    [
        ("scrg", "scrg.enabled (bool) = True", None),
        ("teacher.sft", "teacher.sft.epochs (int) = ", None),
        ("train.lr", "train.lr (float) = ", 1),
        ("seed", "seed (int) = 0", 1),
    ],
)
def test_config_shows_one_section_or_one_key(name: str, first: str, count: int | None, capsys: Capture) -> None:
    assert main(["config", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(first) and len(lines) % 2 == 0
    assert all(line.startswith((name, "    ")) for line in lines)
    assert count is None or len(lines) == 2 * count


def test_config_shows_a_section_with_overrides(capsys: Capture) -> None:
    assert main(["config", "scrg", "scrg.passes=3"]) == 0
    assert "scrg.passes (int) = 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "meant"), [("scgr", "scrg"), ("train.Ir", "train.lr"), ("techer.sft", "teacher.sft")]
)
def test_config_suggests_a_near_name(typed: str, meant: str, capsys: Capture) -> None:
    assert main(["config", typed]) == 2
    error = capsys.readouterr().err
    assert f"did you mean `{meant}`?" in error and error.count("\n") == 1


def test_a_file_goes_before_a_section_of_its_name(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    shutil.copy(tiny_file, tmp_path / "scrg")
    monkeypatch.chdir(tmp_path)
    assert main(["config", "scrg"]) == 0
    assert capsys.readouterr().out.startswith("experiment: tiny")


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return action.choices


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", commands())
def test_help_names_its_own_arguments_and_fits(name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    parser = commands()[name]
    text = parser.format_help()
    usage = text.split("\n\n")[0]
    for action in parser._actions:
        wanted = not action.option_strings or action.required
        if wanted:
            assert str(action.option_strings[0] if action.option_strings else action.metavar) in usage, usage
        assert action.help or not wanted, action
    assert "ignored" not in text and "SOURCE" not in text and "overrides" not in usage
    # an example with paths of one's own is not cut: it is there to be copied
    assert max(len(line) for line in text.splitlines() if not line.startswith("  mgsr ")) <= width
    examples = [line for line in str(parser.description).splitlines() if line.startswith(f"  mgsr {name} ")]
    assert (examples or name == "config") and set(examples) <= set(text.splitlines()), "an example on its own line"


@pytest.mark.parametrize("name", commands())
def test_examples_of_the_help_are_read_by_the_parser(name: str) -> None:
    for line in str(commands()[name].description).splitlines():
        if line.startswith(f"  mgsr {name} "):
            words = line.split(" > ")[0].replace("'{vicuna: vicuna.jsonl}'", "x").split()[1:]
            plain = [word for word in words if "=" not in word or "/" in word]
            assert build_parser().parse_args(plain).command == name


def completed(*words: str, folder: Path) -> list[str]:
    """What bash offers for the last word."""
    quoted = " ".join(f"'{word}'" for word in words)
    code = f"""{script("bash")}
compopt() {{ :; }}
COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMP_LINE="${{COMP_WORDS[*]}}"
_mgsr
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, cwd=folder, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["mgsr", "tr"], ["train"]),
        (["mgsr", "train", "--res"], ["--resume"]),
        (["mgsr", "train", "my"], ["my.yaml"]),
        (["mgsr", "train", "my.yaml", "scrg.ena"], ["scrg.enabled="]),
        # readline makes three words of key=value
        (["mgsr", "train", "my.yaml", "scrg.enabled", "=", "f"], ["false"]),
        (["mgsr", "train", "my.yaml", "data.train", "=", "m"], ["my.yaml"]),
        (["mgsr", "train", "my.yaml", "seed", "=", "3", "scrg.pas"], ["scrg.passes="]),
        (["mgsr", "evaluate", "run", "--template", "al"], ["alpaca"]),
        (["mgsr", "completion", "z"], ["zsh"]),
        (["mgsr", "config", "scr"], ["scrg", *SCRG]),
        (["mgsr", "ablate", "scrg", "--config", "demo_"], ["demo_long", "demo_teacher"]),
        (["mgsr", "ablate", "scrg", "--config", "my"], ["my.yaml"]),
    ],
)
def test_bash_completes_commands_files_keys_and_values(
    words: list[str], offered: list[str], tmp_path: Path
) -> None:
    (tmp_path / "my.yaml").touch()
    assert completed(*words, folder=tmp_path) == offered


def test_a_script_is_printed_for_each_shell(capsys: Capture) -> None:
    for shell, head in (("bash", "complete "), ("zsh", "#compdef mgsr")):
        assert main(["completion", shell]) == 0
        out = capsys.readouterr().out
        assert head in out and "scrg.passes=" in out and "@" not in re.sub(r"\[@\]|\$@|@#|\"@\"", "", out)


def test_nothing_slow_is_imported_for_help_and_completion() -> None:
    code = "import sys; from mgsr.cli.main import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += (
        "print([m for m in ('torch', 'transformers', 'lightning', 'shtab') if m in sys.modules], file=sys.stderr)"
    )
    for words, loaded in ((["--help"], "[]"), (["completion", "bash"], "['shtab']")):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        assert done.stderr.strip() == loaded


def test_help_of_evaluate_says_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = commands()["evaluate"].format_help()
    assert "(each also .gz)" in text and "where it is measured" in text and "where to (" not in text
