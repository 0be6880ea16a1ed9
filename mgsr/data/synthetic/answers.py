"""What a right answer of the synthetic set is: each kind writes one, and tells whether a text is one.

Case, spaces and a full stop at the end do not matter; everything else does.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from mgsr.data.synthetic.words import NUMBERS, listed, number, pick, sentence


class Answer(Protocol):
    """The right answers of one prompt."""

    @property
    def wide(self) -> bool:
        """Whether there are several."""
        ...

    def write(self, generator: random.Random) -> str:
        """One of them."""
        ...

    def __call__(self, text: str) -> bool:
        """Whether a text is one of them."""
        ...


def plain(text: str) -> str:
    """What of a text counts.

    >>> plain(" The cat  slept. ")
    'the cat slept'
    """
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


@dataclass(frozen=True)
class Single:
    """One right answer."""

    text: str
    wide = False

    def write(self, generator: random.Random) -> str:
        return self.text

    def __call__(self, text: str) -> bool:
        return plain(text) == plain(self.text)


@dataclass(frozen=True)
class Choices:
    """A list of words, the first of which is one of the first options, and so on.

    >>> right = Choices((("plum", "fig"), ("saw",), ("crow", "owl")))
    >>> right("Fig, saw and owl."), right("Saw, fig and owl.")
    (True, False)
    """

    options: tuple[tuple[str, ...], ...]

    @property
    def wide(self) -> bool:
        return any(len(each) > 1 for each in self.options)

    def write(self, generator: random.Random) -> str:
        return sentence(listed([pick(generator, each) for each in self.options]))

    def __call__(self, text: str) -> bool:
        words = re.split(r", | and ", plain(text))
        return len(words) == len(self.options) and all(
            word in {option.casefold() for option in each} for word, each in zip(words, self.options, strict=True)
        )


@dataclass(frozen=True)
class Summands:
    """Three numbers in words that make `total`, the first of them given.

    >>> Summands(50, 12)("Twelve plus thirty plus eight."), Summands(50, 12)("Twelve plus thirty plus nine.")
    (True, False)
    """

    total: int
    first: int
    wide = True

    def write(self, generator: random.Random) -> str:
        rest = self.total - self.first
        second = pick(generator, range(1, rest))
        return sentence(" plus ".join(number(each) for each in (self.first, second, rest - second)))

    def __call__(self, text: str) -> bool:
        numbers = [NUMBERS.get(word, 0) for word in plain(text).split(" plus ")]
        return len(numbers) == 3 and min(numbers) > 0 and numbers[0] == self.first and sum(numbers) == self.total


@dataclass(frozen=True)
class Sentences:
    """A sentence of one of several forms, whose gaps take one of several words.

    >>> right = Sentences(("the {who} {does} here",), {"who": ("fox",), "does": ("sat", "slept")})
    >>> right("The fox slept here."), right("The fox ran here.")
    (True, False)
    """

    forms: tuple[str, ...]
    gaps: Mapping[str, tuple[str, ...]]
    wide = True

    def write(self, generator: random.Random) -> str:
        form = pick(generator, self.forms)
        filled = {name: pick(generator, options) for name, options in self.gaps.items()}
        return sentence(form.format(**filled))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        gaps = {name: f"(?:{'|'.join(map(re.escape, options))})" for name, options in self.gaps.items()}
        forms = (re.sub(r"\\{(\w+)\\}", lambda gap: gaps[gap[1]], re.escape(form)) for form in self.forms)
        return re.compile("|".join(f"(?:{form})" for form in forms), re.IGNORECASE)

    def __call__(self, text: str) -> bool:
        return self._pattern.fullmatch(plain(text)) is not None
