"""What the sections of the report are made of: names of the cases, tables, commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.bench.medians import seconds, spread

NAMES = {
    "mgsr": "mgsr: cross-entropy + DAC-KL + span (3 terms)",
    "mgsr_network": "mgsr with a clip network and its gradient (3 terms)",
    "mgsr_forward_kl": "mgsr: forward KL (1 term)",
    "mgsr_cached_16": "mgsr, the teacher's top 16 classes cached (3 terms)",
    "mgsr_cached_64": "mgsr, the teacher's top 64 classes cached (3 terms)",
    "mgsr_cached_256": "mgsr, the teacher's top 256 classes cached (3 terms)",
    "liger": "Liger: cross-entropy + KL (2 terms)",
    "liger_kl": "Liger: KL (1 term)",
    "trl": "TRL: KL (1 term)",
    "products_64": "the four matrix products alone, tiles of 64",
    "products_150": "the four matrix products alone, tiles of 150",
    "products_896": "the four matrix products alone, in one tile",
    # of results from before these
    "products": "the four matrix products alone, tiles of 64, memory taken anew for each",
    "wide_products": "the four matrix products alone, tiles of 299, memory taken anew for each",
    "mgsr_round": "mgsr, whole round",
    "naive_round": "generate + 2 forwards + generate",
    "mgsr_sampling": "mgsr, plain sampling",
    "generate_sampling": "generate, plain sampling",
    "mgsr_float32": "mgsr, float32",
    "generate_float32": "generate, float32",
    "openvino_float32": "OpenVINO, float32",
    "mgsr_bfloat16": "mgsr, bf16",
    "generate_bfloat16": "generate, bf16",
    "openvino_bfloat16": "OpenVINO, bf16",
    "lightning": "mgsr under Lightning",
    "bare": "bare PyTorch loop",
    "mgsr_gkd": "mgsr, GKD preset",
    "mgsr_full": "mgsr, full MGSR",
    "trl_gkd": "TRL GKDTrainer",
}


def timed(case: str, runs: Sequence[Mapping[str, Any]], digits: int, *more: str) -> list[str]:
    """A row: what, median seconds, their range over processes, and further cells."""
    return [NAMES[case], f"{seconds(runs):.{digits}f}", spread(runs), *more]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def own_command(pair: Any, only: str) -> list[str]:
    if pair is None:
        return []
    return ["```", f"make bench ARGS='--only {only} --pair {' '.join(pair)}'", "```", ""]
