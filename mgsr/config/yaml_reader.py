"""Reading YAML without losing what was written: text -> nodes, which keep their words and their lines.

YAML takes `on` for true, `010` for 8, `12:30` for 750 and `1.10` for 1.1, before anybody can say what was meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mgsr.runtime.errors import ConfigError, did_you_mean
from mgsr.runtime.files import read_regular

YAML = "tag:yaml.org,2002:"
_NAMES = ("null", "bool", "int", "float", "str", "seq", "map", "timestamp", "merge", "value")
_TAGS = {YAML + name for name in _NAMES}


def read_yaml(path: str | Path) -> yaml.MappingNode:
    """The mapping at the top of a YAML file; an empty file gives an empty one.

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
        node = compose(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it does not parse"
        raise ConfigError(f"{path}{line}: not valid YAML: {problem}") from None
    if node is None:
        return yaml.MappingNode(f"{YAML}map", [])
    repeated = repeated_key(node)
    if repeated is not None:
        twice, again, first = repeated
        raise ConfigError(f"{path}:{again}: `{twice}` stands twice (line {first} first)")
    if not isinstance(node, yaml.MappingNode):
        kind = "list" if isinstance(node, yaml.SequenceNode) else "word"
        raise ConfigError(f"{path}:1: a config is a mapping of keys to values, not a {kind}")
    return node


def line_of(node: yaml.Node) -> int:
    """The line of a file that a node begins on, from 1."""
    return node.start_mark.line + 1


def pairs_of(node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
    """Its names and values, with those of `<<`; of a name that comes twice so, the last."""
    yaml.constructor.SafeConstructor().flatten_mapping(node)
    pairs = {(pair[0].value if isinstance(pair[0], yaml.ScalarNode) else id(pair[0])): pair for pair in node.value}
    return list(pairs.values())


def words_of(node: yaml.Node, place: str) -> Any:
    """A node as mappings and lists of the words that are written; None where nothing is.

    Raises:
        ConfigError: a key that is no word, or a value that holds itself.
    """
    made: dict[int, Any] = {}

    def words(node: yaml.Node) -> Any:
        if id(node) not in made:
            made[id(node)] = made
            if isinstance(node, yaml.MappingNode):
                made[id(node)] = {text_of(name, place): words(value) for name, value in pairs_of(node)}
            elif isinstance(node, yaml.SequenceNode):
                made[id(node)] = [words(value) for value in node.value]
            else:
                made[id(node)] = None if node.tag == f"{YAML}null" else text_of(node, place)
        if made[id(node)] is made:
            raise ConfigError(f"{at(place)}a value that holds itself; write it out")
        return made[id(node)]

    return words(node)


def repeated_key(top: yaml.Node) -> tuple[str, int, int] | None:
    """A key that stands twice in one mapping (YAML takes the last): its name, its line and the first one; or None.

    >>> repeated_key(yaml.compose("a: {b: 1,\\n  b: 2}", Loader=yaml.SafeLoader))
    ('b', 2, 1)
    """
    for node in nodes_of(top):
        seen: dict[str, int] = {}
        for name, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(name, yaml.ScalarNode):
                if name.value in seen:
                    return name.value, line_of(name), seen[name.value]
                seen[name.value] = line_of(name)
    return None


def nodes_of(top: yaml.Node) -> Iterator[yaml.Node]:
    """Every node once: an anchor may be meant many times, and by what it holds itself."""
    waiting, known = [top], {id(top)}
    while waiting:
        node = waiting.pop()
        yield node
        inner: list[yaml.Node] = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            inner = [each for pair in node.value for each in pair]
        waiting += [each for each in inner if id(each) not in known]
        known.update(map(id, inner))


def compose(text: str) -> yaml.Node | None:
    """The nodes of a text; None where it holds nothing.

    Raises:
        yaml.YAMLError: it is no YAML, or has a tag for more than words, numbers, lists and mappings.
        ValueError, RecursionError: from PyYAML, for text that it stumbles over.
    """
    top = yaml.compose(text, Loader=yaml.SafeLoader)
    for node in () if top is None else nodes_of(top):
        if node.tag not in _TAGS:
            raise yaml.MarkedYAMLError(problem=f"the tag {node.tag!r} is not taken", problem_mark=node.start_mark)
    return top


def text_of(node: yaml.Node, place: str, what: str = "a key") -> str:
    """What is written in a node.

    Raises:
        ConfigError: it is a list or a mapping, or holds what no file name and no UTF-8 can.
    """
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{at(place)}{what} is a single value, not a {shown(node)}")
    if "\0" in node.value or re.search("[\ud800-\udfff]", node.value):
        raise ConfigError(f"{at(place)}{what} is {node.value!r}, which is no text; write it anew")
    return str(node.value)


def shown(node: yaml.Node) -> str:
    """A node as messages name it."""
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value)
    return "list" if isinstance(node, yaml.SequenceNode) else "section"


def at(place: str) -> str:
    """The beginning of a message about what stands there."""
    return f"{place}: " if place else ""
