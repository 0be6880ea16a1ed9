"""Where a value of the configuration was written: the line of a file, an arm of a study, or the command line.

Places are collected while a configuration is read, and go with it. An error names the keys that it is about
(`ConfigError(message, "train.lr")`), and `placed` puts their places in front, wherever it was raised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from mgsr.runtime.errors import ConfigError, UserError

COMMAND_LINE = "command line"

_PLACES = "_places"  # no field of the dataclass: neither written nor compared


class Said(NamedTuple):
    """A value and the place where it was written; the place is empty where nobody knows it."""

    value: Any
    place: str


Layer = dict[str, Said]
"""Dotted key -> what one source says of it."""


def remember(config: Any, layer: Layer) -> None:
    """Let a configuration know where its values were written."""
    setattr(config, _PLACES, {name: said.place for name, said in layer.items()})


def where(config: Any, name: str) -> str:
    """The place where a key was written, or a key of this section; empty for defaults.

    A configuration that was copied by `dataclasses.replace` knows no places.
    """
    places: Mapping[str, str] = getattr(config, _PLACES, {})
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in places:
            return places[".".join(parts[:length])]
    return next((place for key, place in places.items() if key.startswith(f"{name}.")), "")


@contextmanager
def placed(config: Any) -> Iterator[None]:
    """Begin the message of a `ConfigError` with the places of its keys.

    Raises:
        ConfigError: the same, as `file:line: message`, or `file:line (key), command line (other key): message`.
    """
    try:
        yield
    except ConfigError as error:
        found = {name: place for name in error.keys if (place := where(config, name))}
        if not found:
            raise
        places = list(dict.fromkeys(found.values()))
        if len(places) > 1:
            places = [f"{place} ({name})" for name, place in found.items()]
        raise ConfigError(f"{', '.join(places)}: {error}") from None


@contextmanager
def about(what: str, *names: str) -> Iterator[None]:
    """Begin an error with `what`, and name the keys that are to blame, so that `placed` tells where they stand.

    Raises:
        ConfigError: in place of any other UserError.
    """
    try:
        yield
    except ConfigError:
        raise
    except UserError as error:
        raise ConfigError(f"{what}{error}", *names) from error
