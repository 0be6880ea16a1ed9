"""The keys of a configuration tree: how one is declared, and how all of them are walked and described."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import field, fields, is_dataclass
from typing import Any


def key(
    default: Any,
    help: str,
    *,
    choices: tuple[Any, ...] = (),
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A config field with its one-line explanation and the values it takes (checked by `load_config`)."""
    metadata = {"help": help, "choices": choices, "low": low, "high": high}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(cls: type, help: str) -> Any:
    """A config field that is a section of its own."""
    return field(default_factory=cls, metadata={"help": help})


def walk(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Every leaf of a tree of sections: dotted name, value, metadata of `key`."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from walk(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value, item.metadata


def describe(config: Any, prefix: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """Every leaf of a tree of sections as `mgsr config` lists it: dotted name, type or choices, value, help."""
    hints = typing.get_type_hints(type(config))
    for item in fields(config):
        value, hint, name = getattr(config, item.name), hints[item.name], f"{prefix}{item.name}"
        if is_dataclass(value):
            yield from describe(value, f"{name}.")
            continue
        choices = item.metadata["choices"]
        generic = isinstance(hint, types.GenericAlias) or typing.get_origin(hint) is not None
        kind = str(hint).replace("typing.", "") if generic else hint.__name__
        yield name, " | ".join(map(str, choices)) if choices else kind, value, item.metadata["help"]
