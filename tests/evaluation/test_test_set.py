"""Scores of a set: by sampling seed, by kind of task."""

from __future__ import annotations

from typing import Any

import pytest

from mgsr.config.schema import EvaluationConfig, ExperimentConfig
from mgsr.data.prompts import Example
from mgsr.data.rows import Row
from mgsr.data.tokenizer import train_tokenizer
from mgsr.evaluation import test_set
from mgsr.evaluation.test_set import Predictor, evaluate, say_of_unknown_kinds
from mgsr.runtime import ranks


def example(number: int, references: tuple[str, ...], category: str) -> Example:
    return Example(number, (1,), (2,), references, category, f"rows:{number}")


class Written(Predictor):
    """Answers that stand fixed."""

    def write(self, model: Any, seed: int) -> list[str]:
        texts = {10: ["2 4 6", "five", "a cat", "no"], 20: ["2 4 6", "six", "a dog", "yes"]}[seed]
        return texts[ranks.rank() :: ranks.world_size()]


def test_exact_match_by_kind_leaves_out_kinds_with_several_right_answers() -> None:
    examples = [
        example(0, ("2 4 6",), "sort"),
        example(1, ("six",), "count"),
        example(2, ("a dog", "one dog"), "describe"),
        example(3, ("yes",), ""),
    ]
    config = EvaluationConfig(seeds=[10, 20])
    summary = evaluate(None, Written(None, examples, config)).summary  # type: ignore[arg-type]
    assert summary["exact_match_by_category"] == {"all": 50.0, "count": 50.0, "sort": 100.0}
    assert summary["exact_match"] == pytest.approx(100 * 5 / 8)
    assert set(summary["rouge_l_by_category"]) == {"all", "count", "describe", "sort"}
    assert summary["rouge_l_by_category"]["sort"] == 100.0
    named = EvaluationConfig(seeds=[10, 20], one_answer=["count", "describe"])
    summary = evaluate(None, Written(None, examples, named)).summary  # type: ignore[arg-type]
    assert summary["exact_match_by_category"] == {"count": 50.0, "describe": 50.0}
    none = EvaluationConfig(seeds=[10], one_answer=[])
    summary = evaluate(None, Written(None, examples, none)).summary  # type: ignore[arg-type]
    assert summary["exact_match_by_category"] == {} and summary["exact_match"] == 25.0


def test_ranks_score_their_own_answers_and_the_first_one_their_diversity(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [example(number, (answer,), "say") for number, answer in enumerate(["2 4", "six", "a", "yes"])]
    predictor = Written(None, examples, EvaluationConfig(seeds=[10, 20]))  # type: ignore[arg-type]
    alone, scored = evaluate(None, predictor), []  # type: ignore[arg-type]
    told: list[list[Any]] = []
    scoring, measuring = test_set.rouge_l, test_set._diversity
    monkeypatch.setattr(test_set, "rouge_l", lambda text, *more: (scored.append(text), scoring(text, *more))[1])
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    # two passes: of what one rank tells, then with what the other one has told
    for rank in (0, 1):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(ranks, "gathered", lambda mine: (told.append(mine), [mine, mine])[1])
        evaluate(None, predictor)  # type: ignore[arg-type]
    assert sorted(scored) == sorted(record["prediction"] for record in alone.predictions)
    answers = iter([[first, second] for first, second in zip(told[:4], told[4:], strict=True)])
    monkeypatch.setattr(ranks, "gathered", lambda _: next(answers))
    monkeypatch.setattr(ranks, "is_first", lambda: False)
    monkeypatch.setattr(ranks, "agreed", lambda mine: mine or measuring(words, 4))
    monkeypatch.setattr(test_set, "_diversity", lambda *_: pytest.fail("not on this rank"))
    words = [record["prediction"].split() for record in alone.predictions]
    assert evaluate(None, predictor) == alone  # type: ignore[arg-type]


def test_what_stands_before_every_answer_is_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer(["<think>\n\n</think>\n\na dog"], vocab_size=300)
    answers = ["<think>\n\n</think>\n\na dog", " a dog", "<think>\n\n</think>"]
    monkeypatch.setattr(test_set, "sample", lambda *_, **__: [tokenizer.encode(text) for text in answers])
    examples = [example(number, ("a dog",), "say") for number in range(3)]
    plain = Predictor(tokenizer, examples, EvaluationConfig(seeds=[1]))
    assert plain.write(None, 1) == ["<think>\n\n</think>\n\na dog", "a dog", "<think>\n\n</think>"]  # type: ignore[arg-type]
    told = Predictor(tokenizer, examples, EvaluationConfig(seeds=[1]), lead="<think>\n\n</think>")
    assert told.write(None, 1) == ["a dog", "a dog", ""]  # type: ignore[arg-type]


def test_a_kind_that_no_test_row_has_is_named(capsys: Any) -> None:
    def of_kind(*kinds: str) -> list[Row]:
        return [Row(i, "do it", "", ("done",), kind) for i, kind in enumerate(kinds)]

    rows = {
        "train": of_kind("count"),
        "dev": of_kind("count"),
        "test": of_kind("sort", ""),
        "more": of_kind("pick"),
    }
    config = ExperimentConfig()
    say_of_unknown_kinds(config, rows)
    config.evaluation.one_answer = ["sort", "all", "pick"]
    say_of_unknown_kinds(config, rows)
    assert capsys.readouterr().out == ""
    # kinds of the training rows are none of the test rows
    config.evaluation.one_answer = ["srot", "count"]
    say_of_unknown_kinds(config, rows)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "evaluation.one_answer: no test row is of the kind srot; did you mean `sort`?"
    assert said[1].startswith("evaluation.one_answer: no test row is of the kind count") and len(said) == 2
