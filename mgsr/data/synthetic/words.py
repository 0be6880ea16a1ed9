"""The whole vocabulary of the synthetic set, and draws that stay the same from one Python to the next."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

NAMES = ("Tom", "Ann", "Ben", "Sue", "Max", "Kate", "Sam", "Lucy", "Jack", "Mary", "Paul", "Emma")
ANIMALS = ("cat", "dog", "horse", "bird", "fox", "mouse", "duck", "rabbit", "bear", "goat")
PEOPLE = ("boy", "girl", "farmer", "teacher", "doctor", "king")
THINGS = (
    "cup",
    "hat",
    "ball",
    "book",
    "box",
    "coat",
    "bag",
    "lamp",
    "key",
    "cake",
    "letter",
    "shoe",
    "apple",
    "chair",
)
PLURALS = {
    **{thing: thing + "s" for thing in THINGS},
    "box": "boxes",
}
PLACES = (
    "kitchen",
    "garden",
    "park",
    "school",
    "house",
    "street",
    "market",
    "forest",
    "shop",
    "barn",
    "tower",
    "castle",
)
COLOURS = ("red", "blue", "green", "black", "white", "yellow", "brown", "pink")
OPPOSITES = {
    "big": "small",
    "tall": "short",
    "happy": "sad",
    "fast": "slow",
    "clean": "dirty",
    "hot": "cold",
    "loud": "quiet",
    "strong": "weak",
}
OPPOSITES.update({second: first for first, second in tuple(OPPOSITES.items())})
TRAITS = tuple(OPPOSITES)
MOODS = ("big", "small", "tall", "short", "happy", "sad", "clean", "quiet")
# Past tense and participle of what one animal or person does to another.
DEEDS = {
    "chased": "chased",
    "saw": "seen",
    "found": "found",
    "followed": "followed",
    "helped": "helped",
    "bit": "bitten",
    "heard": "heard",
    "forgot": "forgotten",
}
HOLDS = ("found", "took", "hid", "lost", "bought")
STAYS = ("slept", "sat", "waited", "played", "sang", "danced")
GOES = ("ran", "walked", "went", "came", "hurried")
SPOTS = ("in", "near", "behind", "at")
TIMES = ("in the morning", "in the evening", "at night", "after lunch", "before dinner", "on Sunday")
# By value; zero is here to be counted from and is never written.
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")


def pick(generator: random.Random, options: Sequence[T]) -> T:
    """One option, each as likely; from `random()` alone, the one stream that Python promises to keep."""
    return options[int(generator.random() * len(options))]


def pick_several(generator: random.Random, options: Sequence[T], count: int) -> list[T]:
    """`count` different options, in the order drawn."""
    left = list(options)
    return [left.pop(int(generator.random() * len(left))) for _ in range(count)]


def listed(words: Sequence[str]) -> str:
    """An English list of at least two words.

    >>> listed(["cup", "dog", "hat"])
    'cup, dog and hat'
    """
    return f"{', '.join(words[:-1])} and {words[-1]}"


def sentence(text: str) -> str:
    """The text with a capital at its front and a full stop at its end.

    >>> sentence("the cat slept")
    'The cat slept.'
    """
    return text[0].upper() + text[1:] + "."
