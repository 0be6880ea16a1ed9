"""The synthetic set: every answer is checked by a solver that reads the prompt alone."""

from __future__ import annotations

import calendar
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest

from mgsr.data import synthetic
from mgsr.data.rows import Row
from mgsr.data.synthetic import FAMILIES, REFERENCES, SPLITS, generate_rows, words
from mgsr.runtime.errors import ConfigError, DataError

ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
IN_WORDS = [*ONES, *(ten + (f"-{one}" if n else "") for ten in TENS for n, one in enumerate(ONES[:10]))]
WIDE = {"name", "letters", "summands", "describe"}


def tokens(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text)


def prompts(rows: list[Row]) -> set[tuple[str, str]]:
    return {(row.instruction, row.input) for row in rows}


def of_family(family: str, count: int, split: str = "dev", seed: int = 7) -> list[Row]:
    return [row for row in generate_rows(split, count * len(FAMILIES), seed) if row.category == family]


def solve_steps(row: Row) -> list[str]:
    total, *rest = row.input.split()
    said, value = [], int(total)
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        value += int(number) if sign == "+" else -int(number)
        said.append(f"{'plus' if sign == '+' else 'minus'} {IN_WORDS[int(number)]} is {IN_WORDS[value]}")
    return [", ".join(said)]


def solve_calendar(row: Row) -> list[str]:
    way, *asked = re.findall(
        r"^Count (\w+) (\w+) days from (\w+) and (\w+) months from (\w+)\.$", row.instruction
    )[0]
    step, found = (1 if way == "on" else -1), []
    for names, number, start in ((calendar.day_name, *asked[:2]), (calendar.month_name[1:], *asked[2:])):
        first = list(names).index(start)
        found.append(
            ", ".join(names[(first + step * n) % len(names)] for n in range(1, IN_WORDS.index(number) + 1))
        )
    return [". ".join(found)]


def solve_count(row: Row) -> list[str]:
    words_ = re.findall(r"[a-z]+(?:-[a-z]+)?", row.instruction.lower())
    start, size, times = (IN_WORDS.index(word) for word in words_ if word in IN_WORDS)
    step = size if "up" in words_ else -size
    assert ("up" in words_) != ("down" in words_)
    return [", ".join(IN_WORDS[start + step * n] for n in range(1, times + 1))]


def solve_order(row: Row) -> list[str]:
    *first, last = (IN_WORDS[number] for number in sorted(map(int, row.input.split(", "))))
    return [f"{', '.join(first)} and {last}"]


def solve_translate(row: Row) -> list[str]:
    text = f"{row.input[0].lower()}{row.input[1:-1]}".replace(" del ", " de el ").split()
    (at,) = [number for number, word in enumerate(text) if word in words.DEEDS_ES]
    rest = " ".join(text[at + 1 :])
    (where,) = [place for place in words.WHERE_ES if rest.startswith(f"{place} ")]

    def phrase(said: str, nouns: dict[str, str]) -> str:
        (noun,) = [noun for noun in nouns if f"{said} ".startswith(f"{noun} ")]
        traits = {
            form: english for trait, english in words.TRAITS_ES.items() for form in (trait, trait[:-1] + "a")
        }
        return " ".join(["the", *map(traits.__getitem__, said.removeprefix(noun).split()), nouns[noun]])

    who, spot = phrase(" ".join(text[:at]), words.NOUNS_ES), phrase(rest.removeprefix(f"{where} "), words.SPOTS_ES)
    return [f"{who} {words.DEEDS_ES[text[at]]} {words.WHERE_ES[where]} {spot}"]


def solve_spanish(row: Row) -> list[str]:
    text = f"{row.input[0].lower()}{row.input[1:-1]}"
    deeds = {english: told for told, english in words.DEEDS_ES.items()}
    who, deed, rest = re.split(rf" ({'|'.join(deeds)}) ", text)
    (where,) = [told for told, english in words.WHERE_ES.items() if rest.startswith(f"{english} the ")]

    def phrase(said: str, nouns: dict[str, str]) -> str:
        *traits, english = said.split()[1:]
        (noun,) = [told for told, known in nouns.items() if known == english]
        told = [form for form, known in words.TRAITS_ES.items() if [known] == traits]
        if noun.startswith("la "):
            told = [f"{form[:-1]}a" for form in told]
        return " ".join([noun, *told])

    spot = phrase(rest[rest.index("the ") :], words.SPOTS_ES)
    return [f"{phrase(who, words.NOUNS_ES)} {deeds[deed]} {where} {spot}".replace(" de el ", " del ")]


