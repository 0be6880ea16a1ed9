"""The report's sections on the objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.bench.medians import memory, seconds
from experiments.bench.ratios import kind_of
from experiments.bench.tables import NAMES, own_command, table, timed


def told(pair: Any, figures: Mapping[str, Any]) -> list[str]:
    cases, fastest = figures["cases"], figures["fastest"]
    mine, memory_mine = seconds(cases["mgsr"]), memory(cases["mgsr"])
    rows = []
    for case, runs in cases.items():
        ratios = f"{mine / seconds(runs):.2f}", f"{memory_mine / memory(runs):.2f}" if memory(runs) else ""
        row = timed(case, runs, 3, f"{memory(runs):.0f}", *ratios)
        if case in fastest:
            row[0] += ", " + setting(fastest[case])
        rows.append(row)
    texts = "Artificial hidden states and output layers, made as peaked as language models on text."
    if pair:
        texts = f"Teacher {pair[0]} and student {pair[1]} on {pair[2]}: 896 tokens of answers, 128 of prompts."
    return [
        "### The objective from hidden states" + (", models and text of one's own" if pair else ""),
        "",
        *own_command(pair, "text_objective"),
        texts,
        "Forward and backward of 1,024 tokens, 128 of them masked, clip (0.1, 0.95). How peaked both models are:",
        "",
        *peaks(figures["problem"]),
        "The ratio columns divide mgsr's three terms by the row. Liger and TRL compute masked tokens too, an",
        "eighth of all; mgsr and the bare products leave them out.",
        "The bare products are PyTorch's own; on a processor of AMD's mgsr takes those with an output layer",
        "the other way around, which is quicker there and gives the same sums (`mgsr/losses/projection.py`).",
        "",
        *table(["", "s", "range", "added MiB", "mgsr / row, time", "mgsr / row, memory"], rows),
        "Liger in chunks of several sizes, one process each. The fastest of each kind were measured again for the",
        "table above. What its compiler takes is in neither column.",
        "",
        *table(
            ["", "s", "added MiB"],
            [
                [f"{NAMES[kind_of(case)]}, {setting(case)}", f"{seconds(runs):.3f}", f"{memory(runs):.0f}"]
                for case, runs in figures["scan"].items()
            ],
        ),
    ]


def peaks(problem: Mapping[str, float]) -> list[str]:
    """A table of what `problems.figures` says of a problem."""
    rows = [
        [
            name,
            f"{problem['classes']:,.0f}",
            *(
                f"{problem[f'{name}_{what}']:.{digits}f}"
                for what, digits in (("hidden", 0), ("top_1", 2), ("entropy", 1))
            ),
            *shared,
        ]
        for name, shared in (
            ("student", [f"{problem['same_argmax']:.2f}", f"{problem['kl']:.2f}"]),
            ("teacher", ["", ""]),
        )
    ]
    header = ["", "classes", "hidden size", "probability of the top class", "entropy, nats"]
    return table([*header, "same top class as the teacher", "KL from the teacher, nats"], rows)


def setting(case: str) -> str:
    """What a case of Liger's is run with.

    >>> setting("liger_kl_128_compiled"), setting("liger_64")
    ('compiled, chunks of 128', 'chunks of 64')
    """
    compiled = case.endswith("_compiled")
    chunk = case.removesuffix("_compiled").split("_")[-1]
    return f"{'compiled, ' if compiled else ''}chunks of {chunk}"
