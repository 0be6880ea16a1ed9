"""The plots of a report, as SVG text that is the same whenever the numbers are."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

from mgsr.study.report.evidence import Evidence, Result, set_in_words

COLOURS = {"better": "#1a7f37", "worse": "#b42318", "inconclusive": "#57606a"}


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcdefaults()
    # text as text: no outlines of some machine's fonts, and it can be searched
    matplotlib.rcParams.update(
        {"svg.hashsalt": "mgsr", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}
    )
    matplotlib.rcParams["axes.spines.right"] = False
    from matplotlib import pyplot

    return pyplot


def _svg(figure: Any) -> str:
    target = io.StringIO()
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    _pyplot().close(figure)
    lines = (line.rstrip() for line in target.getvalue().splitlines())
    return "\n".join(lines) + "\n"


def interval_plot(evidence: Evidence, test_set: str = "test") -> str | None:
    """Difference of every arm to the baseline with its 95% interval; None without any."""
    shown = [v for v in evidence.verdicts(test_set) if v.difference is not None]
    if not shown:
        return None
    figure, axes = _pyplot().subplots(figsize=(6.4, 0.6 + 0.32 * len(shown)))
    for row, v in enumerate(reversed(shown)):
        assert v.difference is not None
        d, colour = v.difference, COLOURS[v.verdict]
        axes.plot([d.low, d.high], [row, row], color=colour, linewidth=2)
        axes.plot([d.mean], [row], "o", color=colour, markersize=5)
    axes.axvline(0.0, color="#8c959f", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(shown)), [v.arm for v in reversed(shown)])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlabel(f"ROUGE-L, difference to {evidence.study.baseline} (95 % interval over training seeds)")
    return _svg(figure)


def curve_plot(evidence: Evidence, name: str, label: str) -> str | None:
    """A curve of every arm, mean over its seeds; None where no arm has it."""
    curves = {arm: found for arm, by_seed in evidence.results.items() if (found := _mean_curve(by_seed, name))}
    return _lines(curves, "optimiser step", label)


def exposure_plot(evidence: Evidence) -> str | None:
    """ExAccErr by length of the answer, every arm's mean over its seeds; None where no run has it."""
    curves = {}
    for arm, by_seed in evidence.results.items():
        each = [(r["metrics"].get("exposure") or {}).get("ex_acc_err") or [] for r in by_seed.values()]
        # a length that some run's answers don't reach, or that has no value there, has no mean
        columns = enumerate(zip(*each, strict=False), start=1)
        known = {length: sum(values) / len(values) for length, values in columns if None not in values}
        if known:
            curves[arm] = [*known], [*known.values()]
    return _lines(curves, "length of the answer, tokens", "ExAccErr, %")


def _lines(curves: Mapping[str, tuple[list[int], list[float]]], across: str, up: str) -> str | None:
    """One line per arm; None without any."""
    if not curves:
        return None
    figure, axes = _pyplot().subplots(figsize=(6.4, 3.6))
    styles = ["-", "--", ":", "-."]
    for number, (arm, (steps, values)) in enumerate(curves.items()):
        style = styles[number // 10 % len(styles)]
        # a line through one point is not seen
        marker = "o" if len(steps) == 1 else None
        axes.plot(steps, values, style, marker=marker, label=arm, linewidth=1.4, color=f"C{number % 10}")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    return _svg(figure)


def _mean_curve(by_seed: dict[int, Result], name: str) -> tuple[list[int], list[float]] | None:
    """Mean over seeds at the steps that all of them have."""
    each = [
        dict(zip(r["curves"][name]["steps"], r["curves"][name]["values"], strict=True))
        for r in by_seed.values()
        if name in r["curves"]
    ]
    steps = sorted(set.intersection(*map(set, each))) if each else []
    return (steps, [sum(curve[s] for curve in each) / len(each) for s in steps]) if steps else None


CURVE_PLOTS = {
    "dev.svg": ("Dev ROUGE-L while training, mean over", "val/rouge_l", "dev ROUGE-L"),
    "loss.svg": ("Dev loss while training, mean over", "val/loss", "dev loss, nats"),
    "lower.svg": ("Lower clipping bound, mean over tokens and", "dac/lower", "cumulative mass"),
    "upper.svg": ("Upper clipping bound, mean over tokens and", "dac/upper", "cumulative mass"),
}
"""File name -> caption, curve, label of the axis."""


def all_plots(evidence: Evidence) -> dict[str, tuple[str, str]]:
    """File name -> (caption, SVG)."""
    alike = evidence.of_shared_seeds()
    over = alike.seeds_in_words
    drawn = {
        **{
            "differences.svg" if name == "test" else f"differences-{re.sub(r'[^A-Za-z0-9_-]', '_', name)}.svg": (
                f"Difference to {evidence.study.baseline} on {set_in_words(name)}, with 95 % intervals",
                interval_plot(evidence, name),
            )
            for name in evidence.test_sets
        },
        **{
            file: (f"{caption} {over}", curve_plot(alike, curve, label))
            for file, (caption, curve, label) in CURVE_PLOTS.items()
        },
        "exposure.svg": (
            f"Excess accumulated error (ExAccErr) up to a length, on the test prompts, mean over {over}",
            exposure_plot(alike),
        ),
    }
    return {name: (caption, svg) for name, (caption, svg) in drawn.items() if svg is not None}