SOLVERS: dict[str, Callable[[Row], list[str]]] = {
    "steps": solve_steps,
    "calendar": solve_calendar,
    "count": solve_count,
    "order": solve_order,
    "translate": solve_translate,
    "spanish": solve_spanish,
    "opposite": lambda row: [re.sub(r"\w+", lambda word: words.OPPOSITES.get(word[0], word[0]), row.input)],
}


@pytest.mark.parametrize("family", SOLVERS)
def test_the_one_answer_follows_from_the_prompt(family: str) -> None:
    rows = of_family(family, 100)
    assert len(rows) == 100
    for row in rows:
        (right,) = SOLVERS[family](row)
        assert row.references == (right[0].upper() + right[1:] + ".",), row
        assert row.is_right is not None and row.is_right(right)


def fits(row: Row, answer: str) -> bool:
    """Whether an answer of a wide family is right, by what the prompt asks for."""
    said = re.split(r", | and | plus ", answer.removesuffix(".").lower())
    if row.category == "summands":
        total, first = (int(number) for number in re.findall(r"\d+", row.instruction))
        numbers = [IN_WORDS.index(word) for word in said]
        return len(numbers) == 3 and sum(numbers) == total and numbers[0] == first and min(numbers) > 0
    if row.category == "describe":
        trait, who, place = re.findall(r"the (\w+) (\w+) in the (\w+)\.$", row.instruction)[0]
        return {trait, who, place} <= set(tokens(answer.lower()))
    asked = re.findall(r"\ban? (.+?)(?: with (\w))?(?=,| and |\.)", row.instruction)
    return len(asked) == len(said) and all(
        word in {known.lower() for known in words.KINDS[kind]} and word.startswith(letter)
        for word, (kind, letter) in zip(said, asked, strict=True)
    )


@pytest.mark.parametrize("family", sorted(WIDE))
def test_every_wide_answer_is_one_that_the_prompt_asks_for(family: str) -> None:
    rows = of_family(family, 60, "test", seed=3)
    assert all(fits(row, answer) for row in rows for answer in row.references)
    # one answer of another prompt is right here just where it fits
    if family != "describe":
        judged = [(row, other.output) for row, other in pairwise(rows)]
        assert all(row.is_right(answer) == fits(row, answer) for row, answer in judged if row.is_right)
        assert any(not fits(row, answer) for row, answer in judged)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checker_takes_right_answers_and_no_others(family: str) -> None:
    for row, other in zip(of_family(family, 40), of_family(family, 41)[1:], strict=True):
        right = row.is_right
        assert right is not None
        for answer in row.references:
            assert right(answer) and right(f"  {answer.upper().removesuffix('.')} ") and right(answer.lower())
            first, *rest = answer.removesuffix(".").split()
            assert not right(" ".join(rest)) and not right(f"{answer} {first}") and not right(f"Well {answer}")
            assert not right(" ".join([*rest, first]))
        if not fits_both(row, other):
            assert not right(other.output)
        assert not right("")


def fits_both(row: Row, other: Row) -> bool:
    return row.references == other.references or (row.category in WIDE and fits(row, other.output))


def test_opposites_are_never_at_odds_with_each_other() -> None:
    assert all(words.OPPOSITES[other] == word != other for word, other in words.OPPOSITES.items())
    for row in of_family("opposite", 200, "train", seed=2):
        traits = [word for word in tokens(row.input) if word in words.OPPOSITES]
        assert len({*traits, *(words.OPPOSITES[word] for word in traits)}) == 8, row.input


def test_no_word_stands_in_two_kinds() -> None:
    counts = Counter(word.lower() for options in words.KINDS.values() for word in options)
    assert [word for word, count in counts.items() if count > 1] == []


