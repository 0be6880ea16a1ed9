"""`make bench`: every measurement in a process of its own, interleaved, and the report of them all.

    python -m experiments.bench.run [--processes 5] [--only GROUP ...] [--pair TEACHER STUDENT DATA]

Figures go to experiments/bench/results.json, the report to README.md beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from experiments.bench import report
from mgsr.runtime.environment import environment

HERE = Path(__file__).parent
GROUPS = ("objective", "growth", "rounds", "long_prompts", "pair", "flips", "step", "pair_step", "peers", "ends")
OBJECTIVE = ("mgsr", "mgsr_network", "mgsr_forward_kl", "liger", "liger_kl", "trl", "products", "wide_products")
ROUNDS = ("mgsr_round", "naive_round", "mgsr_sampling", "generate_sampling")
TOKENS = (512, 1024, 2048, 4096, 8192, 16384)
CLASSES = (8192, 32768, 50257, 128256)


def worker(group: str, case: str, **options: Any) -> dict[str, Any]:
    """The figures of one process.

    Raises:
        RuntimeError: it failed; its last lines are in the message.
    """
    command = [sys.executable, "-m", "experiments.bench.worker", group, case, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{group} {case}: {' | '.join(done.stderr.strip().splitlines()[-3:])}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def interleaved(group: str, cases: Sequence[str], processes: int, **options: Any) -> dict[str, list[Any]]:
    """`processes` runs of every case, one of each in turn, so that a slow minute hits all alike."""
    found: dict[str, list[Any]] = {case: [] for case in cases}
    for turn in range(processes):
        for case in cases:
            start = time.monotonic()
            found[case].append(worker(group, case, **options))
            took = time.monotonic() - start
            print(f"{group} {case} {turn + 1}/{processes}: {took:.0f} s", flush=True)
    return found


def growth(
    cases: Sequence[str], what: str, sizes: Sequence[int], processes: int
) -> dict[int, dict[str, list[Any]]]:
    """The cases at every size, one of each in turn."""
    found: dict[int, dict[str, list[Any]]] = {size: {case: [] for case in cases} for size in sizes}
    for _ in range(processes):
        for size in sizes:
            for case, runs in interleaved("objective", cases, 1, brief=True, **{what: size}).items():
                found[size][case].extend(runs)
    return found


def measure_group(group: str, processes: int, pair: Sequence[str] | None) -> Any:
    if group == "objective":
        worker("objective", "check")
        return interleaved("objective", OBJECTIVE, processes)
    if group == "growth":
        worker("objective", "check")
        return {
            "tokens": growth(["mgsr"], "tokens", TOKENS, processes),
            "classes": growth(["mgsr"], "classes", CLASSES, processes),
            "peers": growth(["liger", "trl"], "tokens", TOKENS[:4], processes),
        }
    if group in ("rounds", "long_prompts"):
        options: dict[str, Any] = {"as_long_as_dolly": True} if group == "long_prompts" else {}
        worker("rounds", "check", **options)
        return interleaved("rounds", ROUNDS, processes, **options)
    if group == "pair":
        if pair is None:
            return None
        options = {"teacher": pair[0], "student": pair[1], "data": pair[2], "prompts": 32}
        worker("rounds", "check", **options)
        return interleaved("rounds", ROUNDS, processes, **options)
    if group == "flips":
        return interleaved("rounds", ("float64", "float32", "bfloat16"), 1)
    if group == "step":
        return interleaved("step", ("both",), processes, steps=200)
    if group == "pair_step":
        if pair is None:
            return None
        return interleaved("step", ("both",), processes, steps=6, warm_up=2, pair=list(pair))
    if group == "ends":
        return interleaved("ends", ("corrections", "finish", "end", "end_of_old"), processes)
    found: dict[str, list[Any]] = {}
    for seed in range(processes):
        for case, runs in interleaved("peers", ("mgsr_gkd", "mgsr_full", "trl_gkd"), 1, seed=seed).items():
            found.setdefault(case, []).extend(runs)
    return found


def versions() -> dict[str, str]:
    found = {}
    for name in ("trl", "liger-kernel", "accelerate", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5, help="repetitions of every measurement (default: 5)")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="measure these again")
    parser.add_argument(
        "--pair",
        nargs=3,
        metavar=("TEACHER", "STUDENT", "DATA"),
        help="also time rounds and steps of two model folders",
    )
    arguments = parser.parse_args()
    path = HERE / "results.json"
    machines: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    # a dirty tree measures something that no commit holds
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "mgsr", "experiments/bench/*.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    stamp = {**environment(), **versions(), "dirty": bool(dirty.stdout)}
    # results of other kinds of machine stay as they are, behind this one's
    results = machines.pop(stamp["cpu"], {})
    machines = {stamp["cpu"]: results, **machines}
    if arguments.only == list(GROUPS):
        # the demo's models are made before anything is timed
        worker("rounds", "check")
    for group in arguments.only:
        figures = measure_group(group, arguments.processes, arguments.pair)
        if figures is not None:
            processes = 1 if group == "flips" else arguments.processes
            results[group] = {"environment": stamp, "processes": processes, "figures": figures}
            if group.startswith("pair"):
                results[group]["pair"] = [Path(name).name for name in arguments.pair]
            path.write_text(json.dumps(machines, indent=1) + "\n")
    report.write(machines, HERE)
    print(f"written to {HERE / 'README.md'}")


if __name__ == "__main__":
    main()
