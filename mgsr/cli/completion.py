"""`mgsr completion SHELL`: a static script for bash or zsh, made of the parser by `shtab`.

Pressing the tab key starts no Python. The script holds the names of commands, options and configuration keys as
they were when it was printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import shtab

from mgsr.cli.arguments import build_parser
from mgsr.config.keys import types_of, walk
from mgsr.config.schema import ExperimentConfig
from mgsr.config.shipped import shipped

_FOLDERS = ("RUN", "OUT", "FOLDER", "RUN_OR_MODEL_FOLDER")
_KEYS = {"bash": "_mgsr_keys", "zsh": "_mgsr_words"}
_CONFIGS = {"bash": "_mgsr_configs", "zsh": "_mgsr_words"}
_BASES = {"bash": "_mgsr_bases", "zsh": "_mgsr_bases"}
_NAMES = {"bash": "_mgsr_names", "zsh": "_mgsr_names"}
_STUDIES = {"bash": "_mgsr_studies", "zsh": "_mgsr_studies"}

# readline cuts words at `=`, so a value is a word of its own; a key takes no blank behind it
_BASH = """
_mgsr_keys() { compgen -W "@keys@" -- "$1"; }
_mgsr_bases() { _shtab_compgen_files "$1"; compgen -W "@configs@" -- "$1"; }
_mgsr_configs() { _mgsr_bases "$1"; _mgsr_keys "$1"; }
_mgsr_names() { _mgsr_bases "$1"; compgen -W "@names@" -- "$1"; }
_mgsr_studies() { _shtab_compgen_files "$1"; compgen -W "@studies@" -- "$1"; }
_mgsr() {
  local word="${COMP_WORDS[COMP_CWORD]}" before=$((COMP_CWORD - 1)) key="" values=""
  [[ "$word" == "=" ]] && { before=$COMP_CWORD; word=""; }
  [[ "${COMP_WORDS[before]}" == "=" ]] && key="${COMP_WORDS[before - 1]}"
  if [[ -z "$key" ]]; then
    _shtab_mgsr
    [[ "${COMPREPLY[0]}" == *= ]] && compopt -o nospace
    return 0
  fi
  case "$key" in
@bash_values@
  esac
  if [[ -n "$values" ]]; then
    COMPREPLY=($(compgen -W "$values" -- "$word"))
  else
    compopt -o filenames
    COMPREPLY=($(compgen -f -- "$word"))
  fi
}
"""

_ZSH = """
_mgsr_studies() { _files; compadd -- @studies@; }
_mgsr_bases() { _files; compadd -- @configs@; }
_mgsr_names() { _files; compadd -- @configs@ @names@; }
_mgsr_words() {
  if compset -P 1 '*='; then
    case "$IPREFIX" in
@zsh_values@
      *) _files ;;
    esac
  else
    _files
    compadd -- @configs@
    compadd -S '' -- @keys@
  fi
}
"""


def script(shell: str) -> str:
    """What `shell` ("bash" or "zsh") reads to complete the words behind `mgsr`."""
    parser = build_parser()
    for action in _actions(parser):
        if action.metavar == "key=value":
            action.complete = _KEYS  # type: ignore[attr-defined]
        elif action.metavar == "CONFIG":
            shows = "section" in str(action.help)
            action.complete = _BASES if action.option_strings else _NAMES if shows else _CONFIGS  # type: ignore[attr-defined]
        elif action.metavar == "STUDY":
            action.complete = _STUDIES  # type: ignore[attr-defined]
        elif action.metavar == "FILE":
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    leaves = list(walk(ExperimentConfig()))
    values = {name: _values(value, meta["choices"]) for name, value, meta in leaves}
    known = {name: words for name, words in values.items() if words}
    holes = {
        "@names@": " ".join(types_of(ExperimentConfig)),
        "@configs@": " ".join(shipped("config")),
        "@studies@": " ".join(shipped("study")),
        "@keys@": " ".join(f"{name}=" for name, *_ in leaves),
        "@bash_values@": "\n".join(f'    {name}) values="{words}" ;;' for name, words in known.items()),
        "@zsh_values@": "\n".join(f"      {name}=) compadd -- {words} ;;" for name, words in known.items()),
    }
    preamble = {"bash": _BASH, "zsh": _ZSH}[shell]
    for hole, words in holes.items():
        preamble = preamble.replace(hole, words)
    made = shtab.complete(parser, shell=shell, preamble=preamble)
    return made.replace("-F _shtab_mgsr mgsr", "-F _mgsr mgsr") + "\n"


def _values(value: object, choices: tuple[object, ...]) -> str:
    """What a key takes, where it is a few words."""
    if choices:
        return " ".join(map(str, choices))
    return "true false" if isinstance(value, bool) else ""


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every argument of every command."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from sub._actions
