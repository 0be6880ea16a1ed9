"""Figures of a set: greedily and by sampling seed, by kind of task, by the rows' checkers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from mgsr.config.schema import EvaluationConfig
from mgsr.data.prompts import Example
from mgsr.data.tokenizer import train_tokenizer
from mgsr.evaluation import test_set
from mgsr.evaluation.metrics import self_bleu
from mgsr.evaluation.test_set import Predictor, evaluate, measures
from mgsr.runtime import ranks


def example(number: int, references: tuple[str, ...], category: str) -> Example:
    return Example(number, (1,), (2,), references, category, f"rows:{number}")


class Written(Predictor):
    """Answers that stand fixed."""

    def write(self, model: Any, seed: int | None) -> list[str]:
        texts = {
            None: ["2 4 6", "six", "a dog", "no"],
            10: ["2 4 6", "five", "a cat", "no"],
            20: ["2 4 6", "six", "a dog", "yes"],
        }[seed]
        return texts[ranks.rank() :: ranks.world_size()]


EXAMPLES = [
    example(0, ("2 4 6",), "sort"),
    example(1, ("six",), "count"),
    example(2, ("a dog", "one dog"), "describe"),
    example(3, ("yes",), ""),
]


def summary_of(config: EvaluationConfig, examples: Sequence[Example] = EXAMPLES) -> dict[str, Any]:
    return evaluate(None, Written(None, examples, config)).summary  # type: ignore[arg-type]


def test_exact_match_is_told_of_rows_with_one_short_reference() -> None:
    long = example(4, ("one two three four five six",), "long")

    class More(Written):
        def write(self, model: Any, seed: int | None) -> list[str]:
            return [*super().write(model, seed), "one two three four five six"]

    config = EvaluationConfig(seeds=[10, 20])
    summary = evaluate(None, More(None, [*EXAMPLES, long], config)).summary  # type: ignore[arg-type]
    # of the two with one word and the one with three; not of the two references, nor of the six words
    assert summary["exact_match"] == pytest.approx(100 * 2 / 3)
    assert summary["sampled"]["exact_match"] == pytest.approx(100 * 4 / 6)
    assert set(summary["rouge_l_by_category"]) == {"all", "count", "describe", "long", "sort"}
    assert summary["rouge_l_by_category"]["sort"] == 100.0 and "exact_match_by_category" not in summary
    # where it cannot be told of any row there is no such figure
    assert "exact_match" not in measures([(["a dog"], [100.0])], EXAMPLES[2:3])


def test_greedy_answers_are_the_figures_and_sampled_ones_stand_beside_them() -> None:
    found = evaluate(None, Written(None, EXAMPLES, EvaluationConfig(seeds=[10, 20])))  # type: ignore[arg-type]
    summary, sampled = found.summary, found.summary["sampled"]
    assert summary["rouge_l"] == 75.0 and summary["examples"] == 4
    # of "a cat" and "a dog" one word in two is the same
    assert sampled["rouge_l_by_seed"] == pytest.approx({"10": 100 * 1.5 / 4, "20": 100.0})
    assert sampled["rouge_l"] == pytest.approx((37.5 + 100) / 2) and sampled["temperature"] == 1.0
    assert sampled["rouge_l_std"] == pytest.approx((100 - 37.5) / 2**0.5)
    assert [record["seed"] for record in found.predictions] == [*[None] * 4, *[10] * 4, *[20] * 4]
    assert [record["id"] for record in found.predictions] == [0, 1, 2, 3] * 3
    # one seed has no spread; without seeds, and at temperature 0, greedy answers are all there is
    assert summary_of(EvaluationConfig(seeds=[10]))["sampled"]["rouge_l_std"] is None
    for config in (EvaluationConfig(seeds=[]), EvaluationConfig(seeds=[10], temperature=0.0)):
        assert summary_of(config) == {name: value for name, value in summary.items() if name != "sampled"}


def test_a_right_answer_is_what_the_row_s_checker_takes() -> None:
    checked = [
        replace(EXAMPLES[0], is_right=lambda text: text.startswith("2")),
        replace(EXAMPLES[1], is_right=lambda text: text == "five"),
        *EXAMPLES[2:],
    ]
    summary = summary_of(EvaluationConfig(seeds=[10, 20]), checked)
    # of four rows two can be checked
    assert summary["accuracy"] == 50.0 and summary["sampled"]["accuracy"] == 75.0
    assert summary["accuracy_by_category"] == {"count": 0.0, "sort": 100.0}
    assert summary["exact_match"] == pytest.approx(100 * 2 / 3), "whatever the checker says"
    assert "accuracy" not in summary_of(EvaluationConfig(seeds=[10]))


def test_diversity_is_over_all_words_and_resemblance_over_one_pass() -> None:
    examples = [example(number, ("x",), "say") for number in range(3)]
    first, second = ["a b", "a b", "c d"], ["a b", "e f", "g h"]
    scores = [0.0] * 3
    found = measures([(first, scores), (second, scores)], examples)
    assert found["distinct_2"] == pytest.approx(4 / 6) and found["mean_words"] == 2.0
    assert found["self_bleu"] == self_bleu([text.split() for text in first])
    assert "self_bleu" not in measures([(["a b"], [0.0])], examples[:1])


def test_ranks_score_their_own_answers_and_the_first_one_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [example(number, (answer,), "say") for number, answer in enumerate(["2 4", "six", "a", "yes"])]
    predictor = Written(None, examples, EvaluationConfig(seeds=[10, 20]))  # type: ignore[arg-type]
    alone, scored = evaluate(None, predictor), []  # type: ignore[arg-type]
    told: list[list[Any]] = []
    scoring = test_set.rouge_l
    monkeypatch.setattr(test_set, "rouge_l", lambda text, *more: (scored.append(text), scoring(text, *more))[1])
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    # two passes: of what one rank tells, then with what the other one has told
    for rank in (0, 1):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(ranks, "gathered", lambda mine: (told.append(mine), [mine, mine])[1])
        evaluate(None, predictor)  # type: ignore[arg-type]
    assert sorted(scored) == sorted(record["prediction"] for record in alone.predictions)
    # texts and scores, greedily and with two seeds
    answers = iter([[first, second] for first, second in zip(told[:6], told[6:], strict=True)])
    monkeypatch.setattr(ranks, "gathered", lambda _: next(answers))
    monkeypatch.setattr(ranks, "is_first", lambda: False)
    monkeypatch.setattr(ranks, "agreed", lambda mine: mine or alone.summary)
    monkeypatch.setattr(test_set, "measures", lambda *_: pytest.fail("not on this rank"))
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


def test_rows_within_the_training_lengths_stand_apart() -> None:
    inside = [replace(each, within=number != 3) for number, each in enumerate(EXAMPLES)]
    summary = summary_of(EvaluationConfig(seeds=[10]), inside)
    assert summary["within"] == {"rouge_l": 100.0, "exact_match": 100.0, "examples": 3}
    assert summary["rouge_l"] == 75.0
    # where all are, or none is, there is nothing apart
    for same in (True, False):
        alike = [replace(each, within=same) for each in EXAMPLES]
        assert "within" not in summary_of(EvaluationConfig(seeds=[10]), alike)
