"""One and two processes, one thread each: how fast, and where the time goes.

    python -m experiments.scaling.run [--repeats 3]

Writes experiments/scaling/README.md and results.json beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mgsr.runtime.environment import environment

HERE = Path(__file__).parent
CASES: dict[str, tuple[int, tuple[str, ...]]] = {
    "1 process": (1, ()),
    "2 processes, DDP": (2, ("trainer.strategy=ddp",)),
    "2 processes, FSDP2": (2, ("trainer.strategy=fsdp2",)),
    "2 processes, FSDP2, teacher sharded": (2, ("trainer.strategy=fsdp2", "teacher.placement=sharded")),
}


def measure(processes: int, overrides: tuple[str, ...]) -> dict[str, Any]:
    """One run.

    Raises:
        RuntimeError: it failed; its last lines are in the message.
    """
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += [
            "-m",
            "experiments.scaling.worker",
            f"run_root={root}",
            f"trainer.devices={processes}",
            *overrides,
        ]
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(" | ".join(done.stderr.strip().splitlines()[-5:]))
    return json.loads(lines[-1])


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over repetitions."""
    parts = {name: statistics.median(run["parts"][name] for run in runs) for name in runs[0]["parts"]}
    step = sum(seconds for name, seconds in parts.items() if name != "collectives under way")
    return {
        "parts": parts,
        "step": step,
        "tokens_per_second": runs[0]["tokens_per_step"] / step,
        "round_seconds": statistics.median(run["round_seconds"] for run in runs),
        "runs": runs,
    }


def report(found: dict[str, dict[str, Any]], where: dict[str, Any], repeats: int) -> str:
    alone = found["1 process"]
    names = [name for name in alone["parts"] if name != "collectives under way"]
    head = [
        "",
        "tokens/s",
        "ratio",
        "step, ms",
        *(f"{name}, ms" for name in names),
        "gloo under way, ms",
        "round, s",
        "ratio",
    ]
    rows = []
    for name, case in found.items():
        cells = [
            f"{case['tokens_per_second']:.0f}",
            f"{case['tokens_per_second'] / alone['tokens_per_second']:.2f}",
            f"{1e3 * case['step']:.0f}",
            *(f"{1e3 * case['parts'][part]:.0f}" for part in names),
            f"{1e3 * case['parts']['collectives under way']:.0f}",
            f"{case['round_seconds']:.2f}",
            f"{alone['round_seconds'] / case['round_seconds']:.2f}",
        ]
        rows.append(" | ".join([name, *cells]))
    table = "\n".join(f"| {row} |" for row in (" | ".join(head), " | ".join(["---"] * len(head)), *rows))
    return f"""# Scaling on one CPU

```
python -m experiments.scaling.run --repeats {repeats}
```

The same global batch (32 sequences) on one and on two processes with one thread each; medians over {repeats} runs,
and over their steps. `ratio` is the throughput against one process. Commit {str(where.get("commit"))[:7]},
{where["cores"]} logical cores of {where["cpu"]}, torch {where.get("torch")}.

{table}

Tokens are those of both models' forwards. "gloo under way" is the time per step in which collectives were running,
as the profiler saw it on the first rank, waiting for the other rank included; those of DDP overlap with backward.
The two processes share caches and memory, so these figures say what the strategies cost, not how GPUs scale.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CASES}
    for turn in range(repeats):
        for name, (processes, overrides) in CASES.items():
            runs[name].append(measure(processes, overrides))
            print(f"{name}, {turn + 1} of {repeats}: {runs[name][-1]}", flush=True)
    found = {name: summary(of_case) for name, of_case in runs.items()}
    where = environment()
    (HERE / "results.json").write_text(json.dumps({"environment": where, "cases": found}, indent=1) + "\n")
    (HERE / "README.md").write_text(report(found, where, repeats))


if __name__ == "__main__":
    main()
