"""Tables of `results.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from experiments.bench import ends, report_objective
from experiments.bench.medians import memory, per_process, rate, seconds
from experiments.bench.ratios import summary
from experiments.bench.tables import NAMES, own_command, table, timed


def write(machines: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """README.md, of the results of every machine by its name."""
    lines = [
        "# Benchmarks",
        "",
        "```",
        "make bench",
        "```",
        "",
        "All figures are of a CPU and two threads, in float32 but where another type is named. Every measurement runs in",
        "a process of its own, one of each in turn; a figure is the median over processes of the process's median. Memory",
        "is the peak of resident memory above where it stood before the call, from glibc's allocator as it is by default.",
        "That one maps blocks beyond 32 MiB anew each time, which costs a side the more, the larger its blocks are. With",
        "memory that is kept, leads of mgsr's over Liger and TRL are far smaller: `experiments/LOG.md` has the figures.",
        "All sides take numbers below the smallest normal one for 0; mgsr's processes also have PyTorch's threads wait",
        "less busily, as its command line does.",
        "",
        "The objective's value and gradients are compared with the dense functions before, with fixed bounds and with a",
        "clip network, and the peers' with mgsr's (Liger's as it is without its compiler). Greedy text is compared with",
        "`generate`'s, and a round with one that reads every corrected prefix afresh. Every step's loss under Lightning",
        "is compared with the bare loop's.",
        "",
        "Every machine has a chapter, and every section names its commit: one from before a check was added did not have",
        "it. The demo's rows and models are those of that commit: they are others since numerics version 3, so that the",
        "ratios of one row may be of different models.",
        "",
        *summary(machines),
    ]
    for name, results in machines.items():
        lines += [f"## On {name}", ""]
        for group, section in SECTIONS.items():
            if group in results:
                found = results[group]
                lines += section(found.get("pair"), found["figures"])
                lines += [_stamp(found), ""]
    (folder / "README.md").write_text("\n".join(lines))


def processor(environment: Mapping[str, Any]) -> str:
    """A machine's name: its processor, by family and model where they are known.

    >>> processor({"cpu": "AMD EPYC", "cpu_model": "family 25, model 1, stepping 1"}), processor({"cpu": "M2"})
    ('AMD EPYC (family 25, model 1)', 'M2')
    """
    model = ", ".join((environment.get("cpu_model") or "").split(", ")[:2])
    return f"{environment['cpu']} ({model})" if model else environment["cpu"]


def _stamp(result: Mapping[str, Any]) -> str:
    e = result["environment"]
    peers = ", ".join(f"{name} {e[name]}" for name in ("trl", "liger-kernel") if name in e)
    tree = " (with uncommitted changes)" if e["dirty"] else ""
    return (
        f"*Commit {e['commit'][:7]}{tree}, {e['cores']} cores of {processor(e)}, torch {e['torch']}, transformers "
        f"{e['transformers']}, lightning {e['lightning']}{', ' + peers if peers else ''}; "
        f"{result['processes']} process{'' if result['processes'] == 1 else 'es'}.*"
    )


def _rounds(pair: Any, figures: Mapping[str, Any]) -> list[str]:
    return [
        "### A round of SCRG",
        "",
        "The demo's teacher and student, 256 of its prompts, at most its `scrg.max_new_tokens` new tokens, batches of 64.",
        f"A whole round takes {seconds(figures['mgsr_round']) / seconds(figures['naive_round']):.2f} of the naive time; "
        f"plain sampling at batch 32 writes {rate(figures['mgsr_sampling']) / rate(figures['generate_sampling']):.2f} times the tokens/s.",
        "",
        *_sampled(figures),
    ]


def _sampled(figures: Mapping[str, Any]) -> list[str]:
    rows = [timed(case, runs, 2, f"{rate(runs):.0f}", f"{memory(runs):.0f}") for case, runs in figures.items()]
    return table(["", "s", "range", "tokens/s", "added MiB"], rows)


def _flips(pair: Any, figures: Mapping[str, Any]) -> list[str]:
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
        *table(["weights", "sequences that differ", "flips per token"], rows),
    ]


def _step(pair: Any, figures: Mapping[str, Any]) -> list[str]:
    light = [run["seconds"][0] for run in figures["both"]]
    bare = [run["bare"][0] for run in figures["both"]]
    ratios = per_process(figures["both"], "seconds", "bare")
    rows = [
        [NAMES[name], f"{1000 * median(each):.1f}", f"{min(each):.3g} to {max(each):.3g}"]
        for name, each in (("lightning", light), ("bare", bare))
    ]
    return [
        "### A training step",
        "",
        "The demo's models and text, batch 32, all three terms; 200 steps after 5 of warm-up, both step by step in turn.",
        "The bare loop does the two forwards, the objective, backward, clipping, optimiser and schedule, and nothing else.",
        "Times are means over the steps of a process.",
        f"Lightning takes {median(ratios):.3f} of its time ({min(ratios):.3f} to {max(ratios):.3f}), data loading and curves",
        "included, and the gradient norm of every term once in 200 steps.",
        "",
        *table(["", "ms per step", "range in s"], rows),
    ]


def _counted(pair: Any, figures: Mapping[str, Any]) -> list[str]:
    rows = [
        [name, *(f"{runs[kind][0][what]:.0f}" for what in ("passes", "reads") for kind in ("kernels", "plain"))]
        for name, runs in figures.items()
    ]
    header = ["", "passes, kernels", "passes, plain operations", "reads, kernels", "reads, plain operations"]
    return [
        "### What a GPU would do, counted on the CPU",
        "",
        "Passes over a tile's logits in one call of the objective, products of matrices aside, and how often the host",
        "waits for a value in a call and its backward. No time was taken: kernels run in Triton's interpreter.",
        "",
        *table(header, rows),
    ]


def _ends(pair: Any, figures: Mapping[str, Any]) -> list[str]:
    lines, header, rows = ends.told(figures)
    return [*lines, *table(header, rows)]


def _texts(runs: Sequence[Mapping[str, Any]]) -> str:
    """Texts that the student wrote, where results say so."""
    return f"{median(run['texts'] for run in runs):,.0f}" if all("texts" in run for run in runs) else "–"


def _peers(pair: Any, figures: Mapping[str, Any]) -> list[str]:
    rows = []
    for case, runs in figures.items():
        scores = [run["rouge_l"] for run in runs]
        each = ", ".join(f"{score:.2f}" for score in scores)
        rows.append(timed(case, runs, 1, _texts(runs), f"{sum(scores) / len(scores):.2f}", each))
    return [
        "### End to end against TRL",
        "",
        "The demo's models and rows, 400 steps of 32 sequences, from the same SFT student: wall-clock of training and",
        "test ROUGE-L of the last weights, one run per training seed. TRL writes on-policy text in about half of its",
        "steps, by the student as it is then, in batches of 32; mgsr writes one round per epoch, for half of each step's",
        "prompts, in batches of 256. mgsr's clock also covers its spans, a look at the dev set, checkpoints and curves.",
        "TRL's AdamW is the fused one, as transformers chooses it; mgsr's is not.",
        "",
        *table(["", "s", "range", "texts written", "ROUGE-L", "by seed"], rows),
    ]


def _pair_peers(pair: Any, figures: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            NAMES[case] + (", bf16" if precision == "bf16-mixed" else ", float32"),
            *timed(case, runs, 1, _texts(runs))[1:],
        ]
        for precision, cases in figures.items()
        for case, runs in cases.items()
    ]
    return [
        "### End to end against TRL, models and rows of one's own",
        "",
        *own_command(pair, "pair_peers"),
        f"Teacher {pair[0]}, student {pair[1]}, {pair[2]}: 24 steps of 8 sequences, at most 64 new tokens, one run per",
        "training seed. TRL writes text in about half of its steps, by the student as it is then, a batch of 8 at a time.",
        "mgsr writes one round for half of the rows, by the student as it starts, in batches of 32. Under bf16 TRL's teacher",
        "computes under autocast, and mgsr's has its weights in bf16. TRL's AdamW is the fused one.",
        "Before, both take the loss of the same three batches: it is the same within a ten-thousandth.",
        "",
        *table(["", "s", "range", "texts written"], rows),
    ]


def _precision(pair: Any, figures: Mapping[str, Any]) -> list[str]:
    what = {
        "scoring": "scoring 16 x 128 tokens",
        "round": "a round: 32 prompts of 48 tokens, 32 new ones, one correction",
        "step": "a training step of 16 x 128 tokens",
    }
    rows = []
    for case, name in what.items():
        wide, narrow = (figures[case][0][precision] for precision in ("32-true", "bf16-mixed"))
        rows.append([name, f"{median(wide):.2f}", f"{median(narrow):.2f}", f"{median(wide) / median(narrow):.2f}"])
    wide, narrow = (figures["curves"][0][precision] for precision in ("32-true", "bf16-mixed"))
    apart = [100 * abs(a - b) / abs(a) for a, b in zip(wide, narrow, strict=True)]
    return [
        "### float32 and bf16",
        "",
        *own_command(pair, "precision"),
        f"Teacher {pair[0]}, student {pair[1]}, text of {pair[2]}. One process each, the two in turn within it, medians.",
        "Of the first three steps of a run, and of the first round and scoring, no time is taken.",
        "Master weights, AdamW and the sums of the objective are float32 in both.",
        f"Over {len(wide)} steps of 4 x 48 tokens the two losses differ by {median(apart):.2f} % in the median and by",
        f"{max(apart):.2f} % at most.",
        "",
        *table(["", "float32, s", "bf16, s", "float32 / bf16"], rows),
    ]


def _rival(gguf: Any, figures: Mapping[str, Any]) -> list[str]:
    narrow, wide = (rate(figures[f"openvino_{d}"]) / rate(figures[f"mgsr_{d}"]) for d in ("bfloat16", "float32"))
    return [
        "### Sampling against an engine for CPUs",
        "",
        "```",
        f"make bench ARGS='--only rival --gguf {' '.join(gguf)}'",
        "```",
        "",
        f"Plain sampling of {gguf[0]}, 32 prompts of {gguf[1]} in one batch, at most 64 new tokens, temperature 1.",
        "OpenVINO keeps the weights packed in few bits, as the file has them; the others unpack them. It has taken the",
        "memory for its KV cache before the clock starts, so that its last column lacks it.",
        f"It writes {narrow:.2f} times the tokens/s of mgsr in bf16, {wide:.2f} times in float32. A backend on it would have to convert the student anew",
        "for every round, and to take its draws from mgsr's keys for text to stay the same; it has neither.",
        "",
        *_sampled(figures),
    ]


SECTIONS: dict[str, Callable[[Any, Mapping[str, Any]], list[str]]] = {
    "counted": _counted,
    "objective": report_objective.told,
    "text_objective": report_objective.told,
    "rounds": _rounds,
    "flips": _flips,
    "precision": _precision,
    "step": _step,
    "peers": _peers,
    "pair_peers": _pair_peers,
    "rival": _rival,
    "ends": _ends,
}