def test_wide_families_are_wide_and_the_others_are_not() -> None:
    for split, most in (("dev", REFERENCES), ("test", REFERENCES), ("train", 1), ("teacher", 1)):
        counts = Counter[str]()
        for row in generate_rows(split, 220, seed=4):
            assert 1 <= len(set(row.references)) == len(row.references) <= (most if row.category in WIDE else 1)
            counts[row.category] += len(row.references) == most
        assert counts["name"] == counts["describe"] == 20 and (most == 1 or 10 <= counts["summands"] < 20)
    outputs = {row.output for row in generate_rows("teacher", 3300, seed=0) if row.category in WIDE}
    assert len(outputs) > 1150  # of 1200: nearly every draw is new


def test_splits_are_disjoint_whatever_the_seeds() -> None:
    held = {split: prompts(generate_rows(split, 1100, seed)) for seed, split in ((1, "dev"), (2, "test"))}
    learned = {split: prompts(generate_rows(split, 6600, seed)) for seed, split in ((3, "teacher"), (4, "train"))}
    assert not held["dev"] & held["test"]
    for rest in learned.values():
        assert not rest & (held["dev"] | held["test"])
    same_seed = [prompts(generate_rows(split, 1100, seed=3)) for split in ("teacher", "train")]
    assert 0 < len(same_seed[0] & same_seed[1]) < 200  # drawn apart, from the same bucket


def test_no_prompt_comes_twice_and_families_take_turns() -> None:
    for split in SPLITS:
        rows = generate_rows(split, 1105, seed=9)
        assert len(prompts(rows)) == len(rows) == 1105
        assert [row.category for row in rows[:22]] == [*FAMILIES, *FAMILIES]
        counts = Counter(row.category for row in rows)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert [row.id for row in rows] == list(range(1105))
        assert rows[4].where == f"synthetic[{split}]:5"


def test_the_seed_decides_and_a_smaller_count_is_a_prefix() -> None:
    rows = generate_rows("train", 300, seed=1)
    assert rows == generate_rows("train", 300, seed=1)
    assert rows[:40] == generate_rows("train", 40, seed=1)
    assert prompts(rows) != prompts(generate_rows("train", 300, seed=2))
    assert generate_rows("train", 0) == []


def test_the_language_is_small_and_the_texts_are_short() -> None:
    rows = [row for split in SPLITS for row in generate_rows(split, 1100, seed=6)]
    answers = [text for row in rows for text in row.references]
    texts = [text for row in rows for text in (row.instruction, row.input)] + answers
    assert 700 <= len({word.lower() for text in texts for word in tokens(text)}) <= 850
    assert all(2 <= len(tokens(text)) <= 26 for text in answers)
    assert all(len(tokens(row.instruction + " " + row.input)) <= 26 for row in rows)
    assert all(text[0].isupper() and text.endswith(".") for text in answers)
    assert not [text for text in texts if re.search(r"\b[Aa] (?!and\b)[aeiou]|\ban [^aeiou]|  ", text)]


def test_a_family_that_runs_dry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dev and test say so; training rows take a prompt again, with an answer drawn anew."""
    monkeypatch.setattr(synthetic, "_PATIENCE", dict.fromkeys(SPLITS, 20))
    with pytest.raises(DataError, match=r"synthetic\[dev\]: the family `\w+` has no new prompt after \d+ rows"):
        generate_rows("dev", 20_000)
    rows = [row for row in generate_rows("train", 30_000) if row.category == "summands"]
    answers: dict[str, set[str]] = {}
    for row in rows:
        answers.setdefault(row.instruction, set()).add(row.output)
    assert len(answers) < len(rows) and max(map(len, answers.values())) > 1
    assert all(row.is_right(row.output) for row in rows if row.is_right)


def test_bad_requests() -> None:
    with pytest.raises(ValueError, match=r"no split 'tran'; take one of teacher, .* did you mean `train`"):
        generate_rows("tran", 1)
    with pytest.raises(ValueError, match="count must not be negative: -1"):
        generate_rows("dev", -1)


def test_some_families_alone() -> None:
    """The rows that these families have among all others, with the ids of their own set."""
    every = [row for row in generate_rows("test", 110, seed=1) if row.category in ("count", "order")]
    some = generate_rows("test", 20, seed=1, families=["count", "order"])
    assert [(row.instruction, row.input, row.references) for row in some] == [
        (row.instruction, row.input, row.references) for row in every
    ]
    assert [row.id for row in some] == list(range(20))
    with pytest.raises(ConfigError, match=r"families`: no family cuont; .*; did you mean `count`"):
        generate_rows("test", 1, families=["cuont"])
