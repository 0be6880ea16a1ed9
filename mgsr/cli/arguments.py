"""The parser: what `mgsr COMMAND` takes, with `key=value` words anywhere."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mgsr import __version__
from mgsr.cli.help import (
    ABLATE_HELP,
    DOCTOR_HELP,
    EVALUATE_HELP,
    EXPORT_HELP,
    INIT_HELP,
    PLAN_HELP,
    REPORT_HELP,
    TEXTS_HELP,
    TRAIN_HELP,
)
from mgsr.cli.hints import hint_at_rest, hint_at_word
from mgsr.cli.streams import tell
from mgsr.runtime.errors import did_you_mean

# a dash is no part of a key, but of what people type: the key that is meant is named where keys are read
_OVERRIDE = re.compile(r"[A-Za-z_][\w.-]*=")
_OVERRIDABLE = ("train", "init", "ablate", "doctor", "plan", "config")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        tell(f"error: {message}; {self.prog} --help says what it takes")
        sys.exit(2)


def _number(kind: type, least: float, most: float = float("inf")) -> Callable[[str], Any]:
    """An argument that is a finite number of at least so much, and at most so much."""

    def read(text: str) -> Any:
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number of at least {least:g}")
        if value > most:
            raise argparse.ArgumentTypeError(f"{text} is not a number of at most {most:g}")
        return value

    read.__name__ = kind.__name__
    return read


# of 64 bits, as torch takes them
_SEED = _number(int, 0, 2**63 - 1)


def build_parser() -> _Parser:
    """All commands with their options. Overrides are no arguments of it, see `parse`."""
    parser = _Parser(
        prog="mgsr", description="Distillation of language models by multi-granularity semantic revision."
    )
    parser.add_argument("--version", action="version", version=f"mgsr {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=summary, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    train = command("train", "distil a student", TRAIN_HELP)
    train.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file, such as configs/demo.yaml")
    train.add_argument("ignored", nargs="*", metavar="key=value", help="configuration keys to override")
    train.add_argument(
        "--resume", metavar="RUN", help="a run folder: go on where it stopped; `auto`: if CONFIG's has begun"
    )

    init = command("init", "print a file to start from, for models and data of one's own", INIT_HELP)
    init.add_argument("ignored", nargs="*", metavar="key=value", help="values to fill in")

    evaluate = command("evaluate", "measure a run or a model folder on data files", EVALUATE_HELP)
    evaluate.add_argument("source", metavar="RUN_OR_MODEL_FOLDER")
    evaluate.add_argument(
        "--data", nargs="+", required=True, metavar="FILE", help="rows: .jsonl, .json, .csv, .tsv, .parquet"
    )
    evaluate.add_argument(
        "--seeds", nargs="+", type=_SEED, metavar="N", help="sampling seeds (default: the run's)"
    )
    evaluate.add_argument(
        "--template", choices=("alpaca", "plain", "chat"), help="prompt template (default: the run's, or alpaca)"
    )
    evaluate.add_argument("--temperature", type=_number(float, 0.0), help="0 is greedy (default: the run's, or 1)")
    evaluate.add_argument(
        "--max-new-tokens", type=_number(int, 1), metavar="N", help="longest answer (default: the run's)"
    )
    evaluate.add_argument("--batch-size", type=_number(int, 1), metavar="N", help="answers written at once")
    evaluate.add_argument(
        "--limit", type=_number(int, 0), default=0, metavar="N", help="only the first N rows of each file"
    )
    evaluate.add_argument(
        "--teacher",
        nargs="?",
        const="run",
        metavar="FOLDER",
        help="also measure exposure bias (ExAccErr) and perplexity under this teacher; alone: the run's own",
    )
    evaluate.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="where to (default: auto)"
    )
    evaluate.add_argument("--out", metavar="FILE", help="write the figures as JSON, the answers beside it")

    export = command("export", "a run's student as a folder for transformers or peft", EXPORT_HELP)
    export.add_argument("run", metavar="RUN")
    export.add_argument("out", metavar="OUT")
    export.add_argument(
        "--merge",
        action="store_true",
        help="add adapters into the weights: a plain folder (without adapters this changes nothing)",
    )

    ablate = command("ablate", "run a study: arms x seeds", ABLATE_HELP)
    ablate.add_argument("study", metavar="STUDY", help="a YAML file, or a name: scrg (mgsr config --list)")
    ablate.add_argument("ignored", nargs="*", metavar="key=value", help="overrides for every arm")
    ablate.add_argument(
        "--seeds", nargs="+", type=_SEED, default=[0], metavar="N", help="training seeds (default: 0)"
    )
    ablate.add_argument(
        "--config", metavar="CONFIG", help="your models and data as the base; results stay below run_root"
    )
    ablate.add_argument("--question", metavar="TEXT", help="what its report begins with")
    ablate.add_argument("--arms", nargs="+", default=[], metavar="ARM", help="only these arms")
    ablate.add_argument(
        "--jobs", type=_number(int, 1), default=1, metavar="N", help="runs side by side (default: 1)"
    )
    ablate.add_argument(
        "--record",
        action="store_true",
        help="read and write small result files in results/ beside the study (of an installed one, in "
        "runs/STUDY/results); recorded runs are skipped",
    )

    report = command("report", "tables, plots and a page of a study's recorded results", REPORT_HELP)
    report.add_argument("study", metavar="STUDY", help="its runs (runs/scrg), a YAML file, or a name: scrg")
    report.add_argument(
        "--results", metavar="FOLDER", help="where the result files are (default: beside the study)"
    )
    report.add_argument("--out", metavar="FOLDER", help="where to write (default: beside the study)")

    doctor = command("doctor", "check a configuration before it runs", DOCTOR_HELP)
    doctor.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file (default: key=value words alone)")
    doctor.add_argument("ignored", nargs="*", metavar="key=value", help="configuration keys to override")
    doctor.add_argument("--json", action="store_true", help="findings and figures as JSON")
    doctor.add_argument(
        "--memory", metavar="SIZE", help="bytes of one device, as 80GB (default: what is free here)"
    )

    plan = command("plan", "what a run costs on several devices, and whether it fits", PLAN_HELP)
    plan.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file, such as configs/llama2.yaml")
    plan.add_argument("ignored", nargs="*", metavar="key=value", help="configuration keys to override")
    plan.add_argument(
        "--devices", type=_number(int, 1), default=1, metavar="N", help="devices per node (default: 1)"
    )
    plan.add_argument("--nodes", type=_number(int, 1), default=1, metavar="N", help="nodes (default: 1)")
    plan.add_argument("--gpu", default="80GB", metavar="SIZE", help="memory of one device (default: 80GB)")
    plan.add_argument(
        "--rows", type=_number(int, 1), metavar="N", help="training rows (default: those of data.train)"
    )
    for name, default, unit, text in (
        ("flops", 312, "TFLOPS", "peak of 16-bit products"),
        ("flops-float32", 19.5, "TFLOPS", "peak of float32 products"),
        ("mfu", 0.4, "SHARE", "share of the peak that is reached, at most 1"),
        ("bandwidth", 2039, "GB/s", "memory bandwidth of a device"),
        ("interconnect", 300, "GB/s", "between devices, one direction"),
        ("host", 25, "GB/s", "between a device and its host"),
    ):
        most = 1.0 if name == "mfu" else float("inf")
        plan.add_argument(
            f"--{name}", type=_number(float, 1e-6, most), default=default, metavar=unit, help=f"{text} ({default})"
        )
    plan.add_argument("--json", action="store_true", help="everything as JSON, in bytes, seconds and FLOPs")

    texts = command("texts", "revised sequences of a run, to read", TEXTS_HELP)
    texts.add_argument("run", metavar="RUN")
    texts.add_argument("--round", type=int, metavar="K", help="which round (default: the last)")
    texts.add_argument("--number", type=_number(int, 1), default=10, metavar="N", help="how many (default: 10)")

    config = command("config", "list every configuration key, or check a file", "List every configuration key.")
    config.add_argument("config", nargs="?", metavar="CONFIG", help="check this file and print it in full")
    config.add_argument("ignored", nargs="*", metavar="key=value", help="configuration keys to override")
    config.add_argument("--list", action="store_true", help="the configs and studies that come with mgsr, by name")
    return parser


def _is_file(word: str) -> bool:
    try:
        return bool(word) and Path(word).exists()
    except OSError:
        # too long for a name
        return False


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of a command, with `overrides` (the `key=value` words, which may stand anywhere) and `words`.

    Args:
        argv: what stands behind `mgsr`; None takes it from `sys.argv`.

    Raises:
        SystemExit: code 2, for words that the command does not take.
    """
    parser = build_parser()
    words = list(sys.argv[1:] if argv is None else argv)
    # taken out first: `--seeds 0 1 scrg.passes=3` would otherwise hand the override to --seeds
    overrides = [word for word in words if _OVERRIDE.match(word) and not _is_file(word)]
    _check_words(parser, words)
    arguments = parser.parse_args([word for word in words if word not in overrides])
    takes = arguments.command in _OVERRIDABLE
    # what argparse shows as key=value is no override
    rest = getattr(arguments, "ignored", None) or ([] if takes else overrides)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}; {hint_at_rest(rest, takes)}")
    for name in ("seeds", "arms"):
        # a run that is named twice is one run
        if getattr(arguments, name, None):
            setattr(arguments, name, list(dict.fromkeys(getattr(arguments, name))))
    arguments.overrides, arguments.words = overrides, words
    _say_of_repeated(overrides)
    return arguments


def _say_of_repeated(overrides: Sequence[str]) -> None:
    """Say of a key that is given twice which value holds; test sets add up."""
    last = {word.partition("=")[0]: word for word in overrides}
    for name, word in last.items():
        earlier = [one for one in overrides if one.partition("=")[0] == name and one != word]
        if earlier and name != "data.test_sets" and os.environ.get("RANK", "0") == "0":
            tell(f"`{name}` is given more than once; the last holds: {word}")


def _check_words(parser: _Parser, words: Sequence[str]) -> None:
    """Refuse what is typed as other programs take it, or as an editor has changed it."""
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    name = next((word for word in words if not word.startswith("-")), None)
    if name is None:
        return
    if name not in commands:
        near = did_you_mean(name, commands)
        ways = f"; type mgsr train {name}" if _is_file(name) else f": {', '.join(commands)}"
        parser.error(f"no command `{name}`{near or ways}")
    sub = commands[name]
    for word, following in zip(words, [*words[1:], ""], strict=True):
        hint = (
            None
            if _is_file(word)
            else hint_at_word(word, following, sub._option_string_actions, name in _OVERRIDABLE)
        )
        if hint:
            tell(f"error: {hint}")
            sys.exit(2)
