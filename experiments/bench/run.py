"""`make bench`: every measurement in a process of its own, interleaved, and the report of them all.

    python -m experiments.bench.run [--processes 5] [--only GROUP ...] [--pair TEACHER STUDENT DATA]
                                       [--gguf FILE DATA]

Figures go to experiments/bench/results.json, the report to README.md beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from experiments.bench import report
from experiments.bench.medians import seconds
from experiments.bench.objective import KEPT_CLASSES, LIGER, TILES
from experiments.bench.rival import CASES as RIVALS
from mgsr.runtime.environment import environment

HERE = Path(__file__).parent
GROUPS = (
    "counted",
    "objective",
    "text_objective",
    "rounds",
    "flips",
    "precision",
    "step",
    "peers",
    "pair_peers",
    "rival",
    "ends",
)
OF_A_PAIR = ("text_objective", "precision", "pair_peers")
"""Need `--pair`."""
ONCE = ("flips", "precision", "counted")
"""One process each: text does not change from one to the next, or the process repeats by itself."""
OBJECTIVE = (
    "mgsr",
    "mgsr_network",
    "mgsr_forward_kl",
    *(f"mgsr_cached_{k}" for k in KEPT_CLASSES),
    "trl",
    *(f"products_{tile}" for tile in TILES),
)
ROUNDS = ("mgsr_round", "naive_round", "mgsr_sampling", "generate_sampling")


def worker(group: str, case: str, *, setting: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
    """The figures of one process; `setting`: of its environment.

    Raises:
        RuntimeError: it failed; its last lines are in the message.
    """
    command = [sys.executable, "-m", "experiments.bench.worker", group, case, json.dumps(options)]
    environment = {**os.environ, **(setting or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{group} {case}: {' | '.join(done.stderr.strip().splitlines()[-3:])}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def interleaved(group: str, cases: Sequence[str], processes: int, **options: Any) -> dict[str, list[Any]]:
    """`processes` runs of every case, one of each in turn, so that a slow minute hits all alike."""
    found: dict[str, list[Any]] = {case: [] for case in cases}
    for turn in range(processes):
        # to and fro, so that no case always comes after the same one
        for case in cases if turn % 2 == 0 else reversed(cases):
            start = time.monotonic()
            found[case].append(worker(group, case, **options))
            took = time.monotonic() - start
            print(f"{group} {case} {turn + 1}/{processes}: {took:.0f} s", flush=True)
    return found


def objective(processes: int, **options: Any) -> dict[str, Any]:
    """The objective's cases, among them Liger's fastest of all its settings.

    One process of each setting finds the fastest two; these are measured as often as all else.
    """
    worker("objective", "check", **options)
    scan: dict[str, Any] = {}
    likely: dict[str, list[str]] = {}
    for name, settings in LIGER.items():
        found = interleaved("objective", tuple(settings), 1, **options)
        likely[name] = sorted(found, key=lambda case: seconds(found[case]))[:2]
        scan |= found
    cases = interleaved(
        "objective", (*OBJECTIVE, *(case for two in likely.values() for case in two)), processes, **options
    )
    fastest: dict[str, str] = {}
    for name, two in likely.items():
        again = {case: cases.pop(case) for case in two}
        fastest[name] = min(again, key=lambda case: seconds(again[case]))
        cases[name] = again[fastest[name]]
    problem = worker("objective", "problem", **options)
    return {"problem": problem, "scan": scan, "fastest": fastest, "cases": cases}


def measure_group(group: str, processes: int, pair: Sequence[str] | None, gguf: Sequence[str] | None) -> Any:
    if group in OF_A_PAIR:
        return None if pair is None else measure_pair(group, processes, pair)
    if group == "rival":
        return None if gguf is None else interleaved("rival", RIVALS, processes, gguf=gguf[0], data=gguf[1])
    if group == "counted":
        from experiments.bench.counted import CASES

        interpreted = {"kernels": {"TRITON_INTERPRET": "1"}, "plain": {}}
        return {
            name: {
                kind: [worker("counted", name, setting=setting, kernels=kind == "kernels")]
                for kind, setting in interpreted.items()
            }
            for name in CASES
        }
    if group == "objective":
        return objective(processes)
    if group == "rounds":
        worker("rounds", "check")
        return interleaved("rounds", ROUNDS, processes)
    if group == "flips":
        return interleaved("rounds", ("float64", "float32", "bfloat16"), 1)
    if group == "step":
        return interleaved("step", ("both",), processes, steps=200)
    if group == "ends":
        return interleaved("ends", ("corrections", "finish", "end"), processes)
    return seeds("peers", ("mgsr_gkd", "mgsr_full", "trl_gkd"), processes)


def measure_pair(group: str, processes: int, pair: Sequence[str]) -> Any:
    options = dict(zip(("teacher", "student", "data"), pair, strict=True))
    if group == "text_objective":
        return objective(processes, **options)
    if group == "precision":
        return interleaved("precision", ("scoring", "round", "step", "curves"), 1, **options)
    worker("pair_peers", "check", **options)
    return {
        precision: seeds("pair_peers", ("mgsr_gkd", "trl_gkd"), processes, precision=precision, **options)
        for precision in ("32-true", "bf16-mixed")
    }


def seeds(group: str, cases: Sequence[str], processes: int, **options: Any) -> dict[str, list[Any]]:
    """Every process trains with a seed of its own, the same for all cases."""
    found: dict[str, list[Any]] = {}
    for seed in range(processes):
        for case, runs in interleaved(group, cases, 1, seed=seed, **options).items():
            found.setdefault(case, []).extend(runs)
    return found


def versions() -> dict[str, str]:
    found = {}
    for name in ("trl", "liger-kernel", "openvino-genai", "accelerate", "peft"):
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
        help="also time two model folders on a data file",
    )
    parser.add_argument(
        "--gguf", nargs=2, metavar=("FILE", "DATA"), help="also time sampling of a GGUF file against OpenVINO"
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
    machine = report.processor(stamp)
    results = machines.pop(machine, {})
    machines = {machine: results, **machines}
    if arguments.only == list(GROUPS):
        # the demo's models are made before anything is timed
        worker("rounds", "check")
    for group in arguments.only:
        figures = measure_group(group, arguments.processes, arguments.pair, arguments.gguf)
        if figures is not None:
            processes = 1 if group in ONCE else arguments.processes
            results[group] = {"environment": stamp, "processes": processes, "figures": figures}
            if group in OF_A_PAIR:
                results[group]["pair"] = [Path(name).name for name in arguments.pair]
            if group == "rival":
                results[group]["pair"] = [Path(name).name for name in arguments.gguf]
            path.write_text(json.dumps(machines, indent=1) + "\n")
    report.write(machines, HERE)
    print(f"written to {HERE / 'README.md'}")


if __name__ == "__main__":
    main()
