"""The task families of the synthetic set: each draws one prompt and knows how to write a right answer.

Eight families have one right answer. `describe`, `continue` and `use` are wide: their answer is drawn from a
grammar with many free choices. A good language model of them has an entropy of several nats a sentence.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from mgsr.data.synthetic import words
from mgsr.data.synthetic.words import listed, pick, pick_several, sentence


@dataclass(frozen=True)
class Task:
    """One prompt; `write` draws one of its right answers. `wide`: several draws differ."""

    instruction: str
    input: str
    write: Callable[[random.Random], str]
    wide: bool = False

    def answers(self, wanted: int, generator: random.Random) -> tuple[str, ...]:
        """Up to `wanted` different right answers."""
        found = dict.fromkeys(self.write(generator) for _ in range(1 if wanted == 1 else 4 * wanted))
        return tuple(found)[:wanted]


Family = Callable[[random.Random], Task]


def copy(generator: random.Random) -> Task:
    """Say a sentence again, word for word."""
    ask = pick(generator, ("Repeat the sentence.", "Say the sentence again.", "Copy the sentence."))
    return _single(ask, f"{_scene(generator)} {pick(generator, words.TIMES)}")


def reverse(generator: random.Random) -> Task:
    """Three or four words in reverse order."""
    ask = pick(generator, ("Reverse the list.", "Say the words in reverse order.", "Turn the list around."))
    chosen = pick_several(generator, words.ANIMALS + words.THINGS, pick(generator, (3, 4)))
    return _single(ask, f"The words are {listed(chosen[::-1])}", given=", ".join(chosen))


def sort(generator: random.Random) -> Task:
    """Three words in the order of the alphabet."""
    ask = pick(generator, ("Sort the list.", "Put the words in order.", "What is the order of the words?"))
    chosen = pick_several(generator, words.ANIMALS + words.THINGS, 3)
    return _single(ask, f"The order is {listed(sorted(chosen))}", given=", ".join(chosen))


def lookup(generator: random.Random) -> Task:
    """Find one fact of two."""
    names = pick_several(generator, words.NAMES, 2)
    things = pick_several(generator, words.THINGS, 2)
    colours = pick_several(generator, words.COLOURS, 2)
    places = pick_several(generator, words.PLACES, 2)
    placed = generator.random() < 0.5
    held = [
        f"{colour} {thing}" + (f" in the {place}" if placed else "")
        for colour, thing, place in zip(colours, things, places, strict=True)
    ]
    given = " ".join(f"{name} has a {what}." for name, what in zip(names, held, strict=True))
    asked = pick(generator, (0, 1))
    if generator.random() < 0.5:
        return _single(f"What does {names[asked]} have?", f"{names[asked]} has a {held[asked]}", given=given)
    return _single(f"Who has the {things[asked]}?", f"{names[asked]} has the {held[asked]}", given=given)


def story(generator: random.Random) -> Task:
    """Follow two who move, one of them twice, and say where they are."""
    first, second = pick_several(generator, words.NAMES, 2)
    start, other, end = pick_several(generator, words.PLACES, 3)
    go = [pick(generator, words.GOES) for _ in range(2)]
    mover = pick(generator, (first, second))
    given = f"{first} {go[0]} to the {start}. {second} {go[1]} to the {other}. Then {mover} went to the {end}."
    place = {first: start, second: other, mover: end}
    if generator.random() < 0.5:
        answer = f"{first} is in the {place[first]} and {second} is in the {place[second]}"
        return _single("Where are they now?", answer, given=given)
    asked = pick(generator, (first, second))
    return _single(f"Where is {asked} now?", f"{asked} is in the {place[asked]} now", given=given)


def passive(generator: random.Random) -> Task:
    """Turn an active sentence around."""
    ask = pick(generator, ("Make it passive.", "Use the passive.", "Write it in the passive."))
    doer, other = pick_several(generator, words.ANIMALS + words.PEOPLE, 2)
    doer = f"{pick(generator, words.MOODS)} {doer}" if generator.random() < 0.5 else doer
    other = f"{pick(generator, words.MOODS)} {other}" if generator.random() < 0.5 else other
    deed = pick(generator, tuple(words.DEEDS))
    where = f"{pick(generator, words.SPOTS)} the {pick(generator, words.PLACES)}"
    return _single(
        ask,
        f"the {other} was {words.DEEDS[deed]} by the {doer} {where}",
        given=sentence(f"the {doer} {deed} the {other} {where}"),
    )


def opposite(generator: random.Random) -> Task:
    """Replace two adjectives by their opposites and keep the rest."""
    ask = pick(generator, ("Say the opposite.", "Write the opposite.", "What is the opposite?"))
    one = pick(generator, words.TRAITS)
    two = pick(generator, [trait for trait in words.TRAITS if trait not in (one, words.OPPOSITES[one])])
    who = pick(generator, words.ANIMALS + words.PEOPLE)
    where = f" {pick(generator, words.SPOTS)} the {pick(generator, words.PLACES)}" * pick(generator, (0, 1))
    return _single(
        ask,
        f"the {words.OPPOSITES[one]} {who}{where} is {words.OPPOSITES[two]}",
        given=sentence(f"the {one} {who}{where} is {two}"),
    )


def arithmetic(generator: random.Random) -> Task:
    """Add or take away, within eight and never down to nothing."""
    name, other = pick_several(generator, words.NAMES, 2)
    thing = pick(generator, words.THINGS)
    many = words.PLURALS[thing]

    def amount(number: int) -> str:
        return f"{words.NUMBERS[number]} {thing if number == 1 else many}"

    total = pick(generator, range(2, 9))
    part = pick(generator, range(1, total))
    if generator.random() < 0.5:
        given, result = f"{name} has {amount(part)}. {other} gives {name} {amount(total - part)}.", total
    else:
        given, result = f"{name} has {amount(total)}. {name} gives {other} {amount(part)}.", total - part
    return _single(f"How many {many} does {name} have now?", f"{name} has {amount(result)} now", given=given)


def describe(generator: random.Random) -> Task:
    """Say anything that fits an animal or a person."""
    trait, who = pick(generator, words.TRAITS), pick(generator, words.ANIMALS + words.PEOPLE)
    place = pick(generator, words.PLACES)
    ask = pick(generator, ("Describe the", "Tell me about the", "Write about the"))

    def write(draw: random.Random) -> str:
        colour, thing = pick(draw, words.COLOURS), pick(draw, words.THINGS)
        other = pick(draw, [word for word in words.MOODS if word not in (trait, words.OPPOSITES[trait])])
        return sentence(
            pick(
                draw,
                (
                    f"the {trait} {who} in the {place} is {other} and has a {colour} {thing}",
                    f"it is a {trait} {who} with a {colour} {thing} in the {place}",
                    f"the {who} {pick(draw, words.STAYS)} in the {place} with a {colour} {thing}",
                    f"the {who} is {trait} and {other} {pick(draw, words.TIMES)}",
                ),
            )
        )

    return Task(f"{ask} {trait} {who} in the {place}.", "", write, wide=True)


def continuation(generator: random.Random) -> Task:
    """Say what happened next."""
    ask = pick(generator, ("Continue the story.", "What happened next?", "Write the next sentence."))
    name, thing = pick(generator, words.NAMES), pick(generator, words.THINGS)
    colour, place = pick(generator, words.COLOURS), pick(generator, words.PLACES)

    def write(draw: random.Random) -> str:
        friend = pick(draw, [other for other in words.NAMES if other != name])
        target = pick(draw, [other for other in words.PLACES if other != place])
        animal, time = pick(draw, words.ANIMALS), pick(draw, words.TIMES)
        return sentence(
            pick(
                draw,
                (
                    f"then {name} gave the {colour} {thing} to {friend} {time}",
                    f"then {name} {pick(draw, words.GOES)} to the {target} with the {thing}",
                    f"a {pick(draw, words.MOODS)} {animal} took the {thing} to the {target}",
                    f"{friend} saw the {colour} {thing} and {pick(draw, words.GOES)} to the {place} {time}",
                ),
            )
        )

    given = f"{name} {pick(generator, words.HOLDS)} a {colour} {thing} in the {place}."
    return Task(ask, given, write, wide=True)


def use(generator: random.Random) -> Task:
    """Write any sentence that holds three given words."""
    ask = pick(generator, ("Write a sentence with", "Make a sentence with", "Use the words"))
    name, thing = pick(generator, words.NAMES), pick(generator, words.THINGS)
    place = pick(generator, words.PLACES)
    asked = pick_several(generator, (name, thing, place), 3)

    def write(draw: random.Random) -> str:
        colour, time = pick(draw, words.COLOURS), pick(draw, words.TIMES)
        hold, animal = pick(draw, words.HOLDS), pick(draw, words.ANIMALS)
        return sentence(
            pick(
                draw,
                (
                    f"{name} {hold} a {colour} {thing} {pick(draw, words.SPOTS)} the {place} {time}",
                    f"{name} {pick(draw, words.GOES)} to the {place} with a {colour} {thing}",
                    f"a {animal} {hold} the {thing} of {name} in the {place}",
                    f"the {colour} {thing} of {name} is {pick(draw, words.SPOTS)} the {place}",
                ),
            )
        )

    return Task(f"{ask} {listed(asked)}.", "", write, wide=True)


FAMILIES: dict[str, Family] = {
    "copy": copy,
    "reverse": reverse,
    "sort": sort,
    "lookup": lookup,
    "story": story,
    "passive": passive,
    "opposite": opposite,
    "arithmetic": arithmetic,
    "describe": describe,
    "continue": continuation,
    "use": use,
}


def draw(family: str, generator: random.Random) -> Task:
    """A prompt of a family."""
    return FAMILIES[family](generator)


def _single(instruction: str, answer: str, *, given: str | None = None) -> Task:
    """A task with one right answer, which is itself the input where none is given."""
    text = sentence(answer)
    return Task(instruction, text if given is None else given, lambda _: text)


def _scene(generator: random.Random) -> str:
    """Somebody doing something somewhere."""
    who = f"the {pick(generator, words.MOODS)} {pick(generator, words.ANIMALS + words.PEOPLE)}"
    if generator.random() < 0.5:
        who = pick(generator, words.NAMES)
    place = pick(generator, words.PLACES)
    if generator.random() < 0.5:
        return f"{who} {pick(generator, words.STAYS)} {pick(generator, words.SPOTS)} the {place}"
    thing = f"a {pick(generator, words.COLOURS)} {pick(generator, words.THINGS)}"
    return f"{who} {pick(generator, words.HOLDS)} {thing} in the {place}"
