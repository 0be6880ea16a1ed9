"""A procedural instruction set: small enough for a tiny model on a CPU, real enough English for phrases.

Eleven families of tasks over some six hundred words, from exact (sums, translation) to wide open (describe),
every row drawn from a seed. Every row knows whether an answer is right. `families` has one function per family of
tasks, `answers` the kinds of right answers, `words` the vocabulary and the draws from it, and this file the rows:
which family comes next, and which split a prompt belongs to.

Nothing here reads a file or knows a tokenizer. A change of a word or of a draw changes every number of the demo
and of the studies, and what the shipped teacher knows.

Begin with `generate_rows`; a new family goes into `families`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from mgsr.data.rows import Row
from mgsr.data.synthetic.families import FAMILIES, Task, draw
from mgsr.runtime.errors import ConfigError, DataError, did_you_mean

__all__ = ["FAMILIES", "REFERENCES", "SPLITS", "generate_rows"]

SPLITS = ("teacher", "train", "dev", "test")
# right answers that a dev or test row of a wide family carries
REFERENCES = 6
# Of all prompts, in hundredths, by the hash of their text; teacher and train share one bucket.
_BUCKETS = {"dev": range(0, 10), "test": range(10, 20), "teacher": range(20, 100), "train": range(20, 100)}
_PATIENCE = {"dev": 5000, "test": 5000, "teacher": 20, "train": 20}
"""Draws in search of a new prompt; after that teacher and train take one again, with an answer drawn anew."""


def generate_rows(split: str, count: int, seed: int = 0, families: Sequence[str] = ()) -> list[Row]:
    """The first `count` rows of a split: the families in turn, no prompt of dev or test twice.

    A prompt belongs to dev, to test or to the rest by a hash of its text alone, whatever the seed. So no
    prompt of dev or test is ever in teacher or train; these two are drawn apart, from the same rest, and may
    overlap. A smaller count gives a prefix of a larger one. Rows of teacher and train have one reference,
    those of dev and test up to `REFERENCES` where several answers are right; `category` is the family.

    Args:
        families: draw from these alone (empty: all).

    Raises:
        ConfigError: an unknown family.
        ValueError: an unknown split, or a negative count.
        DataError: a family of dev or test has no more new prompts, of which there are several hundred each.

    >>> row = generate_rows("train", 1)[0]
    >>> row.category, row.is_right is not None and row.is_right(row.output)
    ('steps', True)
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; take one of {', '.join(SPLITS)}{did_you_mean(split, SPLITS)}")
    if count < 0:
        raise ValueError(f"count must not be negative: {count}")
    unknown = next((family for family in families if family not in FAMILIES), None)
    if unknown is not None:
        raise ConfigError(
            f"`data.synthetic.families`: no family {unknown}; it takes {', '.join(FAMILIES)}"
            f"{did_you_mean(unknown, FAMILIES)}",
            "data.synthetic.families",
        )
    generators = {family: random.Random(f"{seed}/{split}/{family}") for family in FAMILIES}
    families = tuple(families or FAMILIES)
    seen: set[tuple[str, str]] = set()
    rows = []
    for number in range(count):
        family = families[number % len(families)]
        generator = generators[family]
        task = _new_task(family, split, generator, seen)
        wanted = REFERENCES if task.answer.wide and split in ("dev", "test") else 1
        rows.append(
            Row(
                id=number,
                instruction=task.instruction,
                input=task.input,
                references=task.answers(wanted, generator),
                category=family,
                where=f"synthetic[{split}]:{number + 1}",
                is_right=task.answer,
            )
        )
    return rows


def _new_task(family: str, split: str, generator: random.Random, seen: set[tuple[str, str]]) -> Task:
    known: Task | None = None
    for _ in range(_PATIENCE[split]):
        task = draw(family, generator)
        prompt = (task.instruction, task.input)
        if _bucket(prompt) not in _BUCKETS[split]:
            continue
        if prompt not in seen:
            seen.add(prompt)
            return task
        known = task
    if known is not None and split in ("teacher", "train"):
        return known
    raise DataError(
        f"synthetic[{split}]: the family `{family}` has no new prompt after {len(seen)} rows; ask for fewer"
    )


def _bucket(prompt: tuple[str, str]) -> int:
    digest = hashlib.blake2b("\n".join(prompt).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100
