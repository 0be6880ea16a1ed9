"""Keys that stand twice in one mapping of a YAML file."""

from __future__ import annotations

import yaml


def repeated_key(top: yaml.Node) -> tuple[str, int, int] | None:
    """Name, line and first line of one; None where there is none. YAML itself takes the last without a word.

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
