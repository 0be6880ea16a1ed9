"""Figures as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mgsr.evaluation.floors import NAMES as FLOORS
from mgsr.runtime.wording import plural

# what a run begins with, by its name in metrics.json
_BEGUN = {"teacher": "teacher", "sft_start": "start"}
_CAPTION = "answered greedily; sampled: at the configured temperature, mean over sampling seeds"
_NOT_ARMS = ("study", "seeds", "floors", "comparisons")


def console() -> Console:
    """Standard output as it is now, where no word of a name or a text is markup."""
    found = Console(markup=False, emoji=False, highlight=False)
    # a pipe has no width of its own; 100 columns keep rows on one line
    return found if found.is_terminal else Console(markup=False, emoji=False, highlight=False, width=100)


def show(table: Table) -> None:
    """Print a table, as wide as the terminal."""
    console().print(table)


def run_table(metrics: Mapping[str, Any]) -> Table:
    """Test figures of a run: of its teacher, of the student it started from, and of the student it has made.

    Args:
        metrics: of `metrics.json`, where the figures of the first two are measured once and then read.
    """
    table = Table(title=f"{metrics['experiment']}/{metrics['arm']}, seed {metrics['seed']}")
    several = len(metrics["result"]) > 1
    _add_columns(table, ["test set"] * several + ["model"], metrics["result"].values())
    for name, figures in metrics["result"].items():
        floors = (metrics.get("floors") or {}).get(name, {})
        models = [(word, (metrics.get(key) or {}).get(name)) for key, word in _BEGUN.items()]
        models += [(FLOORS[floor], found) for floor, found in floors.items()]
        known = [(word, found) for word, found in [*models, (metrics["arm"], figures)] if found]
        for number, (word, found) in enumerate(known):
            table.add_row(*([name if number == 0 else ""] * several), word, *_figures(found))
        table.add_section()
    table.caption = _CAPTION
    return table


def _add_columns(table: Table, names: Sequence[str], figures: Iterable[Mapping[str, Any]]) -> None:
    checked = any("accuracy" in found for found in figures)
    for name in names:
        table.add_column(name)
    right = "right" if checked else "exact match"
    for name in ("ROUGE-L", "sampled", right, "sampled", "distinct-2"):
        table.add_column(name, justify="right")


def _figures(value: Mapping[str, Any]) -> list[str]:
    sampled = value.get("sampled") or {}
    return [
        f"{value['rouge_l']:.2f}",
        _shown(sampled.get("rouge_l"), ".2f"),
        _shown(_right(value), ".1f", " %"),
        _shown(_right(sampled), ".1f", " %"),
        _shown(value.get("distinct_2"), ".3f"),
    ]


def _right(value: Mapping[str, Any]) -> float | None:
    """Share of right answers, or of exact matches where rows cannot be checked."""
    return value.get("accuracy", value.get("exact_match"))


def study_table(summary: Mapping[str, Any]) -> Table:
    """Test figures of every arm, and its distance to the baseline arm where several seeds allow one."""
    table = Table(title=f"{summary['study']}: test set, {plural(len(summary['seeds']), 'training seed')}")
    shown = {FLOORS[name]: value for name, value in summary.get("floors", {}).items()}
    shown |= {name: value for name, value in summary.items() if name not in _NOT_ARMS}
    _add_columns(table, ["model"], shown.values())
    for name, value in shown.items():
        table.add_row(_BEGUN.get(name, name), *_figures(value))
    caption = [_CAPTION]
    for name, found in summary.get("comparisons", {}).items():
        interval = ""
        if found["low"] is not None:
            interval = f", 95 % interval {found['low']:+.2f} to {found['high']:+.2f}: {found['verdict']}"
        caption.append(f"{name}: {found['effect']:+.2f} ROUGE-L{interval}")
    table.caption = "\n".join(caption)
    return table


def _shown(value: float | None, form: str, unit: str = "") -> str:
    return "n/a" if value is None else f"{value:{form}}{unit}"


def evaluation_table(results: Mapping[str, Any]) -> Table:
    """Figures of one model on several sets."""
    table = Table(title="evaluation")
    _add_columns(table, ["set"], results.values())
    for name in ("words", "rows"):
        table.add_column(name, justify="right")
    for name, value in results.items():
        table.add_row(name, *_figures(value), f"{value['mean_words']:.1f}", str(value["examples"]))
    lines = [_exposure(name, v["exposure"]) for name, v in results.items() if "exposure" in v]
    table.caption = "\n".join([_CAPTION, *lines])
    return table


def _exposure(name: str, figures: Mapping[str, Any]) -> str:
    errors = figures["ex_acc_err"]
    end = "undefined" if errors[-1] is None else f"{errors[-1]:+.1f} %"
    return (
        f"{name}: ExAccErr {end} at {len(errors)} tokens; KL per token {figures['kl_student_prefix']:.3f} nats on "
        f"the student's text, {figures['kl_teacher_prefix']:.3f} on the teacher's; the student's text has "
        f"perplexity {figures['teacher_perplexity']:.1f} under the teacher"
    )
