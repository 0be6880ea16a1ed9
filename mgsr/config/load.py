"""Reading a configuration: YAML file + `key=value` overrides -> a checked `ExperimentConfig`.

Everything a user can get wrong is refused here, by name, before any weight is loaded.
"""

from __future__ import annotations

import copy
import hashlib
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mgsr.config.checks import check_together
from mgsr.config.keys import walk
from mgsr.config.schema import ExperimentConfig
from mgsr.runtime.errors import ConfigError, did_you_mean
from mgsr.runtime.files import read_regular


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The experiment of a YAML file with `key=value` overrides on top.

    Args:
        path: YAML file; None starts from the defaults.
        overrides: ``section.key=value`` strings, values in YAML.

    Raises:
        ConfigError: a missing file, broken YAML, an unknown key (the nearest known one is named), a value of
            the wrong type, out of range, or that contradicts another.
    """
    tree = read_yaml(path) if path is not None else {}
    keep_inside(tree, overrides, str(path))
    return config_from_tree(tree, overrides, source=str(path) if path is not None else "")


def keep_inside(tree: Mapping[str, Any], overrides: Sequence[str], source: str) -> None:
    """See that a file keeps its runs below the working folder; only a command may name another place.

    A configuration may come from a stranger, and must not say where on this machine is written.

    Raises:
        ConfigError: its `run_root` is no folder below the working folder, and no override names another.
    """
    if any(override.partition("=")[0].strip() == "run_root" for override in overrides):
        return
    root = tree.get("run_root", "runs")
    if isinstance(root, str) and (Path(root).is_absolute() or ".." in Path(root).parts or root.startswith("~")):
        raise ConfigError(
            f"{_where(source, 'run_root')}`run_root` is {root!r}: a file names a folder below the working folder; "
            f"another place goes on the command line, run_root={root}"
        )


def config_from_tree(
    tree: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str = ""
) -> ExperimentConfig:
    """As `load_config`, from a mapping that is read already; `source` names its file in messages.

    Raises:
        ConfigError: as `load_config`.
    """
    merged = _merge(copy.deepcopy(_defaults()), tree, source)
    for override in overrides:
        merged = _merge(merged, parse_override(override), "")
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        name = getattr(error, "full_key", None) or ""
        raise ConfigError(f"{_where(source, name)}`{name}`: {str(error).splitlines()[0]}") from None
    assert isinstance(config, ExperimentConfig)
    for name, value, meta in walk(config):
        _check_value(name, value, meta, source)
    check_together(config)
    return config


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping at the top of a YAML file, read safely; an empty file gives an empty one.

    Raises:
        ConfigError: no such file, no text, no YAML, no mapping, or a key that stands twice.
    """
    path = Path(path)
    try:
        text = read_regular(path).decode("utf-8")
    except FileNotFoundError:
        near = did_you_mean(str(path), [str(p) for p in path.parent.glob("*.yaml")])
        raise ConfigError(f"{path}: no such config file{near}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from None
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it does not parse"
        raise ConfigError(f"{path}{line}: not valid YAML: {problem}") from None
    if tree is None:
        return {}
    repeated = repeated_key(yaml.compose(text, Loader=yaml.SafeLoader))
    if repeated is not None:
        twice, again, first = repeated
        raise ConfigError(f"{path}:{again}: `{twice}` stands twice (line {first} first)")
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}:1: a config is a mapping of keys to values, not a {type(tree).__name__}")
    return tree


def repeated_key(top: yaml.Node) -> tuple[str, int, int] | None:
    """A key that stands twice in one mapping (YAML takes the last): its name, its line and the first one; or None.

    >>> repeated_key(yaml.compose("a: {b: 1,\\n  b: 2}", Loader=yaml.SafeLoader))
    ('b', 2, 1)
    """
    waiting, known = [top], {id(top)}
    while waiting:
        node = waiting.pop()
        inner = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            inner = [value for _, value in node.value]
            seen: dict[str, int] = {}
            for name, _ in node.value:
                line = name.start_mark.line + 1
                if name.value in seen:
                    return name.value, line, seen[name.value]
                seen[name.value] = line
        # an anchor may be meant many times, and by what it holds itself
        waiting += [each for each in inner if id(each) not in known]
        known.update(map(id, inner))
    return None


