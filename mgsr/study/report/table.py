"""What a report's tables are made of: a header, rows of cells, and a sentence on how to read them."""

from __future__ import annotations

import math
from dataclasses import dataclass

MISSING = "not yet run"
NONE = "–"


@dataclass(frozen=True)
class Table:
    title: str
    text: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", self.text, ""] if self.text else [f"## {self.title}", ""]
        lines += ["| " + " | ".join(map(_escaped, self.header)) + " |", "|" + "---|" * len(self.header)]
        lines += ["| " + " | ".join(map(_escaped, row)) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"


def _escaped(cell: str) -> str:
    """Names come from data files: they must not end a cell or begin a tag."""
    return cell.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """A figure, or a dash where there is none.

    >>> number(1.234, 1, sign=True), number(None)
    ('+1.2', '–')
    """
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
