"""The keys of a configuration tree: how one is declared, and how all of them are walked and described."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import field, fields, is_dataclass
from functools import cache
from typing import Any

MANY = 10**9
"""Rows, steps, tokens: more than anybody has."""
LARGE = 2**20
"""Sequences of a batch, tokens of a text, classes: more than a machine holds."""
SEED = 2**63 - 1
"""The largest seed: what every generator of random numbers takes, and a file keeps."""
INFINITE = float("inf")
ALWAYS = "always"
"""The condition of a key that has an effect where its section has none."""


def key(
    default: Any,
    help: str,
    *,
    choices: tuple[Any, ...] = (),
    low: float | None = None,
    high: float | None = None,
    path: bool = False,
    imports: bool = False,
    when: str = "",
) -> Any:
    """A config field with its one-line explanation and the values it takes (checked by `load_config`).

    Args:
        low, high: of the number, or of every number of the list; each number has both.
        path: it may name a file or a folder.
        imports: it takes `package.module:name` too, in place of a choice.
        when: `other.key=a|b`, without which it has no effect (`other.key`: any value but 0, false and empty;
            `.key` is one of the same section; several conditions stand apart by a space).
    """
    metadata = {"help": help, "choices": choices, "low": low, "high": high, "path": path, "when": when}
    metadata["imports"] = imports
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(cls: type, help: str, *, when: str = "") -> Any:
    """A config field that is a section of its own; `when` as in `key`."""
    return field(default_factory=cls, metadata={"help": help, "when": when})


@cache
def hints_of(cls: Any) -> dict[str, Any]:
    """Types of a section's own fields; looking annotations up anew takes a while."""
    return typing.get_type_hints(cls)


def types_of(cls: type, prefix: str = "") -> dict[str, Any]:
    """Dotted name of every key and section of a tree -> its type."""
    found: dict[str, Any] = {}
    for name, kind in hints_of(cls).items():
        found[f"{prefix}{name}"] = kind
        if is_dataclass(kind):
            found |= types_of(typing.cast(type, kind), f"{prefix}{name}.")
    return found


def walk(config: Any, prefix: str = "", when: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Every leaf of a tree of sections: dotted name, value, metadata of `key`; `when` with full names."""
    for item in fields(config):
        value, own = getattr(config, item.name), item.metadata["when"].split()
        needs = [prefix + each[1:] if each.startswith(".") else each for each in own]
        both = " ".join(filter(None, [when, *needs])) if ALWAYS not in own else ""
        if is_dataclass(value):
            yield from walk(value, f"{prefix}{item.name}.", both)
        else:
            yield f"{prefix}{item.name}", value, {**item.metadata, "when": both}


def value_of(config: Any, name: str) -> Any:
    """The value of a dotted name."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def describe(config: Any, prefix: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """Every leaf of a tree of sections as `mgsr config` lists it: dotted name, type or choices, value, help."""
    hints = typing.get_type_hints(type(config))
    for item in fields(config):
        value, hint, name = getattr(config, item.name), hints[item.name], f"{prefix}{item.name}"
        if is_dataclass(value):
            yield from describe(value, f"{name}.")
            continue
        choices = item.metadata["choices"]
        if item.metadata["imports"]:
            choices = (*choices, "package.module:name")
        generic = isinstance(hint, types.GenericAlias) or typing.get_origin(hint) is not None
        kind = str(hint).replace("typing.", "") if generic else hint.__name__
        shown = [str(choice) for choice in choices if choice != ""]
        yield name, " | ".join(shown) if shown else kind, value, item.metadata["help"]
