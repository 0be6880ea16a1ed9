"""Floors: what the prompt, one constant string and the nearest training answer are worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mgsr.config.schema import EvaluationConfig
from mgsr.data.rows import Row
from mgsr.data.synthetic import generate_rows
from mgsr.evaluation import floors as module
from mgsr.evaluation.floors import asked, cached_floors, constant, floors, measured, nearest
from mgsr.evaluation.metrics import rouge_l

CONFIG = EvaluationConfig()


def rows_of(*pairs: tuple[str, str | Sequence[str]], **more: Any) -> list[Row]:
    return [
        Row(number, prompt, "", (answer,) if isinstance(answer, str) else tuple(answer), **more)
        for number, (prompt, answer) in enumerate(pairs)
    ]


def test_the_prompt_again() -> None:
    row = Row(0, "say it", "red cat", ("red cat",))
    assert asked(row) == "say it red cat" and asked(Row(0, "say it", "", ("x",))) == "say it"
    found = floors([row], [], [row], CONFIG)
    # four words, two of them right: precision 1/2, recall 1
    assert found["echo"]["rouge_l"] == pytest.approx(100 * 2 / 3) and found["echo"]["exact_match"] == 0.0
    assert set(found) == {"echo", "nearest"}, "without dev rows there is no constant string"


def test_the_constant_string_grows_while_it_gets_better() -> None:
    dev = rows_of(("a", "the big dog"), ("b", "the big cat"), ("c", "the small dog"))
    text = constant(dev)
    score = sum(rouge_l(text, row.references) for row in dev) / 3
    assert text == "the big dog"
    # no word behind it makes it better, and none of its beginnings is as good
    for other in ("the", "the big", *(f"{text} {word}" for word in ("the", "big", "dog", "cat", "small"))):
        assert sum(rouge_l(other, row.references) for row in dev) / 3 < score
    assert constant(rows_of(("a", "!"), ("b", "?"))) == ""


def test_the_constant_string_is_chosen_on_dev_and_no_longer_than_twelve_words() -> None:
    words = " ".join(f"word{number}" for number in range(30))
    assert len(constant(rows_of(("a", words))).split()) == module.LONGEST == 12
    dev, test = rows_of(("a", "yes it is")), rows_of(("b", "no"))
    found = floors(dev, dev, test, CONFIG)["constant"]
    assert found["text"] == "yes it is" and found["rouge_l"] == 0.0


def test_the_answer_of_the_training_prompt_that_is_most_alike() -> None:
    train = rows_of(("name a red fruit", "apple"), ("name a tall tree", "oak"), ("count to 3", "one two three"))
    test = rows_of(("name a tall green tree", "pine"), ("count on to 3", "1 2 3"), ("a fruit", "fig"))
    assert nearest(train, test) == ["oak", "one two three", "apple"]
    # signs count, and of equals the first is taken
    twice = rows_of(("3 + 4", "seven"), ("3 - 4", "minus one"), ("3 - 4", "less"))
    assert nearest(twice, rows_of(("3 - 4 = ?", "x"))) == ["minus one"]


def test_more_rows_than_are_compared_at_once() -> None:
    train = generate_rows("train", 300)
    found = nearest(train, train * 2)
    assert found[:300] == found[300:]
    # prompts that differ in the order of words alone are equals
    assert sum(answer == row.output for answer, row in zip(found, train, strict=False)) > 290


def test_right_answers_are_counted_of_rows_that_can_be_checked() -> None:
    checked = rows_of(("a", "yes"), ("b", "no"), is_right=lambda text: text == "yes")
    unchecked = rows_of(("c", "yes"))
    assert measured(["yes", "maybe"], checked, CONFIG) == {"rouge_l": 50.0, "exact_match": 50.0, "accuracy": 50.0}
    assert measured(["yes", "maybe", "yes"], [*checked, *unchecked], CONFIG)["accuracy"] == 50.0
    assert set(measured(["yes"], unchecked, CONFIG)) == {"rouge_l", "exact_match"}


def test_floors_of_the_synthetic_set_are_low() -> None:
    """A set that copying, one string or the nearest answer solves would tell nothing of a model."""
    splits = [generate_rows(split, count) for split, count in (("train", 1100), ("dev", 110), ("test", 110))]
    found = floors(*splits, CONFIG)
    measures = {"rouge_l", "exact_match", "accuracy"}
    assert set(found) == {"echo", "constant", "nearest"}
    assert all(set(value) - {"text"} == measures for value in found.values())
    assert max(value["accuracy"] for value in found.values()) < 10
    assert 0 < found["constant"]["rouge_l"] < 40 and 0 < found["echo"]["rouge_l"] < 40


def test_rows_within_the_training_lengths_stand_apart() -> None:
    train, test = rows_of(("a", "yes"), ("b", "no")), rows_of(("a", "yes"), ("b", "maybe"))
    found = floors(train, train, test, CONFIG, [True, False])
    assert found["nearest"]["rouge_l"] == 50 and found["nearest"]["within"]["rouge_l"] == 100
    assert found["echo"]["within"]["rouge_l"] == 0
    for alike in ([True, True], [False, False]):
        assert "within" not in floors(train, train, test, CONFIG, alike)["echo"]


def test_they_are_measured_once_for_the_same_rows(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(f"run_root={tmp_path}")
    rows = {name: rows_of(("a", "yes"), ("b", name)) for name in ("train", "dev", "test", "more")}
    whole = {"test": [True, True], "more": [True, False]}
    first = cached_floors(config, rows, whole)
    assert set(first) == {"test", "more"} and first["more"] == floors(
        rows["train"], rows["dev"], rows["more"], config.evaluation, [True, False]
    )
    monkeypatch.setattr(module, "floors", lambda *_: pytest.fail("measured again"))
    assert cached_floors(config, rows, whole) == first
    # other rows, or another way to score, have floors of their own
    others = {**whole, "more": [False, True]}
    for changed, words, inside in (
        ({**rows, "dev": rows["test"]}, [], whole),
        (rows, ["evaluation.rouge_tokenizer=unicode"], whole),
        (rows, [], others),
    ):
        with pytest.raises(pytest.fail.Exception, match="measured again"):
            cached_floors(make_config(f"run_root={tmp_path}", *words), changed, inside)
