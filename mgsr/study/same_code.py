"""Which versions of the code give the same numbers, as shown by repeating runs: `<studies>/same_code.json`.

Results of different code are never mixed. Code changes all the time, though, mostly without changing a number;
what has been shown to be equal, bit by bit, counts as the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgsr.runtime.errors import DataError
from mgsr.runtime.files import write_atomically

NAME = "same_code.json"


def read_groups(root: Path) -> list[dict[str, Any]]:
    """What was shown: `codes`, all of which give the same numbers, and `shown`, by which runs.

    Raises:
        DataError: the file is something else.
    """
    path = root / NAME
    if not path.exists():
        return []
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))
        well = all(isinstance(group["codes"], list) and isinstance(group["shown"], list) for group in groups)
    except (OSError, ValueError, KeyError, TypeError):
        well = False
    if not well:
        raise DataError(f"{path}: not a list of groups of code; restore it")
    return groups


def canonical(code: str, groups: list[dict[str, Any]]) -> str:
    """The first code of the group that this one belongs to, or itself.

    >>> canonical("b", [{"codes": ["a", "b"], "shown": []}]), canonical("c", [])
    ('a', 'c')
    """
    return next((str(group["codes"][0]) for group in groups if code in group["codes"]), code)


def same_hashes(a: Mapping[str, str], b: Mapping[str, str], groups: list[dict[str, Any]]) -> list[str]:
    """Names of the hashes in which two runs differ, code that gives the same numbers counted as the same."""

    def value(hashes: Mapping[str, str], name: str) -> str | None:
        found = hashes.get(name)
        return canonical(found, groups) if name == "code" and found else found

    return [name for name in a if value(a, name) != value(b, name)]


def add_shown(root: Path, old: str, new: str, shown: Mapping[str, Any]) -> None:
    """Note that the code `new` gives the numbers of `old`."""
    groups = read_groups(root)
    group = next((g for g in groups if old in g["codes"] or new in g["codes"]), None)
    if group is None:
        group = {"codes": [old], "shown": []}
        groups.append(group)
    group["codes"] = list(dict.fromkeys([*group["codes"], old, new]))
    group["shown"].append(dict(shown))
    write_atomically(root / NAME, json.dumps(groups, indent=2) + "\n")
