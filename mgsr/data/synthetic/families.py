"""The task families of the synthetic set: each draws one prompt, and knows its right answers.

- A wrong token early on ruins the rest: `steps`, `calendar`, `count`, `order`.
- Several answers are right: `name`, `letters`, `summands`, `describe`.
- Phrases: `translate`, `spanish`, `opposite`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from mgsr.data.synthetic import words
from mgsr.data.synthetic.answers import Answer, Choices, Sentences, Single, Summands
from mgsr.data.synthetic.words import listed, number, pick, pick_several, sentence


@dataclass(frozen=True)
class Task:
    """One prompt and its right answers."""

    instruction: str
    input: str
    answer: Answer

    def answers(self, wanted: int, generator: random.Random) -> tuple[str, ...]:
        """Up to `wanted` different right answers."""
        found = dict.fromkeys(self.answer.write(generator) for _ in range(1 if wanted == 1 else 4 * wanted))
        return tuple(found)[:wanted]


Family = Callable[[random.Random], Task]

_MOST = 36
"""The largest number of a sum."""


def steps(generator: random.Random) -> Task:
    """Three numbers added or taken away, one step after the other."""
    ask = pick(generator, ("Work it out step by step.", "Calculate one step at a time."))
    total = pick(generator, range(1, _MOST))
    given, told = str(total), []
    for _ in range(3):
        up = pick(generator, range(1, 10))
        down = generator.random() < 0.5 and up < total
        up = -up if down or total + up > _MOST else up
        total += up
        given += f" {'-' if up < 0 else '+'} {abs(up)}"
        told.append(f"{'minus' if up < 0 else 'plus'} {number(abs(up))} is {number(total)}")
    return Task(ask, given, Single(sentence(", ".join(told))))


def calendar(generator: random.Random) -> Task:
    """The days that follow a day, and the months that follow a month, or those before."""
    back = generator.random() < 0.5
    listing = []
    asked = []
    for unit, names, most in (("days", words.DAYS, 7), ("months", words.MONTHS, 8)):
        start, count = pick(generator, range(len(names))), pick(generator, range(2, most))
        asked.append(f"{number(count)} {unit} from {names[start]}")
        listing.append([names[(start + (-i if back else i)) % len(names)] for i in range(1, count + 1)])
    ask = f"Count {'back' if back else 'on'} {asked[0]} and {asked[1]}."
    return Task(ask, "", Single(" ".join(sentence(", ".join(each)) for each in listing)))


def count(generator: random.Random) -> Task:
    """Numbers in steps of one size, upwards or downwards."""
    size, times = pick(generator, range(2, 10)), pick(generator, range(4, 8))
    lowest = pick(generator, range(1, 99 - size * times))
    run = [lowest + size * i for i in range(times + 1)]
    back = generator.random() < 0.5
    start, *told = map(number, reversed(run) if back else run)
    way = "down" if back else "up"
    ask = pick(generator, ("Count {} from {} in steps of {}, {} times.", "From {1}, count {0} by {2}, {3} times."))
    return Task(ask.format(way, start, number(size), number(times)), "", Single(sentence(", ".join(told))))


def order(generator: random.Random) -> Task:
    """Numbers from the smallest to the largest, in words."""
    ask = pick(
        generator, ("Put the numbers in order, in words.", "Write the numbers from small to large, in words.")
    )
    chosen = pick_several(generator, range(1, 100), pick(generator, (4, 5)))
    return Task(ask, ", ".join(map(str, chosen)), Single(sentence(listed([number(n) for n in sorted(chosen)]))))


def name(generator: random.Random) -> Task:
    """One word of each of three kinds."""
    ask = pick(generator, ("Name", "Think of", "Give me"))
    kinds = pick_several(generator, tuple(words.KINDS), 3)
    asked = listed([f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}" for kind in kinds])
    return Task(f"{ask} {asked}.", "", Choices(tuple(words.KINDS[kind] for kind in kinds)))


def letters(generator: random.Random) -> Task:
    """Two words of two kinds that begin with two letters."""
    ask = pick(generator, ("Name", "Find"))
    asked, options = [], []
    for kind in pick_several(generator, tuple(words.KINDS), 2):
        first = pick(generator, sorted({word[0].lower() for word in words.KINDS[kind]}))
        asked.append(f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} with {first}")
        options.append(tuple(word for word in words.KINDS[kind] if word[0].lower() == first))
    return Task(f"{ask} {listed(asked)}.", "", Choices(tuple(options)))


def summands(generator: random.Random) -> Task:
    """Three numbers that make a number, the first given."""
    total = pick(generator, range(10, _MOST + 1))
    first = pick(generator, range(1, total - 1))
    ask = pick(
        generator,
        (
            "Write {} as a sum of three numbers, the first {}.",
            "Three numbers make {}, the first is {}.",
            "Split {} into three numbers and begin with {}.",
            "Which three numbers make {}, if {} comes first?",
        ),
    )
    return Task(ask.format(total, first), "", Summands(total, first))


def _both_languages(generator: random.Random) -> tuple[str, str]:
    """A sentence in Spanish and in English."""

    def phrase(nouns: dict[str, str]) -> tuple[str, str]:
        noun = pick(generator, tuple(nouns))
        if generator.random() < 0.25:
            return noun, f"the {nouns[noun]}"
        trait = pick(generator, tuple(words.TRAITS_ES))
        ending = trait[:-1] + "a" if noun.startswith("la ") else trait
        return f"{noun} {ending}", f"the {words.TRAITS_ES[trait]} {nouns[noun]}"

    who, spot = phrase(words.NOUNS_ES), phrase(words.SPOTS_ES)
    deed, place = pick(generator, tuple(words.DEEDS_ES)), pick(generator, tuple(words.WHERE_ES))
    spanish = f"{who[0]} {deed} {place} {spot[0]}".replace(" de el ", " del ")
    english = f"{who[1]} {words.DEEDS_ES[deed]} {words.WHERE_ES[place]} {spot[1]}"
    return sentence(spanish), sentence(english)


def translate(generator: random.Random) -> Task:
    """A Spanish sentence in English."""
    spanish, english = _both_languages(generator)
    return Task(pick(generator, ("Translate into English.", "What is this in English?")), spanish, Single(english))


def spanish(generator: random.Random) -> Task:
    """An English sentence in Spanish."""
    told, given = _both_languages(generator)
    return Task(pick(generator, ("Translate into Spanish.", "What is this in Spanish?")), given, Single(told))


def opposite(generator: random.Random) -> Task:
    """Replace every adjective by its opposite, and keep the rest."""
    ask = pick(generator, ("Say the opposite of every adjective.", "Turn every adjective around."))
    traits: list[str] = []
    while len(traits) < 4:
        trait = pick(generator, words.TRAITS)
        if trait not in traits and words.OPPOSITES[trait] not in traits:
            traits.append(trait)
    who, thing = pick(generator, words.KINDS["animal"]), pick(generator, words.THINGS)
    form = "{} {} " + who + ", {} {} " + thing
    turned = form.format(*(words.OPPOSITES[trait] for trait in traits))
    return Task(ask, form.format(*traits), Single(sentence(turned)))


def describe(generator: random.Random) -> Task:
    """Any sentence about somebody, somewhere."""
    trait, who = pick(generator, words.TRAITS), pick(generator, words.KINDS["animal"] + words.KINDS["job"])
    place = pick(generator, words.PLACES)
    ask = pick(generator, ("Describe the", "Tell me about the", "Write about the"))
    gaps = {
        "trait": (trait,),
        "who": (who,),
        "place": (place,),
        "colour": words.KINDS["colour"],
        "thing": words.THINGS,
        "mood": words.MOODS,
        "stays": words.STAYS,
        "time": words.TIMES,
    }
    forms = (
        "the {trait} {who} in the {place} is {mood} and has a {colour} {thing}",
        "the {who} is {trait} and {mood} and {stays} in the {place} {time}",
        "{time} the {trait} and {mood} {who} {stays} near the {place}",
        "with a {colour} {thing} the {trait} {who} {stays} in the {place}",
    )
    return Task(f"{ask} {trait} {who} in the {place}.", "", Sentences(forms, gaps))


FAMILIES: dict[str, Family] = {
    "steps": steps,
    "calendar": calendar,
    "count": count,
    "order": order,
    "name": name,
    "letters": letters,
    "summands": summands,
    "translate": translate,
    "spanish": spanish,
    "opposite": opposite,
    "describe": describe,
}


def draw(family: str, generator: random.Random) -> Task:
    """A prompt of a family."""
    return FAMILIES[family](generator)
