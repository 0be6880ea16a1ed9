"""Bytes as people write and read them."""

from __future__ import annotations

import re

from mgsr.runtime.errors import ConfigError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def readable(count: float) -> str:
    """Bytes for people.

    >>> readable(3 * 2**30), readable(900)
    ('3.00 GiB', '900 B')
    """
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count:.0f} B"


def parse_size(text: str) -> int:
    """Bytes of `80GB`, `24GiB` or a plain number.

    Raises:
        ConfigError: it is none of these.

    >>> parse_size("80GB"), parse_size("1.5 GiB")
    (80000000000, 1610612736)
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in UNITS:
        raise ConfigError(f"`{text}` is no size; write 80GB or 24GiB")
    return int(float(found[1]) * UNITS[found[2].upper()])
