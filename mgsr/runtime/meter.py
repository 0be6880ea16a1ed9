"""What a run costs: seconds and tokens by phase, and what each model computed, from which FLOPs follow.

Tokens are those that pass through a model's forward, prompts included, once per model. Where the student's hidden
states were recorded while it wrote, scoring counts the teacher's forward alone.

A model counts its own work, padding aside, so that a figure depends on neither batches nor machine.
`mgsr.evaluation.flops` makes FLOPs of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

PHASES = ("generation", "scoring", "training", "validation")


@dataclass
class Work:
    """What a model computed.

    Attributes:
        tokens: that went through its layers.
        attended: summed over these tokens, the positions each was compared with: T^2 of a text that is read whole.
        rows: positions whose logits were made.
    """

    tokens: int = 0
    attended: int = 0
    rows: int = 0

    def read(self, length: int, rows: int) -> None:
        """A whole text, and logits at some of its positions."""
        self.tokens += length
        self.attended += length**2
        self.rows += rows

    def write(self, context: int, new: int) -> None:
        """Tokens written one by one behind a text that is in the cache, whose last logits exist.

        >>> work = Work()
        >>> work.write(context=10, new=3)
        >>> work
        Work(tokens=2, attended=23, rows=2)
        """
        steps = max(0, new - 1)
        self.tokens += steps
        self.attended += steps * context + new * steps // 2
        self.rows += steps

    def answer(self, length: int, new: int, *, cached: bool = False) -> None:
        """A text that is read, of which only the last token where the others are `cached`, and what follows it."""
        if cached:
            self.write(length - 1, 2)
        else:
            self.read(length, 1)
        self.write(length, new)

    def named(self, prefix: str) -> dict[str, float]:
        """As costs: `<prefix>_tokens` and so on."""
        return {f"{prefix}_{name}": value for name, value in vars(self).items()}

    @classmethod
    def of(cls, costs: Mapping[str, float], prefix: str) -> Work:
        """The work that `named` has put into costs; none where they say nothing of it."""
        return cls(*(int(costs.get(f"{prefix}_{each.name}", 0)) for each in fields(cls)))


@dataclass
class Spent:
    """What a phase has read so far; whoever is inside may add to it."""

    tokens: int = 0


@dataclass
class Meter:
    """Seconds and tokens by phase, and work by model.

    >>> meter = Meter()
    >>> with meter.phase("generation", tokens=12) as spent:
    ...     spent.tokens += 3
    >>> meter.totals()["tokens_generation"]
    15
    """

    seconds: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    work: dict[str, Work] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str, tokens: int = 0) -> Iterator[Spent]:
        """Everything inside belongs to the phase."""
        start, spent = time.monotonic(), Spent(tokens)
        try:
            yield spent
        finally:
            self.add(name, time.monotonic() - start, spent.tokens)

    def add(self, name: str, seconds: float = 0.0, tokens: int = 0) -> None:
        """Count seconds and tokens for a phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.tokens[name] = self.tokens.get(name, 0) + tokens

    def totals(self) -> dict[str, float]:
        """`seconds_<phase>`, `tokens_<phase>`, and `<name>_tokens`, `_attended` and `_rows` of all work."""
        return {
            **{f"seconds_{name}": value for name, value in self.seconds.items()},
            **{f"tokens_{name}": value for name, value in self.tokens.items()},
            **added(*(work.named(name) for name, work in self.work.items())),
        }


def added(*parts: Mapping[str, Any]) -> dict[str, float]:
    """Several totals added up, name by name.

    >>> added({"seconds_scoring": 1.0}, {"seconds_scoring": 2.0, "tokens_scoring": 5})
    {'seconds_scoring': 3.0, 'tokens_scoring': 5}
    """
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return total


def overall(totals: Mapping[str, float], unit: str) -> float:
    """All phases but the dev set's together: it is looked at for the record, not for the student's sake.

    Args:
        unit: "seconds" or "tokens".
    """
    return sum(totals.get(f"{unit}_{name}", 0) for name in PHASES if name != "validation")
