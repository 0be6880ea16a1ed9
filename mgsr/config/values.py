"""What the metadata of a single key says of its value: whether the key takes it, and whether it has an effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mgsr.config.keys import value_of, walk
from mgsr.config.origin import COMMAND_LINE, where
from mgsr.config.schema import ExperimentConfig
from mgsr.runtime.errors import ConfigError, did_you_mean
from mgsr.runtime.import_path import IMPORT_PATH


def check_values(config: ExperimentConfig) -> None:
    """Refuse a value that its key does not take.

    Raises:
        ConfigError: the first of them.
    """
    for name, value, meta in walk(config):
        for each in value if isinstance(value, list) else [value]:
            _check_value(name, each, meta)


def _check_value(name: str, value: Any, meta: Mapping[str, Any]) -> None:
    choices, low, high = meta["choices"], meta["low"], meta["high"]
    own = meta["imports"] and isinstance(value, str) and IMPORT_PATH.fullmatch(value)
    if choices and value not in choices and not own:
        raise ConfigError(
            f"`{name}` is {value!r}; it takes {' | '.join(str(choice) for choice in choices if choice != '')}"
            + (" | package.module:name" if meta["imports"] else "")
            + (did_you_mean(value, choices) if isinstance(value, str) else ""),
            name,
        )
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # written so that NaN fails too
        if not value >= low:
            raise ConfigError(f"`{name}` is {value}; it must be at least {low}", name)
        if not value <= high:
            raise ConfigError(f"`{name}` is {value}; it must be at most {high}", name)


def without_effect(config: ExperimentConfig) -> list[str]:
    """What was written and changes nothing, with its place and what it would take.

    Whatever a file says and an arm or a command line switches off is meant so, and left out.
    """
    found, defaults = [], ExperimentConfig()
    for name, value, meta in walk(config):
        place = where(config, name)
        if not place or value == value_of(defaults, name):
            continue
        for condition in meta["when"].split():
            switch, _, options = condition.partition("=")
            has = value_of(config, switch)
            holds = str(has) in options.split("|") if options else bool(has)
            if not holds and switch != name and not _from_elsewhere(where(config, switch), place):
                found.append(f"`{name}` ({place}) has no effect without {condition}")
                break
    return found


def _from_elsewhere(switch: str, place: str) -> bool:
    """Whether the one was written in another source than the other, which is a file."""
    is_file = place != COMMAND_LINE and ", arm " not in place
    return is_file and bool(switch) and switch.rpartition(":")[0] != place.rpartition(":")[0]
