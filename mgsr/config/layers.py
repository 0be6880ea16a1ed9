"""What each source of a configuration says: a file, an arm of a study, or the command line.

A value is read by the type of its key: a key of words keeps what was written, and a number is what a reader sees.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import yaml

from mgsr.config.keys import types_of
from mgsr.config.origin import COMMAND_LINE, Layer, Said
from mgsr.config.schema import ExperimentConfig
from mgsr.config.yaml_reader import YAML, at, compose, line_of, pairs_of, read_yaml, repeated_key, shown, text_of
from mgsr.runtime.errors import ConfigError, did_you_mean

NAMED = ("data.test_sets", "objective.divergence_options", "objective.written_options")
"""The mappings whose names are the user's own."""

LATER = "!later"
"""The tag of a value that is filled in later, and read again then."""

LONGEST_NUMBER = 40
"""Characters; what is longer is none that a key takes."""

_TYPES = types_of(ExperimentConfig)
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_INFINITE = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}


def read_layer(path: str | Path) -> Layer:
    """What a configuration file says.

    Raises:
        ConfigError: as `read_yaml`, an unknown key (the nearest known one is named), or a value of the wrong type.
    """
    return layer_of(read_yaml(path), lambda node: f"{path}:{line_of(node)}")


def read_words(overrides: Sequence[str]) -> list[Layer]:
    """What `section.key=value` words say, one after the other; values in YAML, words as they are written.

    Raises:
        ConfigError: no key=value, no YAML, an unknown key, or a value of the wrong type.

    >>> [{name: said.value for name, said in layer.items()} for layer in read_words(["scrg.passes=3", "arm=on"])]
    [{'scrg.passes': 3}, {'arm': 'on'}]
    """
    layers = []
    for override in overrides:
        name, equals, value = (part.strip() for part in override.partition("="))
        if not equals or not name:
            raise ConfigError(f"{override!r} is not an override; write key=value, as in scrg.passes=3")
        named = yaml.ScalarNode(f"{YAML}str", name)
        top = yaml.MappingNode(f"{YAML}map", [(named, _word(override, name, value))])
        layers.append(layer_of(top, lambda _: COMMAND_LINE))
    return layers


def layer_of_tree(tree: Mapping[str, Any]) -> Layer:
    """What a mapping that is in memory says; its places are not known.

    Raises:
        ConfigError: as `read_layer`.
    """
    try:
        node = yaml.representer.SafeRepresenter().represent_data(tree)
    except (yaml.YAMLError, RecursionError):
        raise ConfigError("a configuration is made of words, numbers, lists and mappings") from None
    return layer_of(node, lambda _: "")


def layer_of(top: yaml.MappingNode, place_of: Callable[[yaml.Node], str]) -> Layer:
    """What a mapping says, nested or with dotted keys.

    Raises:
        ConfigError: an unknown key, one that is given twice, or a value of the wrong type.
    """
    layer: Layer = {}
    try:
        for name, node, place in _leaves(top, "", place_of):
            if name in layer and (name not in NAMED or layer[name].value.keys() & node.keys()):
                raise ConfigError(f"{at(place)}`{name}` is given twice, dotted and in a section; leave one out")
            layer[name] = Said({**layer[name].value, **node} if name in layer else node, place)
    except RecursionError:
        raise ConfigError(f"{at(place_of(top))}a value that holds itself; write it out") from None
    return layer


