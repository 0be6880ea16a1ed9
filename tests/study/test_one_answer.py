"""Exact match over what has one right answer: from a run's predictions into its result file and the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgsr.config import dump, load_config
from mgsr.data.synthetic import FAMILIES, generate_rows
from mgsr.material import read_split
from mgsr.one_answer import KINDS, rows_with_one_answer
from mgsr.report import report
from mgsr.results import collect, result_path, write_result
from study.synthetic import make_result, make_study, record
from study.test_report import rows


def test_the_kinds_are_those_of_one_reference() -> None:
    several = {row.category for row in generate_rows("test", 200) if len(row.references) > 1}
    assert set(KINDS) == set(FAMILIES) - several


def test_other_sets_do_not_tell(tmp_path: Path, tiny_file: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"instruction": "Repeat: a", "output": "a", "category": "copy"}) + "\n")
    config = load_config(tiny_file, [f"data.test={path}", f"data.test_sets={{more: {path}}}"])
    assert rows_with_one_answer(config.data, "test") == rows_with_one_answer(config.data, "more") == []


def test_a_result_file_tells_one_answer_from_many(tmp_path: Path, tiny_file: Path) -> None:
    config = load_config(tiny_file, ["data.synthetic.test_rows=11"])
    test = read_split(config.data, "test")
    (tmp_path / "config.yaml").write_text(dump(config))
    (tmp_path / "environment.json").write_text("{}")
    figures = {"seed": 0, "result": {"test": {"rouge_l": 50.0, "exact_match": 27.3}}}
    (tmp_path / "metrics.json").write_text(json.dumps(figures))
    (tmp_path / "predictions").mkdir()
    # seed 10 has every wide answer and two of the eight others right, seed 20 none
    right = [row.id for row in test if row.category not in KINDS or row.category in ("copy", "sort")]
    lines = [
        {"seed": seed, "id": row.id, "prediction": text, "rouge_l": 50.0}
        for seed in (10, 20)
        for row in test
        for text in [row.references[0] if seed == 10 and row.id in right else "no"]
    ]
    (tmp_path / "predictions" / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = collect(tmp_path, "study", "full", {}, {})["metrics"]["result"]["test"]
    assert found["one_answer"] == {"exact_match": pytest.approx(100 * 2 / 16), "rows": 8}
    # what was recorded before stays what it was
    assert found["exact_match"] == 27.3


def test_a_report_has_no_exact_match_over_all_rows(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    record(study)
    text = report(study).read_text()
    column = text.split("## Text")[1].split("exact match, %")[0].split("| arm")[1].count("|") - 1
    assert rows(text, "Text")["full"][column] == "–" and "hold it over all rows alone" in text
    for arm in study.arms:
        for seed in range(4):
            result = make_result(study, arm, seed, 60.0 + seed)
            result["metrics"]["result"]["test"]["one_answer"] = {"exact_match": 12.5, "rows": 3}
            write_result(result_path(study.results, arm, seed), result)
    text = report(study).read_text()
    assert rows(text, "Text")["full"][column] == "12.50"
    assert "kinds that have one right answer, 3 of them." in text and "over all rows" not in text
