"""The parser: what `mgsr COMMAND` takes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from mgsr import __version__
from mgsr.cli.help import (
    ABLATE_HELP,
    COMPLETION_HELP,
    CONFIG_HELP,
    DOCTOR_HELP,
    EVALUATE_HELP,
    EXPORT_HELP,
    INIT_HELP,
    PLAN_HELP,
    REPORT_HELP,
    TEXTS_HELP,
    TRAIN_HELP,
    HelpFormatter,
)
from mgsr.cli.streams import tell


class Parser(argparse.ArgumentParser):
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


def build_parser() -> Parser:
    """All commands with their options. Overrides are no arguments of it, see `parsing`."""
    parser = Parser(
        prog="mgsr",
        description="Distillation of language models by multi-granularity semantic revision.",
        epilog="mgsr COMMAND --help says what a command takes, with examples.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mgsr {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, text: str, usage: str) -> argparse.ArgumentParser:
        # argparse would set options first, and a list of files before RUN would take RUN
        lines = [f"mgsr {name} {line}" for line in usage.split("\n")]
        sub = commands.add_parser(
            name, help=summary, usage="\n       ".join(lines), description=text, formatter_class=HelpFormatter
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    train = command(
        "train", "distil a student", TRAIN_HELP, "[CONFIG] [key=value ...]\n--resume RUN [key=value ...]"
    )
    train.add_argument(
        "config",
        nargs="?",
        metavar="CONFIG",
        help="a YAML file, or the name of one that comes with mgsr, such as demo",
    )
    train.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="configuration keys to override"
    )
    train.add_argument(
        "--resume", metavar="RUN", help="a run folder: go on where it stopped; `auto`: if CONFIG's has begun"
    )

    init = command(
        "init", "print a file to start from, for models and data of one's own", INIT_HELP, "[key=value ...]"
    )
    init.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="values to fill in")

    evaluate = command(
        "evaluate",
        "measure a run or a model folder on data files",
        EVALUATE_HELP,
        "RUN_OR_MODEL_FOLDER --data FILE [FILE ...] [options]",
    )
    evaluate.add_argument("source", metavar="RUN_OR_MODEL_FOLDER", help="whose student is measured")
    evaluate.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="FILE",
        help="rows: .jsonl, .json, .csv, .tsv (each also .gz), .parquet",
    )
    evaluate.add_argument(
        "--seeds", nargs="+", type=_SEED, metavar="N", help="sampling seeds (default: the run's)"
    )
    evaluate.add_argument(
        "--template", choices=("alpaca", "plain", "chat"), help="prompt template (default: the run's, or alpaca)"
    )
    evaluate.add_argument(
        "--temperature", type=_number(float, 0.0), metavar="T", help="0 is greedy (default: the run's, or 1)"
    )
    evaluate.add_argument(
        "--max-new-tokens", type=_number(int, 1), metavar="N", help="longest answer (default: the run's)"
    )
    evaluate.add_argument("--batch-size", type=_number(int, 1), metavar="N", help="answers written at once")
    evaluate.add_argument(
        "--limit", type=_number(int, 0), default=0, metavar="N", help="only the first N rows of each file"
    )
    evaluate.add_argument(
        "--rouge-tokenizer",
        choices=("published", "unicode"),
        help="what ROUGE-L takes for words (default: the run's, or published)",
    )
    evaluate.add_argument(
        "--teacher",
        nargs="?",
        const="run",
        metavar="FOLDER",
        help="also measure exposure bias (ExAccErr) and perplexity under this teacher; alone: the run's own",
    )
    evaluate.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda", "mps"),
        help="where it is measured (default: auto, a GPU if there is one)",
    )
    evaluate.add_argument("--out", metavar="FILE", help="write the figures as JSON, the answers beside it")

    export = command(
        "export",
        "a run's student as a folder for transformers or peft",
        EXPORT_HELP,
        "RUN OUT [options]",
    )
    export.add_argument("run", metavar="RUN", help="a run folder, such as runs/demo/full/seed=0")
    export.add_argument("out", metavar="OUT", help="the folder that is written, not there yet")
    export.add_argument(
        "--merge",
        action="store_true",
        help="add adapters into the weights: a plain folder (without adapters this changes nothing)",
    )
    export.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="",
        help="type of the weights (default: as they were trained)",
    )

    ablate = command("ablate", "run a study: arms x seeds", ABLATE_HELP, "STUDY [key=value ...] [options]")
    ablate.add_argument("study", metavar="STUDY", help="a YAML file, or a name: scrg (mgsr config --list)")
    ablate.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="overrides for every arm")
    ablate.add_argument(
        "--seeds",
        nargs="+",
        type=_SEED,
        default=[],
        metavar="N",
        help="training seeds (default: the study's, or 0)",
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
        help="read and write the pool of recorded runs beside the study's folder, not the one below run_root; "
        "recorded runs are skipped",
    )
    ablate.add_argument("--report", action="store_true", help="write the report at the end, as mgsr report does")

    report = command(
        "report",
        "tables, plots and a page of a study's recorded results",
        REPORT_HELP,
        "STUDY [--out FOLDER]",
    )
    report.add_argument(
        "study", metavar="STUDY", help="its runs (runs/scrg), a YAML file, a name (scrg), or a folder of studies"
    )
    report.add_argument("--out", metavar="FOLDER", help="where to write (default: beside the study)")

    doctor = command(
        "doctor",
        "check a configuration before it runs",
        DOCTOR_HELP,
        "[CONFIG] [key=value ...] [--json] [--memory SIZE]",
    )
    doctor.add_argument(
        "config", nargs="?", metavar="CONFIG", help="a YAML file, or a name: demo (default: key=value words alone)"
    )
    doctor.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="configuration keys to override"
    )
    doctor.add_argument("--json", action="store_true", help="findings and figures as JSON")
    doctor.add_argument(
        "--memory", metavar="SIZE", help="bytes of one device, as 80GB (default: what is free here)"
    )

    plan = command(
        "plan",
        "what a run costs on several devices, and whether it fits",
        PLAN_HELP,
        "[CONFIG] [key=value ...] [options]",
    )
    plan.add_argument(
        "config", nargs="?", metavar="CONFIG", help="a YAML file, or a name: llama2 (mgsr config --list)"
    )
    plan.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="configuration keys to override"
    )
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
        ("disk", 1, "GB/s", "written to where runs lie"),
    ):
        most = 1.0 if name == "mfu" else float("inf")
        plan.add_argument(
            f"--{name}",
            type=_number(float, 1e-6, most),
            default=default,
            metavar=unit,
            help=f"{text} (default: {default})",
        )
    plan.add_argument("--json", action="store_true", help="everything as JSON, in bytes, seconds and FLOPs")

    texts = command("texts", "revised sequences of a run, to read", TEXTS_HELP, "RUN [--round K] [--number N]")
    texts.add_argument("run", metavar="RUN", help="a run folder, such as runs/demo/full/seed=0")
    texts.add_argument("--round", type=int, metavar="K", help="which round (default: the last)")
    texts.add_argument("--number", type=_number(int, 1), default=10, metavar="N", help="how many (default: 10)")

    config = command(
        "config",
        "list configuration keys, or check a file",
        CONFIG_HELP,
        "[CONFIG | SECTION | KEY] [key=value ...] [--list]",
    )
    config.add_argument(
        "config", nargs="?", metavar="CONFIG", help="check this file and print it in full; or a section, or a key"
    )
    config.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="configuration keys to override"
    )
    config.add_argument("--list", action="store_true", help="the configs and studies that come with mgsr, by name")

    completion = command("completion", "a script that completes commands in a shell", COMPLETION_HELP, "SHELL")
    completion.add_argument("shell", choices=("bash", "zsh"), metavar="SHELL", help="bash or zsh")
    return parser
