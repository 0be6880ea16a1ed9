"""The command line: `mgsr train | evaluate | export | ablate | report | doctor | texts | config`."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mgsr import __version__
from mgsr.errors import UserError
from mgsr.usage import ABLATE_HELP, DOCTOR_HELP, EVALUATE_HELP, EXPORT_HELP, REPORT_HELP, TEXTS_HELP, TRAIN_HELP

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
    train.add_argument("--resume", metavar="RUN", help="a run folder: go on where it stopped")

    evaluate = command("evaluate", "measure a run or a model folder on data files", EVALUATE_HELP)
    evaluate.add_argument("source", metavar="RUN_OR_MODEL_FOLDER")
    evaluate.add_argument("--data", nargs="+", required=True, metavar="FILE", help="JSON or JSON-lines files")
    evaluate.add_argument("--seeds", nargs="+", type=int, metavar="N", help="sampling seeds (default: the run's)")
    evaluate.add_argument("--template", choices=("alpaca", "plain"), help="prompt template (default: the run's)")
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

    export = command("export", "a plain transformers folder of a run's student", EXPORT_HELP)
    export.add_argument("run", metavar="RUN")
    export.add_argument("out", metavar="OUT")

    ablate = command("ablate", "run a study: arms x seeds", ABLATE_HELP)
    ablate.add_argument("study", metavar="STUDY", help="a YAML file, such as experiments/demo/study.yaml")
    ablate.add_argument("ignored", nargs="*", metavar="key=value", help="overrides for every arm")
    ablate.add_argument(
        "--seeds", nargs="+", type=int, default=[0], metavar="N", help="training seeds (default: 0)"
    )
    ablate.add_argument("--config", metavar="CONFIG", help="another base configuration than the study's")
    ablate.add_argument("--arms", nargs="+", default=[], metavar="ARM", help="only these arms")
    ablate.add_argument(
        "--jobs", type=_number(int, 1), default=1, metavar="N", help="runs side by side (default: 1)"
    )
    ablate.add_argument(
        "--record",
        action="store_true",
        help="read and write small result files in results/ beside the study; recorded runs are skipped",
    )

    report = command("report", "tables, plots and a page of a study's recorded results", REPORT_HELP)
    report.add_argument("study", metavar="STUDY", help="a YAML file, such as experiments/grid/study.yaml")
    report.add_argument(
        "--results", metavar="FOLDER", help="where the result files are (default: beside the study)"
    )
    report.add_argument("--out", metavar="FOLDER", help="where to write (default: beside the study)")

    doctor = command("doctor", "check a configuration before it runs", DOCTOR_HELP)
    doctor.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/demo.yaml")
    doctor.add_argument("ignored", nargs="*", metavar="key=value", help="configuration keys to override")
    doctor.add_argument("--json", action="store_true", help="findings and figures as JSON")
    doctor.add_argument(
        "--memory", metavar="SIZE", help="bytes of one device, as 80GB (default: what is free here)"
    )

    texts = command("texts", "revised sequences of a run, to read", TEXTS_HELP)
    texts.add_argument("run", metavar="RUN")
    texts.add_argument("--round", type=int, metavar="K", help="which round (default: the last)")
    texts.add_argument("--number", type=_number(int, 1), default=10, metavar="N", help="how many (default: 10)")

    config = command("config", "list every configuration key, or check a file", "List every configuration key.")
    config.add_argument("config", nargs="?", metavar="CONFIG", help="check this file and print it in full")
    config.add_argument("ignored", nargs="*", metavar="key=value", help="configuration keys to override")
    return parser


def _number(kind: type, least: float) -> Callable[[str], Any]:
    """An argument that is a number of at least so much."""

    def read(text: str) -> Any:
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number of at least {least:g}")
        return value

    read.__name__ = kind.__name__
    return read


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code.

    0; 2 for an error that is the user's to mend; 1 where `doctor` found one; 130 and 143 for a run that was
    stopped by Ctrl-C or SIGTERM.
    """
    arguments = parse(argv)
    # set before torch and transformers are imported: forked tokenizer threads would only warn
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with warnings.catch_warnings():
            return COMMANDS[arguments.command](arguments) or 0
    except UserError as error:
        if arguments.debug:
            raise
        print(f"mgsr: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        # a full disk, a folder that cannot be read: the system's own words name it
        if arguments.debug:
            raise
        place = error.filename or "a file"
        print(f"mgsr: error: {place}: {error.strerror or error}; mend that, then go on", file=sys.stderr)
        return UserError.exit_code
    except KeyboardInterrupt:
        print("mgsr: stopped", file=sys.stderr)
        return 130


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments; `key=value` words may stand anywhere."""
    parser = build_parser()
    words = list(sys.argv[1:] if argv is None else argv)
    # taken out first: `--seeds 0 1 scrg.passes=3` would otherwise hand the override to --seeds
    overrides = [word for word in words if _OVERRIDE.match(word) and not Path(word).exists()]
    arguments = parser.parse_args([word for word in words if word not in overrides])
    if getattr(arguments, "ignored", None):
        # what argparse shows as key=value is no override
        parser.error(f"unrecognized arguments: {' '.join(arguments.ignored)}; overrides are written key=value")
    if overrides and arguments.command not in ("train", "ablate", "doctor", "config"):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    arguments.overrides = overrides
    return arguments


def _train(arguments: argparse.Namespace) -> None:
    from mgsr.config import load_config
    from mgsr.runs import load_run_config, run_folder
    from mgsr.train import train

    if arguments.resume is None:
        if arguments.config is None:
            raise UserError("train: name a CONFIG, such as configs/demo.yaml, or --resume RUN")
        config = load_config(arguments.config, arguments.overrides)
    else:
        folder = Path(arguments.resume)
        there = load_run_config(folder)
        # the folder may have been moved with its root
        moved = [*arguments.overrides, f"run_root={folder.resolve().parents[2]}"]
        config = load_config(arguments.config or folder / "config.yaml", moved)
        if run_folder(config).resolve() != folder.resolve():
            raise UserError(f"{folder}: a run folder ends in {run_folder(there).relative_to(there.run_root)}")
    metrics = train(config, resume=arguments.resume is not None)
    for name, value in metrics["result"].items():
        print(f"{name}: ROUGE-L {value['rouge_l']:.2f} (std {value['rouge_l_std']:.2f} over {value['std_over']})")
    print(f"written to {run_folder(config)}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from mgsr.evaluate import evaluate_files
    from mgsr.tables import evaluation_table, show

    results = evaluate_files(
        arguments.source,
        arguments.data,
        seeds=arguments.seeds,
        template=arguments.template,
        temperature=arguments.temperature,
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        limit=arguments.limit,
        teacher=arguments.teacher,
        device=arguments.device,
        out=arguments.out,
    )
    show(evaluation_table(results))


def _export(arguments: argparse.Namespace) -> None:
    from mgsr.export import export

    out = export(arguments.run, arguments.out)
    print(f"written to {out}")


def _ablate(arguments: argparse.Namespace) -> None:
    from mgsr.ablate import run_study
    from mgsr.studies import load_study
    from mgsr.tables import show, study_table

    study = load_study(arguments.study, arguments.config)
    summary = run_study(
        study,
        arguments.seeds,
        arguments.overrides,
        arms=arguments.arms,
        jobs=arguments.jobs,
        record=arguments.record,
    )
    root = study.config(study.baseline, arguments.seeds[0], arguments.overrides).run_root
    show(study_table(summary))
    print(f"figures    {root}/{study.name}/metrics.json")
    print(f"runs       {root}/{study.name}/<arm>/seed=<n>/ (config, checkpoints, rounds of text, predictions)")
    print(f"curves     tensorboard --logdir {root}/{study.name}")


def _report(arguments: argparse.Namespace) -> None:
    from mgsr.report import report
    from mgsr.studies import load_study

    places = [None if path is None else Path(path) for path in (arguments.results, arguments.out)]
    written = report(load_study(arguments.study), results=places[0], out=places[1])
    print(f"written to {written} and {written.with_name('report.html')}")


def _doctor(arguments: argparse.Namespace) -> int:
    import json

    from mgsr.doctor import examine
    from mgsr.doctor.show import lines, parse_size

    memory = None if arguments.memory is None else parse_size(arguments.memory)
    with contextlib.redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        report = examine(arguments.config, arguments.overrides, available=memory)
    print(
        json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if arguments.json else "\n".join(lines(report))
    )
    return 0 if report.well else 1


def _texts(arguments: argparse.Namespace) -> None:
    from mgsr.texts import revised_texts

    print("\n\n".join(revised_texts(arguments.run, arguments.round, arguments.number)))


def _config(arguments: argparse.Namespace) -> None:
    from mgsr.config import describe, dump, load_config

    if arguments.config is not None:
        print(dump(load_config(arguments.config, arguments.overrides)), end="")
        return
    for name, kind, default, text in describe():
        shown: Any = default if default != "" else '""'
        print(f"{name} ({kind}) = {shown}\n    {text}")


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "export": _export,
    "ablate": _ablate,
    "report": _report,
    "doctor": _doctor,
    "texts": _texts,
    "config": _config,
}

if __name__ == "__main__":
    sys.exit(main())
