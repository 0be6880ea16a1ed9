"""`make torture`: kill runs at every fail point and at random times, resume them, and compare bit by bit.

    python -m tests.reliability.torture [--times 50] [--command-line 5] [--seed 0] [--jobs 1] [--keep FOLDER]

Every attempt starts from nothing (teacher and student included), is killed, taken up again, sometimes killed
again, and must end as a run that was left alone: weights, clip network, optimiser, text, curves, metrics.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mgsr.training.run_folder import run_folder
from tests.reliability.harness import CONFIGS, count_visits, differences, forked, one_run, small_config

MAX_TRIES = 12


@dataclass(frozen=True)
class Blow:
    """How one process of an attempt is ended: at a point (`name=action@visit`), or after so many seconds."""

    points: str = ""
    after: float | None = None

    def __str__(self) -> str:
        return self.points or (f"killed after {self.after:.2f} s" if self.after is not None else "left alone")


def plan(visits: dict[str, int], times: int, seconds: float, draw: random.Random) -> list[list[Blow]]:
    """Blows of every attempt: each point once, at a visit drawn at random; random times for the rest, 1 in 4.

    Returns:
        `times` attempts, or as many as it takes to reach every point.
    """
    blows = []
    for name in sorted(visits):
        tears = name.endswith(".half") or name == "checkpoint.renamed"
        # a torn file under its final name is what bad hardware leaves; of rounds and the last files of a run there
        # is no older copy to fall back to, so those are only killed
        action = "tear" if tears and draw.random() < 0.5 else "kill"
        # the first resume point of all has none before it: torn, it is refused by name and not survived
        torn = action == "tear" and name == "checkpoint.renamed"
        blows.append(Blow(f"{name}={action}@{visits[name] if torn else draw.randint(1, visits[name])}"))
    timed = max(times - len(blows), len(blows) // 3)
    blows += [Blow(after=draw.uniform(0.05, seconds)) for _ in range(timed)]
    draw.shuffle(blows)
    return [
        [first, *(Blow(after=draw.uniform(0.05, seconds)) for _ in range(draw.choice((0, 0, 1, 2))))]
        for first in blows
    ]


def attempt(root: Path, blows: list[Blow], expected: Path, kind: str = "plain") -> tuple[bool, list[str]]:
    """Whether the run came to its end, and in what it differs."""
    config = small_config(root, *CONFIGS[kind])
    for number in range(MAX_TRIES):
        blow = blows[number] if number < len(blows) else Blow()
        code = forked(lambda blow=blow: one_run(config, blow.points), root / "log", blow.after)  # type: ignore[misc]
        if code == 0:
            return True, differences(expected, run_folder(config))
        if code != -signal.SIGKILL:
            return False, [f"exit code {code}: {_last_line(root / 'log')}"]
    return False, ["does not come to an end"]


def command_line_attempt(root: Path, after: float, expected: Path) -> tuple[bool, list[str]]:
    """The same with `python -m mgsr train` and a real `kill -9`."""
    config = small_config(root)
    run = run_folder(config)
    start = [sys.executable, "-m", "mgsr", "train", str(root / "torture.yaml"), f"run_root={root}/runs"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (root / "log").open("a") as log:
        process = subprocess.Popen(start, stdout=log, stderr=log, env=environment)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.returncode != 0:
            words = [*start[:4], "--resume", str(run)] if (run / "config.yaml").exists() else start
            code = subprocess.run(words, stdout=log, stderr=log, env=environment, check=False).returncode
            if code:
                return False, [f"exit code {code}: {_last_line(root / 'log')}"]
    return True, differences(expected, run)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


def torture(root: Path, times: int, command_line: int, seed: int, jobs: int) -> bool:
    """All of it; prints a line per attempt and the counts at the end."""
    draw = random.Random(seed)
    began = time.monotonic()
    expected, attempts = {}, []
    for kind, overrides in CONFIGS.items():
        place = root / f"reference-{kind}"
        reference, counts = small_config(place, *overrides), place / "visits.json"
        start = time.monotonic()
        code = forked(lambda reference=reference, counts=counts: count_visits(reference, counts), place / "log")  # type: ignore[misc]
        if code:
            print(f"torture: the run that is left alone failed: {_last_line(place / 'log')}")
            return False
        seconds, expected[kind] = time.monotonic() - start, run_folder(reference)
        visits = json.loads(counts.read_text())
        attempts += [(kind, blows) for blows in plan(visits, times // len(CONFIGS), seconds, draw)]
        print(f"torture: {kind}: a run takes {seconds:.1f} s and passes {len(visits)} fail points", flush=True)

    def one(numbered: tuple[int, tuple[str, list[Blow]]]) -> tuple[bool, list[str]]:
        number, (kind, blows) = numbered
        outcome = attempt(root / f"attempt-{number}", blows, expected[kind], kind)
        _report(f"[{number + 1}/{len(attempts)}] {kind}:", "; ".join(map(str, blows)), outcome, began)
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(one, enumerate(attempts)))
    real = []
    for number in range(command_line):
        # the first seconds of a process import what it needs: nothing to lose there
        after = draw.uniform(3.0, 10.0 + seconds)
        outcome = command_line_attempt(root / f"command-{number}", after, expected["plain"])
        _report(f"[command line {number + 1}/{command_line}]", f"killed after {after:.2f} s", outcome, began)
        real.append(outcome)
    print(f"torture, command line: {_counts(real)}")
    print(f"torture: {_counts(outcomes)}", flush=True)
    return all(survived and not wrong for survived, wrong in (*outcomes, *real))


def _report(which: str, blows: str, outcome: tuple[bool, list[str]], began: float) -> None:
    survived, wrong = outcome
    verdict = "identical" if survived and not wrong else "DIFFERS in " + ", ".join(wrong[:5])
    if not survived:
        verdict = "LOST: " + ", ".join(wrong)
    print(f"{which} {blows}: {verdict} ({time.monotonic() - began:.0f} s)", flush=True)


def _counts(outcomes: list[tuple[bool, list[str]]]) -> str:
    survived = sum(one for one, _ in outcomes)
    identical = sum(one and not wrong for one, wrong in outcomes)
    return f"{survived} of {len(outcomes)} survived, {identical} of {len(outcomes)} identical"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="attempts in forked workers, at least (default: 50)")
    parser.add_argument("--command-line", type=int, default=5, help="attempts with the real command line")
    parser.add_argument("--seed", type=int, default=0, help="of the plan")
    parser.add_argument("--jobs", type=int, default=1, help="attempts side by side")
    parser.add_argument("--keep", type=Path, help="leave everything in this folder")
    arguments = parser.parse_args()
    root = arguments.keep or Path(tempfile.mkdtemp(prefix="torture-"))
    try:
        well = torture(root, arguments.times, arguments.command_line, arguments.seed, arguments.jobs)
    finally:
        if arguments.keep is None:
            shutil.rmtree(root, ignore_errors=True)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
