"""The ratios of all machines side by side, at the top of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from experiments.bench.medians import memory, per_process, rate, seconds

Figures = Mapping[str, Any]


def _time(of: str, to: str, within: str | None = None) -> Callable[[Figures], str]:
    def ratio(figures: Figures) -> str:
        cases = figures[within] if within else figures
        return f"{seconds(cases[of]) / seconds(cases[to]):.2f}"

    return ratio


def _memory(to: str) -> Callable[[Figures], str]:
    return lambda figures: f"{memory(figures['cases']['mgsr']) / memory(figures['cases'][to]):.2f}"


def _leanest(kind: str) -> Callable[[Figures], str]:
    def ratio(figures: Figures) -> str:
        least = min(memory(runs) for case, runs in figures["scan"].items() if kind_of(case) == kind)
        return f"{memory(figures['cases']['mgsr']) / least:.2f}"

    return ratio


def kind_of(case: str) -> str:
    """Liger's one term or its two.

    >>> kind_of("liger_kl_128_compiled"), kind_of("liger_64")
    ('liger_kl', 'liger')
    """
    return "liger_kl" if case.startswith("liger_kl") else "liger"


def _sampling(figures: Figures) -> str:
    return f"{rate(figures['mgsr_sampling']) / rate(figures['generate_sampling']):.2f}"


def _rival(figures: Figures) -> str:
    return f"{rate(figures['mgsr_bfloat16']) / rate(figures['openvino_bfloat16']):.2f}"


def _products(figures: Figures) -> str:
    cases = figures["cases"]
    return (
        f"{seconds(cases['mgsr']) / min(seconds(runs) for name, runs in cases.items() if 'products' in name):.2f}"
    )


def _cached(figures: Figures) -> str:
    cases = figures["cases"]
    return f"{max(seconds(runs) for name, runs in cases.items() if 'cached' in name) / seconds(cases['mgsr']):.2f}"


def _precision(what: str) -> Callable[[Figures], str]:
    return lambda figures: f"{median(figures[what][0]['bf16-mixed']) / median(figures[what][0]['32-true']):.2f}"


OBJECTIVE: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("time / Liger's, 2 terms", _time("mgsr", "liger", "cases")),
    ("time / Liger's, 1 term", _time("mgsr", "liger_kl", "cases")),
    ("time / TRL's, 1 term", _time("mgsr", "trl", "cases")),
    ("time / the four matrix products, in the fastest tiles", _products),
    ("time with the teacher's top classes cached / without, at worst", _cached),
    ("memory / Liger's at its fastest, 2 terms", _memory("liger")),
    ("memory / Liger's at its fastest, 1 term", _memory("liger_kl")),
    ("memory / Liger's at its leanest, 2 terms", _leanest("liger")),
    ("memory / Liger's at its leanest, 1 term", _leanest("liger_kl")),
    ("memory / TRL's, 1 term", _memory("trl")),
)


def _step(figures: Figures) -> str:
    return f"{median(per_process(figures['both'], 'seconds', 'bare')):.3f}"


RATIOS: tuple[tuple[str, str, Callable[[Figures], str]], ...] = (
    *((f"objective, 3 terms: {what}", "objective", ratio) for what, ratio in OBJECTIVE),
    *((f"objective on text, 3 terms: {what}", "text_objective", ratio) for what, ratio in OBJECTIVE),
    ("round of SCRG: time / the naive way's", "rounds", _time("mgsr_round", "naive_round")),
    ("plain sampling: tokens/s / `generate`'s", "rounds", _sampling),
    *(
        (f"{what} in bf16: time / float32's", "precision", _precision(what))
        for what in ("scoring", "round", "step")
    ),
    ("plain sampling in bf16: tokens/s / OpenVINO's", "rival", _rival),
    ("training step: time / a bare loop's", "step", _step),
    ("whole run, GKD preset: time / TRL's GKDTrainer", "peers", _time("mgsr_gkd", "trl_gkd")),
    ("whole run, full MGSR: time / TRL's GKDTrainer", "peers", _time("mgsr_full", "trl_gkd")),
    *(
        (f"whole run, models of one's own, {name}: time / TRL's GKDTrainer", "pair_peers", ratio)
        for name, ratio in (
            ("float32", _time("mgsr_gkd", "trl_gkd", "32-true")),
            ("bf16", _time("mgsr_gkd", "trl_gkd", "bf16-mixed")),
        )
    ),
)
"""What, the group that it is measured in, and the ratio from the group's figures."""


def summary(machines: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of the table; an en dash where a machine has not measured a group."""
    lines = ["| ratio | " + " | ".join(machines) + " |", "|---|" + "---|" * len(machines)]
    for what, group, ratio in RATIOS:
        cells = [ratio(results[group]["figures"]) if group in results else "–" for results in machines.values()]
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return [*lines, ""]
