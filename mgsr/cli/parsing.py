"""From the words of a command line to its arguments, with `key=value` words anywhere."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mgsr.cli.arguments import Parser, build_parser
from mgsr.cli.hints import hint_at_rest, hint_at_word
from mgsr.cli.streams import tell
from mgsr.config.layers import NAMED
from mgsr.runtime.errors import did_you_mean

# a dash is no part of a key, but of what people type: the key that is meant is named where keys are read
_OVERRIDE = re.compile(r"[A-Za-z_][\w.-]*=")
_OVERRIDABLE = ("train", "init", "ablate", "doctor", "plan", "config")


def _is_file(word: str) -> bool:
    try:
        return bool(word) and Path(word).exists()
    except OSError:
        # too long for a name
        return False


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of a command, with `overrides` (the `key=value` words, which may stand anywhere) and `words`.

    Args:
        argv: what stands behind `mgsr`; None takes it from `sys.argv`.

    Raises:
        SystemExit: code 2, for words that the command does not take.
    """
    parser = build_parser()
    words = list(sys.argv[1:] if argv is None else argv)
    # taken out first: `--seeds 0 1 scrg.passes=3` would otherwise hand the override to --seeds
    overrides = [word for word in words if _OVERRIDE.match(word) and not _is_file(word)]
    _check_words(parser, words)
    arguments = parser.parse_args([word for word in words if word not in overrides])
    takes = arguments.command in _OVERRIDABLE
    # what argparse shows as key=value is no override
    rest = getattr(arguments, "overrides", None) or ([] if takes else overrides)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}; {hint_at_rest(rest, takes, arguments.command)}")
    for name in ("seeds", "arms"):
        # a run that is named twice is one run
        if getattr(arguments, name, None):
            setattr(arguments, name, list(dict.fromkeys(getattr(arguments, name))))
    arguments.overrides, arguments.words = overrides, words
    _say_of_repeated(overrides)
    return arguments


def _say_of_repeated(overrides: Sequence[str]) -> None:
    """Say of a key that is given twice which value holds; test sets add up."""
    last = {word.partition("=")[0]: word for word in overrides}
    for name, word in last.items():
        earlier = [one for one in overrides if one.partition("=")[0] == name and one != word]
        if earlier and name not in NAMED and os.environ.get("RANK", "0") == "0":
            tell(f"`{name}` is given more than once; the last holds: {word}")


def _check_words(parser: Parser, words: Sequence[str]) -> None:
    """Refuse what is typed as other programs take it, or as an editor has changed it."""
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    name = next((word for word in words if not word.startswith("-")), None)
    if name is None:
        return
    if name not in commands:
        near = did_you_mean(name, commands)
        ways = f"; type mgsr train {name}" if _is_file(name) else f": {', '.join(commands)}"
        parser.error(f"no command `{name}`{near or ways}")
    sub = commands[name]
    for word, following in zip(words, [*words[1:], ""], strict=True):
        hint = (
            None
            if _is_file(word)
            else hint_at_word(word, following, sub._option_string_actions, name in _OVERRIDABLE)
        )
        if hint:
            tell(f"error: {hint}")
            sys.exit(2)
