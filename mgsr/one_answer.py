"""Exact match where it means something: over the kinds of task that have one right answer.

A description that equals its reference word for word is luck. Rows on which hardly any model can match hide what
it does on the others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgsr.data.rows import Row
from mgsr.material import SYNTHETIC, read_split
from mgsr.metrics import exact_match
from mgsr.schema import DataConfig

KINDS = ("copy", "reverse", "sort", "lookup", "story", "passive", "opposite", "arithmetic")
"""Of the synthetic set; rows of other sets don't say whether another answer would be as right."""


def rows_with_one_answer(data: DataConfig, test_set: str) -> list[Row]:
    """None where the set has no such kind of task, or does not tell."""
    source = (data.test or data.train) if test_set == "test" else data.test_sets.get(test_set)
    return [row for row in read_split(data, test_set) if row.category in KINDS] if source == SYNTHETIC else []


def exact_where_one(predictions: Path, rows: Sequence[Row]) -> dict[str, Any] | None:
    """Exact match in per cent over these rows and all sampling seeds; None without any.

    Args:
        predictions: JSON lines with the `id` of a row and a `prediction`.
    """
    references = {row.id: row.references for row in rows}
    records = [json.loads(line) for line in predictions.read_text(encoding="utf-8").split("\n") if line]
    found = [exact_match(r["prediction"], references[r["id"]]) for r in records if r["id"] in references]
    return {"exact_match": sum(found) / len(found), "rows": len(rows)} if found else None
