"""The doctor's look at rows: every bad line counted, rows that stand twice, and test rows that are trained on."""

from __future__ import annotations

from collections.abc import Sequence

from mgsr.config.schema import ExperimentConfig
from mgsr.data.rows import Row
from mgsr.data.splits import read_split
from mgsr.planning.findings import Report
from mgsr.runtime.errors import RowsError, UserError

SHOWN = 3


def look_at_rows(config: ExperimentConfig, report: Report) -> dict[str, list[Row]]:
    """Rows of every split that can be read; the others are findings."""
    found: dict[str, list[Row]] = {}
    for split in ("train", "dev", "test", *config.data.test_sets):
        section = f"data.{split}"
        try:
            rows = read_split(config.data, split)
        except RowsError as error:
            report.say("error", section, f"{len(error.bad)} bad rows; the first: " + "; ".join(error.bad[:SHOWN]))
            report.figures[section] = {"bad_rows": len(error.bad)}
            continue
        except UserError as error:
            report.say("error", section, str(error))
            continue
        found[split] = rows
        twice = len(rows) - len({_task(row) for row in rows})
        report.figures[section] = {"rows": len(rows), "bad_rows": 0, "repeated": twice}
        if twice:
            report.say("warning", section, f"{len(rows)} rows, {twice} of them ask what another row asks")
        else:
            report.say("ok", section, f"{len(rows)} rows")
    _look_for_leaks(found, report)
    return found


def _look_for_leaks(found: dict[str, list[Row]], report: Report) -> None:
    trained = {_task(row): row for row in found.get("train", [])}
    for split, rows in found.items():
        if split == "train" or not trained:
            continue
        leaked = [row for row in rows if _task(row) in trained]
        report.figures[f"data.{split}"]["also_in_train"] = len(leaked)
        if leaked:
            first = leaked[0]
            place = first.where or f"row {first.id}"
            other = trained[_task(first)].where or f"row {trained[_task(first)].id}"
            report.say(
                "warning",
                f"data.{split}",
                f"{len(leaked)} of {len(rows)} rows are trained on too, {place} as {other}: their scores "
                "will flatter; take them out of data.train",
            )


def _task(row: Row) -> tuple[str, str]:
    return row.instruction.strip(), row.input.strip()


def histogram(lengths: Sequence[int], *, bins: int = 8, width: int = 32) -> list[str]:
    """Bars of a distribution, one line per bin.

    >>> print("\\n".join(histogram([1, 2, 2, 3, 8], bins=2, width=4)))
       1-4     ████ 4
       5-8     █ 1
    """
    if not lengths:
        return []
    low, high = min(lengths), max(lengths)
    step = max(1, -(-(high - low + 1) // bins))
    counts = [0] * (-(-(high - low + 1) // step))
    for length in lengths:
        counts[(length - low) // step] += 1
    most = max(counts)
    lines = []
    for number, count in enumerate(counts):
        start = low + number * step
        bar = "█" * round(width * count / most)
        lines.append(f"{start:>4}-{min(start + step - 1, high):<5} {bar or '▏'} {count}")
    return lines
