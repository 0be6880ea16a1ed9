"""Figures as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

_NOT_ARMS = ("study", "seeds", "scrg", "paired_difference")


def show(table: Table) -> None:
    """Print a table, as wide as the terminal."""
    # a pipe has no width of its own; 100 columns keep rows on one line
    console = Console()
    (console if console.is_terminal else Console(width=100)).print(table)


def study_table(summary: Mapping[str, Any]) -> Table:
    """Test figures of every arm, and its distance to the baseline arm where several seeds allow one."""
    # not above: numpy is imported when the processor's instructions are chosen
    from mgsr.evaluation.statistics import shown_std

    seeds = summary["seeds"]
    table = Table(title=f"{summary['study']}: test set, {len(seeds)} training seed(s)")
    for name in ("model", "ROUGE-L", "std", "exact match", "distinct-2"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for name, value in summary.items():
        if name in _NOT_ARMS:
            continue
        table.add_row(
            name,
            f"{value['rouge_l']:.2f}",
            shown_std(value["rouge_l_std"]),
            _shown(value["exact_match"], ".1f", " %"),
            _shown(value["distinct_2"], ".3f"),
        )
    over = next(v["std_over"] or "sampling seeds" for k, v in summary.items() if k not in _NOT_ARMS)
    caption = [f"std over {over}"]
    scrg = summary.get("scrg")
    if scrg and {"disagreement_rate", "corrected_fraction"} <= scrg.keys():
        caption.append(
            f"SCRG: student and teacher disagree on {100 * scrg['disagreement_rate']:.1f} % of tokens, "
            f"{100 * scrg['corrected_fraction']:.1f} % of sequences corrected"
        )
    for name, d in summary.get("paired_difference", {}).items():
        caption.append(
            f"{name}: {d['mean']:+.2f} ROUGE-L, 95% interval {d['low']:+.2f} to {d['high']:+.2f} (paired t)"
        )
    table.caption = "\n".join(caption)
    return table


def _shown(value: float | None, form: str, unit: str = "") -> str:
    return "n/a" if value is None else f"{value:{form}}{unit}"


def evaluation_table(results: Mapping[str, Any]) -> Table:
    """Figures of one model on several sets."""
    from mgsr.evaluation.statistics import shown_std

    table = Table(title="evaluation")
    for name in ("set", "rows", "ROUGE-L", "std over seeds", "exact match", "distinct-2", "words"):
        table.add_column(name, justify="left" if name == "set" else "right")
    for name, value in results.items():
        table.add_row(
            name,
            str(value["examples"]),
            f"{value['rouge_l']:.2f}",
            shown_std(value["rouge_l_std"]),
            f"{value['exact_match']:.1f} %",
            f"{value['distinct_2']:.3f}",
            f"{value['mean_words']:.1f}",
        )
    table.caption = "\n".join(_exposure(name, v["exposure"]) for name, v in results.items() if "exposure" in v)
    return table


def _exposure(name: str, figures: Mapping[str, Any]) -> str:
    errors = figures["ex_acc_err"]
    end = "undefined" if errors[-1] is None else f"{errors[-1]:+.1f} %"
    return (
        f"{name}: ExAccErr {end} at {len(errors)} tokens; KL per token {figures['kl_student_prefix']:.3f} nats on "
        f"the student's text, {figures['kl_teacher_prefix']:.3f} on the teacher's; the student's text has "
        f"perplexity {figures['teacher_perplexity']:.1f} under the teacher"
    )
