"""Reading a configuration: YAML file + `key=value` overrides -> a checked `ExperimentConfig`.

Everything a user can get wrong is refused here, by name and place, before any weight is loaded.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import OmegaConf

from mgsr.config.carried_over import refuse_carried_over
from mgsr.config.checks import check_together
from mgsr.config.layers import NAMED, layer_of_tree, read_layer, read_words
from mgsr.config.origin import COMMAND_LINE, Layer, Said, placed, remember
from mgsr.config.schema import ExperimentConfig
from mgsr.config.shipped import located
from mgsr.config.values import check_values
from mgsr.config.yaml_reader import at
from mgsr.runtime.errors import ConfigError

Section = TypeVar("Section")


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The experiment of a YAML file with `key=value` overrides on top.

    Args:
        path: YAML file, or the name of a shipped one; None starts from the defaults.
        overrides: ``section.key=value`` strings, values in YAML.

    Raises:
        ConfigError: a missing file, broken YAML, an unknown key (the nearest known one is named), a value of
            the wrong type, out of range, or that contradicts another.
    """
    base = {} if path is None else read_layer(located(path, "config"))
    layer = merged(base, *read_words(overrides))
    keep_inside(layer)
    refuse_carried_over(base, layer)
    return config_of(layer)


def unfinished(overrides: Sequence[str] = (), tree: Mapping[str, Any] | None = None) -> ExperimentConfig:
    """The defaults with a mapping and overrides on top, which need not name any model.

    Raises:
        ConfigError: as `load_config`, but for contradictions.
    """
    return _valued(merged(layer_of_tree(tree or {}), *read_words(overrides)))


def config_from_tree(tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> ExperimentConfig:
    """As `load_config`, from a mapping that is in memory.

    Raises:
        ConfigError: as `load_config`.
    """
    return config_of(merged(layer_of_tree(tree), *read_words(overrides)))


def merged(*layers: Layer) -> Layer:
    """What several sources say together: a later one wins; further test sets are added, and `{}` clears them."""
    found: Layer = {}
    for layer in layers:
        for name, said in layer.items():
            if name in NAMED and said.value and name in found:
                said = Said({**found[name].value, **said.value}, said.place)
            found[name] = said
    return found


def keep_inside(layer: Layer) -> None:
    """See that a file keeps its runs below the working folder; only a command may name another place.

    A configuration may come from a stranger, and must not say where on this machine is written.

    Raises:
        ConfigError: its `run_root` is no folder below the working folder.
    """
    said = layer.get("run_root", Said("runs", COMMAND_LINE))
    root, place = said.value, said.place
    if place == COMMAND_LINE:
        return
    if Path(root).is_absolute() or ".." in Path(root).parts or root.startswith("~"):
        raise ConfigError(
            f"{at(place)}`run_root` is {root!r}: a file names a folder below the working folder; "
            f"another place goes on the command line, run_root={root}"
        )


def config_of(layer: Layer) -> ExperimentConfig:
    """The checked configuration that a layer gives; it remembers the places of its values.

    Raises:
        ConfigError: a value out of range, or values that contradict one another.
    """
    config = _valued(layer)
    with placed(config):
        check_together(config)
    return config


def _valued(layer: Layer) -> ExperimentConfig:
    config = filled(ExperimentConfig, {name: said.value for name, said in layer.items()})
    remember(config, layer)
    with placed(config):
        check_values(config)
        _map_paths(config, _at_home)
    return config


def filled(cls: type[Section], values: Mapping[str, Any], prefix: str = "") -> Section:
    """A section of the schema with these values, by dotted name, and defaults; each is held to its type."""
    section = copy.deepcopy(_structured(cast(Any, cls)))
    for name, value in values.items():
        OmegaConf.update(section, name.removeprefix(prefix), value, merge=False)
    return cast(Section, OmegaConf.to_object(section))


@cache
def _structured(cls: Any) -> Any:
    """To be copied: building it takes longer."""
    return OmegaConf.structured(cls)


def with_absolute_paths(config: ExperimentConfig) -> ExperimentConfig:
    """A copy whose files and folders are found from every folder: relative paths that exist become absolute.

    `run_root` stays as it is: a run that is taken up says where it lies.
    """
    config = copy.deepcopy(config)
    root = config.run_root
    _map_paths(config, _absolute)
    config.run_root = root
    return config


def flat_tree(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"scrg": {"passes": 3}}` or `{"scrg.passes": 3}` as `{"scrg.passes": 3}`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and f"{prefix}{name}" not in NAMED:
            flat.update(flat_tree(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def dump(config: ExperimentConfig) -> str:
    """The whole configuration as YAML, ready to be read again."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def fingerprint(*parts: Any) -> str:
    """Twelve hexadecimal digits that change when any of the JSON-able parts changes."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"cannot fingerprint a {type(value).__name__}")


def _map_paths(config: Any, change: Callable[[str], str], prefix: str = "") -> None:
    for item in fields(config):
        value, name = getattr(config, item.name), f"{prefix}{item.name}"
        if is_dataclass(value):
            _map_paths(value, change, f"{name}.")
        elif item.metadata["path"]:
            try:
                named = isinstance(value, dict)
                found = {key: change(path) for key, path in value.items()} if named else change(value)
            except RuntimeError:
                raise ConfigError(
                    f"`{name}` is {value!r}: there is no such user; write the path in full", name
                ) from None
            setattr(config, item.name, found)


def _at_home(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path


def _absolute(path: str) -> str:
    is_word = path in ("", "synthetic", "init", "teacher") or path.startswith("package:")
    return path if is_word or not Path(path).exists() else str(Path(path).absolute())
