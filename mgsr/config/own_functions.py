"""What a configuration names by import path, or by a name of the project."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mgsr.config.schema_method import DIVERGENCE_NAMES, ObjectiveConfig
from mgsr.runtime.errors import ConfigError
from mgsr.runtime.import_path import imported

Class = TypeVar("Class", bound=type)


def divergence_of(objective: ObjectiveConfig) -> str | Callable[..., Any]:
    """The token-level divergence, as `mgsr.losses.tiled_objective` takes it.

    Raises:
        ConfigError: a function of the user's own cannot be imported.
    """
    name = objective.divergence
    return name if name in DIVERGENCE_NAMES else imported(name, "objective.divergence")


def written_divergence_of(objective: ObjectiveConfig) -> str | Callable[..., Any] | None:
    """The divergence on student-written text; None where it is the same.

    Raises:
        ConfigError: as `divergence_of`.
    """
    name = objective.written_divergence
    if not name:
        return None
    return name if name in DIVERGENCE_NAMES else imported(name, "objective.written_divergence")


def divergence_options(objective: ObjectiveConfig) -> dict[str, Any]:
    """Its arguments: what `objective.divergence_options` says, and older keys where that says nothing."""
    older: dict[str, dict[str, Any]] = {
        "symmetric_kl": {"weight": objective.divergence_weight},
        "jensen_shannon": {"beta": objective.beta},
        "skewed_forward_kl": {"alpha": objective.alpha},
        "skewed_reverse_kl": {"alpha": objective.alpha},
    }
    return {**older.get(objective.divergence, {}), **objective.divergence_options}


def class_of(name: str, known: Mapping[str, Class], base: Class, key: str) -> Class:
    """A class by its name, or of the user's own by its import path.

    Raises:
        ConfigError: it cannot be imported, or is no subclass of `base`.
    """
    if name in known:
        return known[name]
    found = imported(name, key)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"`{key}`: {name} has to be a class derived from {base.__module__}.{base.__name__}", key)
    return found  # type: ignore[return-value]
