"""How many files a reader passes: of one training step, of a round of text, of the way to `Trainer.fit`.

    python -m experiments.bench.hops [--list]

A profiler follows a tiny run of the main job. A *file* is one of the package in which some function ran. A *hop*
is a call from one file of the package into another. Calling a function again from the same file is no further hop;
neither are comprehensions and lambdas, which a reader does not look up. A *room* is a file, with `losses/fused` as
one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L

import mgsr
from mgsr.config.load import load_config
from mgsr.config.schema import ExperimentConfig
from mgsr.training.datamodule import DistillationDataModule
from mgsr.training.module import DistillationModule
from mgsr.training.train import train

ROOT = Path(mgsr.__file__).parent
DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
TINY = (
    "data.synthetic={teacher_rows: 48, train_rows: 32, dev_rows: 6, test_rows: 6, vocab_size: 300}",
    *(f"{m}.architecture.{key}" for m in ("teacher", "student") for key in ("hidden_size=8", "num_heads=2")),
    *(f"{model}.architecture.num_layers=1" for model in ("teacher", "student")),
    *(f"{model}.sft.max_steps=2" for model in ("teacher", "student")),
    *("train.max_steps=2", "train.batch_size=8", "train.micro_batch_size=8", "scrg.max_new_tokens=6"),
    *("evaluation.seeds=[10]", "evaluation.max_new_tokens=6", "trainer.log_every_n_steps=1"),
)


class ReachedFitError(Exception):
    """The way to `Trainer.fit` has been followed."""


class Way:
    """What a profiler has seen: files, and hops as (calling file, called file, called function)."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.hops: set[tuple[str, str, str]] = set()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        called = _file(frame)
        if event != "call" or called is None or frame.f_code.co_name.startswith("<"):
            return
        self.files.add(called)
        caller = frame.f_back
        while caller is not None and _file(caller) is None:
            caller = caller.f_back
        source = None if caller is None else _file(caller)
        if source is not None and source != called:
            self.hops.add((source, called, getattr(frame.f_code, "co_qualname", frame.f_code.co_name)))

    @property
    def rooms(self) -> int:
        return len({"losses/fused" if file.startswith("losses/fused") else file for file in self.files})

    def follow(self, function: Callable[..., Any], when: Callable[..., bool] = lambda *_: True) -> Any:
        """`function`, its first call for which `when` holds followed."""

        def followed(*arguments: Any, **named: Any) -> Any:
            if self.files or not when(*arguments):
                return function(*arguments, **named)
            sys.setprofile(self)
            try:
                return function(*arguments, **named)
            finally:
                sys.setprofile(None)

        return followed


def _file(frame: FrameType) -> str | None:
    path = Path(frame.f_code.co_filename)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else None


def tiny(root: Path, arm: str) -> ExperimentConfig:
    return load_config(DEMO, [f"run_root={root}", f"arm={arm}", *TINY])


def measure(root: Path) -> dict[str, Way]:
    """The three ways, of one run and the beginning of a second, which finds its models made."""
    step, round_, begin = Way(), Way(), Way()
    training_step, plan_epoch, fit = (
        DistillationModule.training_step,
        DistillationDataModule.plan_epoch,
        L.Trainer.fit,
    )

    def stop(*_: Any, **__: Any) -> None:
        raise ReachedFitError

    try:
        DistillationModule.training_step = step.follow(  # type: ignore[method-assign]
            training_step, lambda module, *_: module.objective.needs_teacher
        )
        DistillationDataModule.plan_epoch = round_.follow(  # type: ignore[method-assign]
            plan_epoch, lambda data, *_: data.rounds is not None
        )
        with redirect_stdout(StringIO()):
            train(tiny(root, "first"))
            L.Trainer.fit = stop  # type: ignore[method-assign]
            begin.follow(train)(tiny(root, "second"))
    except ReachedFitError:
        pass
    finally:
        DistillationModule.training_step = training_step  # type: ignore[method-assign]
        DistillationDataModule.plan_epoch = plan_epoch  # type: ignore[method-assign]
        L.Trainer.fit = fit  # type: ignore[method-assign]
    return {"training_step": step, "plan_epoch with a round": round_, "train() up to fit": begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name every hop")
    listed = parser.parse_args().list
    with tempfile.TemporaryDirectory() as root:
        ways = measure(Path(root))
    print("| way | files | rooms | hops |\n|---|---|---|---|")
    for name, way in ways.items():
        print(f"| {name} | {len(way.files)} | {way.rooms} | {len(way.hops)} |")
    for name, way in ways.items() if listed else ():
        print(f"\n{name}")
        for source, called, function in sorted(way.hops):
            print(f"  {source} -> {called}: {function}")


if __name__ == "__main__":
    main()
