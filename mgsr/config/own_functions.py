"""What a configuration names by import path, or by a name of the project."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mgsr.config.schema import ExperimentConfig
from mgsr.config.schema_method import DIVERGENCE_NAMES, ObjectiveConfig
from mgsr.runtime.errors import ConfigError
from mgsr.runtime.import_path import imported

Class = TypeVar("Class", bound=type)


def divergence_of(objective: ObjectiveConfig) -> str | Callable[..., Any]:
    """The token-level divergence, as `mgsr.losses.tiled_objective` takes it; of no weight, one of ours.

    Raises:
        ConfigError: a function of the user's own cannot be imported.
    """
    if not objective.w_dac and objective.divergence != "dac_kl":
        return "forward_kl"
    return _named(objective.divergence, "objective.divergence")


def written_divergence_of(objective: ObjectiveConfig) -> str | Callable[..., Any] | None:
    """The divergence on written text; None where it is the same, or has no weight.

    Raises:
        ConfigError: as `divergence_of`.
    """
    name = objective.written_divergence
    return _named(name, "objective.written_divergence") if name and objective.w_dac else None


def _named(name: str, key: str) -> str | Callable[..., Any]:
    return name if name in DIVERGENCE_NAMES else imported(name, key)


def own_code(config: ExperimentConfig) -> dict[str, str]:
    """The keys in use that name functions or classes of the user's own -> fingerprint of the file of each.

    Raises:
        ConfigError: one cannot be imported.
    """
    objective, scrg = config.objective, config.scrg
    names = {
        "objective.divergence": (objective.divergence, objective.w_dac),
        "objective.written_divergence": (objective.written_divergence, objective.w_dac),
        "scrg.text": (scrg.text, scrg.enabled),
    }
    found = {}
    for key, (name, in_use) in names.items():
        if in_use and ":" in name:
            module = sys.modules.get(getattr(imported(name, key), "__module__", ""))
            file = Path(getattr(module, "__file__", None) or "")
            found[key] = hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else ""
    return found


def class_of(name: str, known: Mapping[str, Class], base: Class, key: str) -> Class:
    """A class by its name, or of the user's own by its import path.

    Raises:
        ConfigError: it cannot be imported, is no subclass of `base`, or lacks methods that one needs.
    """
    if name in known:
        return known[name]
    found = imported(name, key)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"`{key}`: {name} has to be a class derived from {base.__module__}.{base.__name__}", key)
    if inspect.isabstract(found):
        lacks = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise ConfigError(f"`{key}`: {name} has to have the method {lacks}", key)
    return found  # type: ignore[return-value]
