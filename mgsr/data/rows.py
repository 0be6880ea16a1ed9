"""A row of data, a prompt with its right answers; and the fixed rule by which rows are split."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mgsr.runtime.errors import DataError
from mgsr.runtime.wording import plural

ALL = "all"
"""The kind of rows whose source names none."""


class Message(NamedTuple):
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One instruction with its right answers, exactly as they stand in the source.

    Attributes:
        id: place of the row in its source, counted from 0; keys the random draws of the row.
        instruction: what is asked; never blank.
        input: further context; may be empty.
        references: right answers, at least one; the first is the one to train on.
        category: kind of task, empty where the source names none.
        where: ``file:line``, for messages.
        messages: all turns before the answer where the source is a conversation; `instruction` is then the text
            of the last user's turn, and `input` is empty.
        is_right: tells whether a text answers the row; None: only references are known.
    """

    id: int
    instruction: str
    input: str
    references: tuple[str, ...]
    category: str = ""
    where: str = ""
    messages: tuple[Message, ...] = ()
    is_right: Callable[[str], bool] | None = field(default=None, compare=False)

    @property
    def output(self) -> str:
        """The answer to train on: the first reference."""
        return self.references[0]

    @property
    def asked(self) -> tuple[str, ...]:
        """What is asked, spaces around it aside: rows that are alike in it differ in their answers alone."""
        if len(self.messages) > 1:
            return tuple(f"{turn.role}: {turn.content.strip()}" for turn in self.messages)
        return self.instruction.strip(), self.input.strip()

    @property
    def source(self) -> str:
        """The file, or the split of a hub data set, that the row stands in."""
        return self.where.rpartition(":")[0]


def split_rows(rows: Sequence[Row], *, dev: int, test: int, seed: int = 0, same: str = "") -> dict[str, list[Row]]:
    """Split by a seeded shuffle into ``train``, ``dev`` and ``test``; nothing else decides who goes where.

    Rows that ask the same stay together, so nothing that is asked in one split is asked in another; a group that
    would overfill a split is left to the next one. The rows keep their ids and, within a split, their order in the
    source. The draw uses `random.Random.random` alone, whose stream Python keeps from version to version.

    Args:
        same: why files that were given are none of their own, for messages.

    Raises:
        ValueError: a negative size.
        DataError: no row would be left to train on, or so many rows ask the same that a split stays empty.

    >>> rows = [Row(i, f"Say {i}.", "", ("It.",)) for i in range(6)]
    >>> {name: [row.id for row in part] for name, part in split_rows(rows, dev=2, test=1).items()}
    {'train': [0, 1, 4], 'dev': [3, 5], 'test': [2]}
    """
    if dev < 0 or test < 0:
        raise ValueError(f"split sizes must not be negative: dev={dev}, test={test}")
    source = rows[0].source if rows else ""
    begin = f"{source}: " if source else ""
    files = f"data.dev=FILE and data.test=FILE{same}"
    if dev + test >= len(rows):
        needed = ", ".join(plural(size, f"{name} row") for name, size in (("dev", dev), ("test", test)) if size)
        raise DataError(
            f"{begin}{plural(len(rows), 'row')} {'is' if len(rows) == 1 else 'are'} too few for {needed} and one "
            f"row to train on; give more rows, or {files}"
        )
    generator = random.Random(seed)
    keys = [generator.random() for _ in rows]
    groups: dict[tuple[str, ...], list[int]] = {}
    for index in sorted(range(len(rows)), key=lambda index: (keys[index], index)):
        groups.setdefault(rows[index].asked, []).append(index)
    room, places = {"dev": dev, "test": test}, {"train": list[int](), "dev": [], "test": []}
    for group in groups.values():
        name = next((name for name in room if len(places[name]) + len(group) <= room[name]), "train")
        places[name] += group
    for name, size in {**room, "train": 1}.items():
        if size and not places[name]:
            raise DataError(f"{begin}too many rows ask the same to cut {name} rows; give {files}")
    return {name: [rows[index] for index in sorted(place)] for name, place in places.items()}
