"""What a run costs: seconds and tokens of writing text, of scoring it, of training and of looking at the dev set.

Tokens are those that pass through a model's forward, prompts included, once per model. Where the student's hidden
states were recorded while it wrote, scoring counts the teacher's forward alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

PHASES = ("generation", "scoring", "training", "validation")


@dataclass
class Spent:
    """What a phase has read so far; whoever is inside may add to it."""

    tokens: int = 0


@dataclass
class Meter:
    """Seconds and tokens by phase.

    >>> meter = Meter()
    >>> with meter.phase("generation", tokens=12) as spent:
    ...     spent.tokens += 3
    >>> meter.totals()["tokens_generation"]
    15
    """

    seconds: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

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
        """`seconds_<phase>` and `tokens_<phase>`."""
        return {
            **{f"seconds_{name}": value for name, value in self.seconds.items()},
            **{f"tokens_{name}": value for name, value in self.tokens.items()},
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
