"""The plots of a report, as SVG text that is the same whenever the numbers are."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mgsr.study.analysis import Comparison, Sides
from mgsr.study.view import Run, View

COLOURS = {"better": "#1a7f37", "worse": "#b42318", "equivalent": "#0969da", "open": "#57606a", "": "#57606a"}


@dataclass(frozen=True)
class Row:
    """One line of a forest plot: a label, and per panel the comparison and the differences of single blocks."""

    label: str
    panels: Sequence[tuple[Comparison | None, Sequence[float]]]


def differences(view: View, sides: Sides, name: str) -> list[float]:
    """Mean of some arms minus mean of others, block by block, where all of them have run."""
    wide = view.frame(name).pivot(index="block", columns="arm", values="score")
    arms = [arm for side in sides for arm in side]
    if not {*arms} <= {*wide.columns}:
        return []
    with_, without = (wide[arms].dropna()[list(side)].mean(axis=1) for side in sides)
    return [float(value) for value in with_ - without]


def forest(rows: Sequence[Row], titles: Sequence[str], margin: float) -> str | None:
    """Intervals with a dot per seed, one panel per measure; the margin is shaded. None without any row."""
    if not rows:
        return None
    pyplot = _pyplot()
    size = (4.1 * len(titles) + 1.6, 0.9 + 0.34 * len(rows))
    figure, panels = pyplot.subplots(1, len(titles), figsize=size, sharey=True, squeeze=False)
    for column, (axes, title) in enumerate(zip(panels[0], titles, strict=True)):
        axes.axvspan(-margin, margin, color="#0969da", alpha=0.08, linewidth=0)
        axes.axvline(0.0, color="#8c959f", linewidth=1, linestyle="--")
        for place, row in enumerate(reversed(rows)):
            found, dots = row.panels[column]
            # the verdict is that of the primary measure, greedy answers
            colour = COLOURS[found.verdict if found is not None and column == 0 else ""]
            axes.plot(dots, [place] * len(dots), "o", color=colour, alpha=0.35, markersize=3.5, markeredgewidth=0)
            if found is None:
                continue
            if not math.isnan(found.low):
                axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2)
            axes.plot([found.effect], [place], "D", color=colour, markersize=5)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("difference in ROUGE-L")
        axes.set_ylim(-0.6, len(rows) - 0.4)
        _narrow(axes, [row.panels[column] for row in reversed(rows)], margin)
    panels[0][0].set_yticks(range(len(rows)), [row.label for row in reversed(rows)])
    return _svg(figure)


def _narrow(axes: Any, found: Sequence[tuple[Comparison | None, Sequence[float]]], margin: float) -> None:
    """Arms that swing widely leave the others room: an arrow stands where they go on beyond the axis.

    The effect itself is on the axis for every arm.
    """
    steady = [(one, dots) for one, dots in found if one is not None and not one.alone and not math.isnan(one.low)]
    if not steady or not any(one is not None and one.alone for one, _ in found):
        return
    edges = [-margin, margin, *(edge for one, dots in steady for edge in (one.low, one.high, *dots))]
    edges += [one.effect for one, _ in found if one is not None]
    room = 0.25 * (max(edges) - min(edges))
    low, high = min(edges) - room, max(edges) + room
    axes.set_xlim(low, high)
    for place, (one, dots) in enumerate(found):
        ends = [*dots, *([] if one is None or math.isnan(one.low) else [one.low, one.high])]
        for beyond, edge, mark in (
            (min(ends, default=0) < low, low, "<"),
            (max(ends, default=0) > high, high, ">"),
        ):
            if beyond:
                axes.plot([edge], [place], mark, color="#57606a", markersize=6, clip_on=False)


CURVES = {
    "dev ROUGE-L, greedy": "val/rouge_l",
    "dev loss, nats": "val/loss",
    "lower bound, cumulative mass": "dac/lower",
    "upper bound, cumulative mass": "dac/upper",
}
"""Label of the axis -> curve."""


def curve(view: View, name: str, label: str) -> str | None:
    """A curve of every arm, mean over its runs; None where no arm has more than a point of it."""
    curves = {arm: found for arm in view.arms if (found := _mean_curve(view.of(arm), name))}
    if max((len(steps) for steps, _ in curves.values()), default=0) < 2:
        return None
    figure, axes = _pyplot().subplots(figsize=(6.4, 3.6))
    styles = ["-", "--", ":", "-."]
    for number, (arm, (steps, values)) in enumerate(curves.items()):
        style = styles[number // 10 % len(styles)]
        # a line through one point is not seen
        marker = "o" if len(steps) == 1 else None
        axes.plot(steps, values, style, marker=marker, label=arm, linewidth=1.4, color=f"C{number % 10}")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(label)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    return _svg(figure)


def _mean_curve(runs: Sequence[Run], name: str) -> tuple[list[int], list[float]] | None:
    """Mean over runs at the steps that all of them have."""
    found: list[Mapping[str, Any]] = [run.result["curves"][name] for run in runs if name in run.result["curves"]]
    each = [dict(zip(one["steps"], one["values"], strict=True)) for one in found]
    steps = sorted(set.intersection(*map(set, each))) if each else []
    return (steps, [sum(one[step] for one in each) / len(each) for step in steps]) if steps else None


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
