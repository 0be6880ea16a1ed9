"""Tables and plots of `results.json`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from experiments.bench import ends
from experiments.bench.medians import memory, per_process, rate, seconds, spread
from experiments.bench.ratios import summary, without_gradient

NAMES = {
    "mgsr": "mgsr: cross-entropy + DAC-KL + span (3 terms)",
    "mgsr_network": "mgsr with a clip network and its gradient (3 terms)",
    "mgsr_forward_kl": "mgsr: forward KL (1 term)",
    "liger": "Liger: cross-entropy + KL (2 terms)",
    "liger_kl": "Liger: KL (1 term)",
    "trl": "TRL: KL (1 term)",
    "products": "the four matrix products alone, tiles of 64",
    "wide_products": "the four matrix products alone, tiles of 224",
    "mgsr_round": "mgsr, whole round",
    "naive_round": "generate + 2 forwards + generate",
    "mgsr_sampling": "mgsr, plain sampling",
    "generate_sampling": "generate, plain sampling",
    "lightning": "mgsr under Lightning",
    "bare": "bare PyTorch loop",
    "mgsr_gkd": "mgsr, GKD preset",
    "mgsr_full": "mgsr, full MGSR",
    "trl_gkd": "TRL GKDTrainer",
}


def timed(case: str, runs: Sequence[Mapping[str, Any]], digits: int, *more: str) -> list[str]:
    """A row: what, median seconds, their range over processes, and further cells."""
    return [NAMES[case], f"{seconds(runs):.{digits}f}", spread(runs), *more]


def write(machines: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """README.md and its plots, of the results of every machine by its name."""
    lines = [
        "# Benchmarks",
        "",
        "```",
        "make bench",
        "```",
        "",
        "All figures are of a CPU and two threads, in float32 but where another type is named. Every measurement runs in",
        "a process of its own, one of each in turn; a figure is the median over processes of the process's median. Memory",
        "is the peak of resident memory above where it stood before the call. Before anything is timed the objective's",
        "value and gradients, with fixed bounds and with a clip network, are compared with the dense functions, and the",
        "peers' with mgsr's; greedy text with `generate`'s, and a round with one that reads every corrected prefix",
        "afresh; every step's loss under Lightning with the bare loop's. Every machine has a chapter, and every section",
        "names its commit: one from before a check was added did not have it.",
        "",
        *summary(machines),
    ]
    for name, results in machines.items():
        lines += [f"## On {name}", ""]
        for group, section in SECTIONS.items():
            if group in results:
                found = results[group]
                lines += section(found.get("pair"), found["figures"], folder, slug(name))
                lines += [_stamp(found), ""]
    (folder / "README.md").write_text("\n".join(lines))


def slug(machine: str) -> str:
    """The name of a machine as part of a file's name.

    >>> slug("Intel(R) Xeon(R) Processor")
    'intel-r-xeon-r-processor'
    """
    return "-".join(re.findall("[a-z0-9]+", machine.lower()))


def _stamp(result: Mapping[str, Any]) -> str:
    e = result["environment"]
    peers = ", ".join(f"{name} {e[name]}" for name in ("trl", "liger-kernel") if name in e)
    tree = " (with uncommitted changes)" if e["dirty"] else ""
    return (
        f"*Commit {e['commit'][:7]}{tree}, {e['cores']} cores of {e['cpu']}, torch {e['torch']}, transformers "
        f"{e['transformers']}, lightning {e['lightning']}{', ' + peers if peers else ''}; "
        f"{result['processes']} process{'' if result['processes'] == 1 else 'es'}.*"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def _objective(pair: Any, figures: Mapping[str, Any], folder: Path, machine: str) -> list[str]:
    mine, memory_mine = seconds(figures["mgsr"]), memory(figures["mgsr"])
    rows = [
        timed(
            case,
            runs,
            3,
            f"{memory(runs):.0f}",
            f"{mine / seconds(runs):.2f}",
            f"{memory_mine / memory(runs):.2f}" if memory(runs) else "",
        )
        for case, runs in figures.items()
    ]
    return [
        "### The objective from hidden states",
        "",
        "Forward and backward of 1,024 tokens, 128 of them masked, 50,257 classes, student hidden 256, teacher 384,",
        "clip (0.1, 0.95). The ratio columns divide mgsr's three terms by the row. Liger runs with compiled=False and",
        "chunks of 128. The bare products are PyTorch's own; on a processor of AMD's mgsr takes those with an output layer",
        "the other way around, which is quicker there and gives the same sums (`mgsr/losses/projection.py`).",
        "",
        *_table(["", "s", "range", "added MiB", "mgsr / row, time", "mgsr / row, memory"], rows),
    ]


def _growth(pair: Any, figures: Mapping[str, Any], folder: Path, machine: str) -> list[str]:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "mgsr"
    from matplotlib import pyplot

    plot, axes = pyplot.subplots(1, 4, figsize=(17, 3.6))
    series = {"mgsr": figures["tokens"], "liger": figures["peers"], "trl": figures["peers"]}
    for case, points in series.items():
        counts = [int(n) for n in points]
        axes[0].plot(counts, [seconds(p[case]) for p in points.values()], marker="o", label=case)
        axes[1].plot(counts, [memory(p[case]) for p in points.values()], marker="o", label=case)
    classes = figures["classes"]
    widths = [int(n) for n in classes]
    axes[2].plot(widths, [seconds(p["mgsr"]) for p in classes.values()], marker="o")
    axes[3].plot(widths, [memory(p["mgsr"]) for p in classes.values()], marker="o")
    for axis, title, unit, label in zip(
        axes,
        ("time", "added memory", "time, 1,024 tokens", "added memory, 1,024 tokens"),
        ("s", "MiB", "s", "MiB"),
        ("tokens", "tokens", "classes", "classes"),
        strict=True,
    ):
        axis.set(title=title, ylabel=unit, xlabel=label, xscale="log", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].legend()
    plot.tight_layout()
    plot.savefig(folder / f"growth-{machine}.svg", metadata={"Date": None})
    pyplot.close(plot)
    rows = [
        [
            f"{int(n):,}",
            f"{seconds(p['mgsr']):.2f}",
            f"{memory(p['mgsr']):.0f}",
            f"{without_gradient(n, p):.0f}",
        ]
        for n, p in figures["tokens"].items()
    ]
    more = [[f"{int(n):,}", f"{seconds(p['mgsr']):.2f}", f"{memory(p['mgsr']):.0f}"] for n, p in classes.items()]
    return [
        "### How cost grows",
        "",
        f"![time and memory against tokens and classes](growth-{machine}.svg)",
        "",
        "mgsr's three terms at 50,257 classes. Added memory includes the gradient to the student's",
        "hidden states, which has their size; the last column leaves it out.",
        "",
        *_table(["tokens", "s", "added MiB", "without that gradient"], rows),
        "1,024 tokens:",
        "",
        *_table(["classes", "s", "added MiB"], more),
    ]


def _own_command(pair: Any) -> list[str]:
    if pair is None:
        return []
    return ["```", f"make bench ARGS='--only pair pair_step --pair {' '.join(pair)}'", "```", ""]


def _long_prompts(pair: Any, figures: Mapping[str, Any], folder: Path, machine: str) -> list[str]:
    lines = _rounds(pair, figures, folder, machine)
    lines[0] += ", prompts as long as Dolly's"
    lines[2] = (
        "As above, the prompts drawn out to the lengths that Dolly's have in tokens of SmolLM2 (median 44, 10 % above 185)."
    )
    return lines


def _rounds(pair: Any, figures: Mapping[str, Any], folder: Path, machine: str) -> list[str]:
    rows = [timed(case, runs, 2, f"{rate(runs):.0f}", f"{memory(runs):.0f}") for case, runs in figures.items()]
    what = (
        "The demo's fine-tuned teacher and student, 256 of its prompts, at most 32 new tokens, batches of 64."
        if pair is None
        else f"Teacher {pair[0]}, student {pair[1]} (folders), 32 prompts of {pair[2]} (cut to 128 tokens), at most 64 new tokens."
    )
    return [
        "### A round of SCRG" + ("" if pair is None else ", models and prompts of one's own"),
        "",
        *_own_command(pair),
        what,
        f"A whole round takes {seconds(figures['mgsr_round']) / seconds(figures['naive_round']):.2f} of the naive time; "
        f"plain sampling at batch 32 writes {rate(figures['mgsr_sampling']) / rate(figures['generate_sampling']):.2f} times the tokens/s.",
        "",
        *_table(["", "s", "range", "tokens/s", "added MiB"], rows),
    ]


def _flips(pair: Any, figures: Mapping[str, Any], folder: Path, machine: str) -> list[str]:
    rows = [
        [dtype, f"{100 * runs[0]['changed']:.2f} %", f"{100 * runs[0]['per_token']:.3f} %"]
        for dtype, runs in figures.items()
    ]
    return [
        "### Does the text depend on the batch?",
        "",
        "The demo's student writes to 256 prompts in batches of 64 and again of 3. Every draw has a key of its own, so",
        "only rounding can make a difference.",
        "",
        *_table(["weights", "sequences that differ", "flips per token"], rows),
    ]


def _step(pair: Any, figures: Mapping[str, Any], folder: Path, machine: str) -> list[str]:
    light = [run["seconds"][0] for run in figures["both"]]
    bare = [run["bare"][0] for run in figures["both"]]
    ratios = per_process(figures["both"], "seconds", "bare")
    rows = [
        [NAMES[name], f"{1000 * median(each):.1f}", f"{min(each):.3g} to {max(each):.3g}"]
        for name, each in (("lightning", light), ("bare", bare))
    ]
    what = (
        "The demo's models and text, batch 32, all three terms; 200 steps after 5 of warm-up, both step by step in turn."
        if pair is None
        else f"Teacher {pair[0]}, student {pair[1]}, {pair[2]}, batch 4, ground truth, all three terms; 6 steps after 2 of warm-up."
    )
    return [
        "### A training step" + ("" if pair is None else ", models and rows of one's own"),
        "",
        *_own_command(pair),
        what,
        "The bare loop does the two forwards, the objective, backward, clipping, optimiser and schedule, and nothing else.",
        f"Lightning takes {median(ratios):.3f} of its time ({min(ratios):.3f} to {max(ratios):.3f}), data loading and curves",
        "included" + (", and the gradient norm of every term once in 200 steps." if pair is None else "."),
        "",
        *_table(["", "ms per step", "range in s"], rows),
    ]


def _ends(pair: Any, figures: Mapping[str, Any], folder: Path, machine: str) -> list[str]:
    lines, header, rows = ends.told(figures)
    return [*lines, *_table(header, rows)]


def _peers(pair: Any, figures: Mapping[str, Any], folder: Path, machine: str) -> list[str]:
    rows = []
    for case, runs in figures.items():
        scores = [run["rouge_l"] for run in runs]
        each = ", ".join(f"{score:.2f}" for score in scores)
        rows.append(timed(case, runs, 1, f"{sum(scores) / len(scores):.2f}", each))
    return [
        "### End to end against TRL",
        "",
        "The demo's models and rows, 400 steps of 32 sequences, from the same SFT student: wall-clock of training and",
        "test ROUGE-L of the last weights, one run per training seed. TRL writes on-policy text in about half of its",
        "steps, at every such step; mgsr writes one round per epoch, for half of each step's prompts. mgsr's clock also",
        "covers its spans, a look at the dev set, checkpoints and curves.",
        "",
        *_table(["", "s", "range", "ROUGE-L", "by seed"], rows),
    ]


SECTIONS: dict[str, Callable[[Any, Mapping[str, Any], Path, str], list[str]]] = {
    "objective": _objective,
    "growth": _growth,
    "rounds": _rounds,
    "long_prompts": _long_prompts,
    "pair": _rounds,
    "flips": _flips,
    "step": _step,
    "pair_step": _step,
    "peers": _peers,
    "ends": _ends,
}
