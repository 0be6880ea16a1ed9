"""Scores of a set: by sampling seed, by kind of task."""

from __future__ import annotations

from typing import Any

import pytest

from mgsr.data.prompts import Example
from mgsr.evaluation import Predictor, evaluate
from mgsr.schema import EvaluationConfig


def example(number: int, references: tuple[str, ...], category: str) -> Example:
    return Example(number, (1,), (2,), references, category, f"rows:{number}")


class Written(Predictor):
    """Answers that stand fixed."""

    def write_all(self, model: Any, seed: int) -> list[str]:
        return {10: ["2 4 6", "five", "a cat", "no"], 20: ["2 4 6", "six", "a dog", "yes"]}[seed]


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