def _word(override: str, name: str, text: str) -> yaml.Node:
    """The value of a word of the command line; what a key of words is given needs no quotes."""
    kind = _TYPES.get(name, str if name.startswith(f"{NAMED[0]}.") else None)
    try:
        node = compose(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        if kind is not str:
            raise ConfigError(
                f"{COMMAND_LINE}: {override!r}: the value does not parse as YAML; quote it"
            ) from None
        node = None
    if kind is str and not isinstance(node, yaml.CollectionNode) and getattr(node, "style", None) is None:
        null = node is not None and node.value == text and node.tag == f"{YAML}null"
        return yaml.ScalarNode(f"{YAML}{'null' if null else 'str'}", text)
    if node is not None and (repeated := repeated_key(node)) is not None:
        raise ConfigError(f"{COMMAND_LINE}: {override!r}: `{repeated[0]}` stands twice")
    return yaml.ScalarNode(f"{YAML}null", "") if node is None else node


def _leaves(
    top: yaml.MappingNode, prefix: str, place_of: Callable[[yaml.Node], str]
) -> Iterator[tuple[str, Any, str]]:
    for name_node, node in pairs_of(top):
        place = place_of(name_node)
        full = prefix + text_of(name_node, place)
        kind = _TYPES.get(full)
        if kind is not None and is_dataclass(kind):
            if not isinstance(node, yaml.MappingNode):
                what = f"`{full}` is a section with keys of its own, not {shown(node)}"
                raise ConfigError(at(place) + what)
            yield from _leaves(node, f"{full}.", place_of)
        elif kind is not None:
            yield full, _value(node, kind, full, place), place
        elif named := next((each for each in NAMED if full.startswith(f"{each}.")), None):
            (kind,) = typing.get_args(_TYPES[named])[1:]
            yield named, {full.removeprefix(f"{named}."): _value(node, kind, full, place)}, place
        else:
            raise ConfigError(f"{at(place)}{_unknown(full)}")


def _unknown(full: str) -> str:
    parts = full.split(".")
    for length in range(len(parts) - 1, -1, -1):
        parent = ".".join(parts[:length])
        if parent in _TYPES and not is_dataclass(_TYPES[parent]):
            return f"`{parent}` is a single value, not a section"
        if parent in _TYPES or not parent:
            break
    below = f"{parent}." if parent else ""
    known = [name.removeprefix(below) for name in _TYPES if name.startswith(below)]
    named = full if full.isprintable() else repr(full)
    elsewhere = [name for name in _TYPES if name.rpartition(".")[2] == parts[-1]]
    if elsewhere:
        elsewhere.sort(key=lambda name: SequenceMatcher(None, full, name).ratio(), reverse=True)
        return f"unknown key `{named}`; did you mean `{'` or `'.join(elsewhere[:3])}`?"
    return f"unknown key `{named}`" + did_you_mean(parts[length], [name for name in known if "." not in name])


def _value(node: yaml.Node, kind: Any, name: str, place: str) -> Any:
    """What a node says, as its key takes it."""
    plain = [each for each in typing.get_args(kind) or (kind,) if each is not types.NoneType]
    origin = typing.get_origin(kind)
    if node.tag == LATER:
        return node.value
    if node.tag == f"{YAML}null" and isinstance(node, yaml.ScalarNode):
        if len(plain) < len(typing.get_args(kind)):
            return None
        if not node.value and kind is str:
            return ""
        raise ConfigError(f"{at(place)}`{name}` is empty; give it a value" + (", or ''" if kind is str else ""))
    if origin is types.UnionType and len(plain) == 1:
        return _value(node, plain[0], name, place)
    if origin is dict:
        if not isinstance(node, yaml.MappingNode):
            example = "{vicuna: vicuna.jsonl}" if plain[1] is str else "{alpha: 0.2, beta: 0.7}"
            raise ConfigError(f"{at(place)}`{name}` takes names and values, as in {example}")
        return {
            (own := text_of(key, place)): _value(each, plain[1], f"{name}.{own}", place)
            for key, each in pairs_of(node)
        }
    if kind is Any:
        return _argument(node, name, place)
    if origin is list:
        if not isinstance(node, yaml.SequenceNode):
            raise ConfigError(f"{at(place)}`{name}` takes a list, as in [a, b]")
        return [_value(each, plain[0], name, place) for each in node.value]
    text = text_of(node, place, f"`{name}`")
    try:
        return _scalar(text, plain)
    except ValueError:
        takes = {bool: "true or false", int: "a whole number", float: "a number"}[plain[0]]
        raise ConfigError(f"{at(place)}`{name}` is {text[:LONGEST_NUMBER]!r}; it takes {takes}") from None
    except LookupError:
        raise ConfigError(f"{at(place)}`{name}` is {text!r}: write the value itself, not a reference") from None


def _argument(node: yaml.Node, name: str, place: str) -> Any:
    """A number, a truth value, a word, or a list of two numbers."""
    if isinstance(node, yaml.SequenceNode):
        pair = _value(node, list[float], name, place)
        if len(pair) != 2:
            raise ConfigError(f"{at(place)}`{name}` takes one value, or a pair such as [0.8, 0.0]")
        return pair
    word = _value(node, float | str, name, place)
    if isinstance(word, float) and re.fullmatch(r"[-+]?[0-9]+", node.value):
        return int(word)
    return _BOOLEANS.get(word.lower(), word) if isinstance(word, str) else word


def _scalar(text: str, kinds: Sequence[type]) -> Any:
    if "${" in text or text == "???":
        raise LookupError
    if str in kinds:
        if float not in kinds:
            return text
        try:
            return _number(text)
        except ValueError:
            return text
    if bool in kinds:
        if text.lower() not in _BOOLEANS:
            raise ValueError
        return _BOOLEANS[text.lower()]
    if len(text) > LONGEST_NUMBER:
        raise ValueError
    if float in kinds:
        return _number(text)
    try:
        # refuses 010, and takes 0x10
        return int(text, 0)
    except ValueError:
        number = _number(text)
        if not number.is_integer():
            raise
        return int(number)


def _number(text: str) -> float:
    if re.match(r"[-+]?0\d", text):
        # YAML reads 010 as 8
        raise ValueError
    return float(_INFINITE.get(text.lower(), text))
