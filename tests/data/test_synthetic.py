"""The synthetic set: every answer is checked by a solver that reads the prompt alone."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from mgsr.data import synthetic
from mgsr.data.rows import Row
from mgsr.data.synthetic import FAMILIES, REFERENCES, SPLITS, generate_rows
from mgsr.runtime.errors import DataError

NUMBERS = dict(zip(("one", "two", "three", "four", "five", "six", "seven", "eight"), range(1, 9), strict=True))
PAIRS = (
    "big small",
    "tall short",
    "happy sad",
    "fast slow",
    "clean dirty",
    "hot cold",
    "loud quiet",
    "strong weak",
)
OPPOSITE = {word: other for pair in PAIRS for word, other in (pair.split(), pair.split()[::-1])}
PARTICIPLE = {"saw": "seen", "bit": "bitten", "forgot": "forgotten"}


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", text)


def prompts(rows: list[Row]) -> set[tuple[str, str]]:
    return {(row.instruction, row.input) for row in rows}


def solve_lookup(row: Row) -> str:
    facts = dict(re.findall(r"(\w+) has a (.+?)\.", row.input))
    asked = row.instruction.rstrip("?").split()[2 if row.instruction.startswith("What") else -1]
    if asked in facts:
        return f"{asked} has a {facts[asked]}."
    (owner,) = [name for name, held in facts.items() if held.split()[1] == asked]
    return f"{owner} has the {facts[owner]}."


def solve_story(row: Row) -> str:
    moves = re.findall(r"([A-Z]\w+) \w+ to the (\w+)\.", row.input)
    assert len(moves) == 3
    place = dict(moves)
    if "they" in row.instruction:
        (first, here), (second, there) = place.items()
        return f"{first} is in the {here} and {second} is in the {there}."
    asked = row.instruction.split()[2]
    return f"{asked} is in the {place[asked]} now."


def solve_passive(row: Row) -> str:
    match = re.fullmatch(r"The ((?:\w+ )?\w+) (\w+) the ((?:\w+ )?\w+) (\w+ the \w+)\.", row.input)
    assert match
    doer, deed, other, where = match.groups()
    return f"The {other} was {PARTICIPLE.get(deed, deed)} by the {doer} {where}."


def solve_arithmetic(row: Row) -> str:
    name = row.instruction.split()[-3]
    (owner, start), (giver, taker, moved) = (
        re.findall(r"^(\w+) has (\w+) ", row.input)[0],
        re.findall(r"(\w+) gives (\w+) (\w+) ", row.input)[0],
    )
    assert owner == name and giver != taker and name in (giver, taker)
    result = NUMBERS[start] + NUMBERS[moved] * (1 if taker == name else -1)
    many = row.instruction.split()[2]
    one = {"boxes": "box"}.get(many, many.removesuffix("s"))
    (number,) = [word for word, value in NUMBERS.items() if value == result]
    return f"{name} has {number} {one if result == 1 else many} now."


SOLVERS = {
    "copy": lambda row: row.input,
    "reverse": lambda row: ["The", "words", "are", *reversed(words(row.input))],
    "sort": lambda row: ["The", "order", "is", *sorted(words(row.input))],
    "lookup": solve_lookup,
    "story": solve_story,
    "passive": solve_passive,
    "opposite": lambda row: " ".join(OPPOSITE.get(w, w) for w in row.input.rstrip(".").split()) + ".",
    "arithmetic": solve_arithmetic,
}
WIDE = {"describe", "continue", "use"}


@pytest.mark.parametrize("family", SOLVERS)
def test_the_answer_follows_from_the_prompt(family: str) -> None:
    checked = 0
    for row in generate_rows("dev", 1100, seed=7):
        if row.category != family:
            continue
        right = SOLVERS[family](row)
        assert len(row.references) == 1
        found = row.output
        if isinstance(right, list):  # a list: the words in order, however they are joined
            assert [word for word in words(found) if word != "and"] == right
        else:
            assert found == right
        checked += 1
    assert checked == 100


def test_opposites_are_never_at_odds_with_each_other() -> None:
    for row in generate_rows("train", 2200, seed=2):
        if row.category == "opposite":
            one, two = (word for word in words(row.input) if word in OPPOSITE)
            assert one != two and OPPOSITE[one] != two


def test_wide_answers_fit_their_prompt() -> None:
    for row in generate_rows("test", 550, seed=3):
        given = set(words(row.instruction + " " + row.input))
        for answer in row.references if row.category in WIDE else ():
            said = set(words(answer.replace("The ", "the ")))
            if row.category == "describe":
                *_, trait, who = words(row.instruction.partition(" in the ")[0])
                assert who in said and OPPOSITE.get(trait) not in said
            elif row.category == "use":
                asked = set(
                    re.sub(r"\w+ a sentence with|Use the words| and", "", row.instruction).strip(" .").split()
                )
                asked = {word.strip(",") for word in asked}
                assert len(asked) == 3 and asked <= said
            else:
                thing, place = re.findall(r"a \w+ (\w+) in the (\w+)", row.input)[0]
                assert thing in said and (place not in said or answer.split()[1] == "saw")
                assert len(said & given) >= 2


def test_wide_families_are_wide_and_the_others_are_not() -> None:
    for split, most in (("dev", REFERENCES), ("test", REFERENCES), ("train", 1), ("teacher", 1)):
        for row in generate_rows(split, 220, seed=4):
            assert len(set(row.references)) == len(row.references)
            assert len(row.references) == (most if row.category in WIDE else 1)
    outputs = {row.output for row in generate_rows("teacher", 3300, seed=0) if row.category in WIDE}
    assert len(outputs) > 850  # of 900: nearly every draw is new


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
    assert 180 <= len({word.lower() for text in texts for word in words(text)}) <= 250
    assert all(5 <= len(words(text)) <= 16 for text in answers)
    assert all(len(words(row.instruction + " " + row.input)) <= 26 for row in rows)
    assert all(text[0].isupper() and text.endswith(".") for text in answers)
    assert not [text for text in texts if re.search(r"\b[Aa] [aeiou]|  |\bone \w+s\b", text)]


def test_bad_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"no split 'tran'; take one of teacher, .* did you mean `train`"):
        generate_rows("tran", 1)
    with pytest.raises(ValueError, match="count must not be negative: -1"):
        generate_rows("dev", -1)
    # the first family that runs dry says so sooner
    monkeypatch.setattr(synthetic, "_PATIENCE", 20)
    with pytest.raises(DataError, match=r"synthetic\[dev\]: the family `\w+` has no new prompt after \d+ rows"):
        generate_rows("dev", 20_000)