def parse_override(override: str) -> dict[str, Any]:
    """`a.b=1` as `{"a": {"b": 1}}`, the value read as YAML.

    Raises:
        ConfigError: it is not key=value, or the value is no YAML.

    >>> parse_override("scrg.passes=3")
    {'scrg': {'passes': 3}}
    """
    name, equals, value = override.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"`{override}` is not an override; write key=value, as in scrg.passes=3")
    try:
        parsed: Any = yaml.safe_load(value) if value.strip() else ""
    except yaml.YAMLError:
        raise ConfigError(f"`{override}`: the value does not parse as YAML; quote it") from None
    for part in reversed(name.strip().split(".")):
        parsed = {part: parsed}
    return parsed


def flat_tree(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"scrg": {"passes": 3}}` or `{"scrg.passes": 3}` as `{"scrg.passes": 3}`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and f"{prefix}{name}" not in _FREE_MAPPINGS:
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


_FREE_MAPPINGS = {"data.test_sets"}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"cannot fingerprint a {type(value).__name__}")


@cache
def _defaults() -> Any:
    """The schema as OmegaConf has it, to be copied: building it takes four times as long."""
    return OmegaConf.structured(ExperimentConfig)


def _merge(config: Any, tree: Mapping[str, Any], source: str) -> Any:
    _check_names(tree, ExperimentConfig, "", source)
    try:
        return OmegaConf.unsafe_merge(config, OmegaConf.create(_nested(tree)))
    except OmegaConfBaseException as error:
        name = getattr(error, "full_key", None) or ""
        reason = str(error).splitlines()[0]
        if "is not a ListConfig" in reason:
            reason = "takes a list, as in [a, b]"
        raise ConfigError(f"{_where(source, name)}`{name}`: {reason}") from None


def _nested(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys of a study's arm unfolded: `{"scrg.passes": 1}` -> `{"scrg": {"passes": 1}}`."""
    out: dict[str, Any] = {}
    for name, value in tree.items():
        head, _, rest = str(name).partition(".")
        value = _nested({rest: value}) if rest else (_nested(value) if isinstance(value, Mapping) else value)
        if isinstance(value, dict) and isinstance(out.get(head), dict):
            out[head] = _deep_update(out[head], value)
        else:
            out[head] = value
    return out


def _deep_update(base: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in new.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _deep_update(merged[name], value) if both else value
    return merged


def _check_names(tree: Mapping[str, Any], cls: type, prefix: str, source: str) -> None:
    hints = typing.get_type_hints(cls)
    known = {item.name for item in fields(cls)}
    for name, value in _nested(tree).items():
        full = f"{prefix}{name}"
        if name not in known:
            raise ConfigError(f"{_where(source, full)}unknown key `{full}`{did_you_mean(name, known)}")
        if is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{_where(source, full)}`{full}` is a section with keys of its own, not {value!r}"
                )
            _check_names(value, hints[name], f"{full}.", source)
        elif isinstance(value, Mapping) and full not in _FREE_MAPPINGS:
            raise ConfigError(f"{_where(source, full)}`{full}` is a single value, not a section")
        else:
            _refuse_references(value, full, source)


def _refuse_references(value: Any, name: str, source: str) -> None:
    """OmegaConf would put other keys, environment variables or nothing at all in their place."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for one in inner:
        _refuse_references(one, name, source)
    if isinstance(value, str) and ("${" in value or value == "???"):
        raise ConfigError(f"{_where(source, name)}`{name}` is {value!r}: write the value itself, not a reference")


def _where(source: str, full_key: str) -> str:
    """`file:line: ` of a key, as far as both are known."""
    if not source:
        return ""
    line = _line_of(source, full_key.split("."))
    return f"{source}:{line}: " if line else f"{source}: "


def _line_of(source: str, parts: list[str]) -> int | None:
    try:
        node = yaml.compose(Path(source).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None
    line = None
    while parts and isinstance(node, yaml.MappingNode):
        for name_node, value_node in node.value:
            name_parts = str(name_node.value).split(".")
            if parts[: len(name_parts)] == name_parts:
                line, node, parts = name_node.start_mark.line + 1, value_node, parts[len(name_parts) :]
                break
        else:
            return line
    return line


def _check_value(name: str, value: Any, meta: Mapping[str, Any], source: str) -> None:
    choices, low, high = meta.get("choices"), meta.get("low"), meta.get("high")
    if choices and value not in choices:
        raise ConfigError(
            f"{_where(source, name)}`{name}` is {value!r}; it takes {' | '.join(map(str, choices))}"
            + (did_you_mean(value, choices) if isinstance(value, str) else "")
        )
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # written so that NaN fails too
        if low is not None and not value >= low:
            raise ConfigError(f"{_where(source, name)}`{name}` is {value}; it must be at least {low}")
        if high is not None and not value <= high:
            raise ConfigError(f"{_where(source, name)}`{name}` is {value}; it must be at most {high}")
