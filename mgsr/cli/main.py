"""The command line: one function per command, and errors as one line with an exit code."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mgsr.cli.arguments import parse
from mgsr.cli.console import evaluation_table, show, study_table
from mgsr.config.keys import describe
from mgsr.config.load import dump, load_config, unfinished
from mgsr.runtime.errors import UserError
from mgsr.runtime.processor import prefer_quick_sorts

# what a rank says when the connection to another one has broken
_BROKEN = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Connection refused")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code.

    0 if all went well. 1 where `doctor` found an error, or `plan` no strategy that fits. 2 for an error that is
    the user's to mend. 130 and 143 for a run that was stopped by Ctrl-C or SIGTERM.
    """
    arguments = parse(argv)
    # all set before numpy, torch and transformers are imported
    prefer_quick_sorts()
    # forked tokenizer threads would only warn
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with warnings.catch_warnings():
            return _COMMANDS[arguments.command](arguments) or 0
    except UserError as error:
        if arguments.debug:
            raise
        print(f"mgsr: error: {_who()}{' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except RuntimeError as error:
        if arguments.debug or not _who() or not any(word in str(error) for word in _BROKEN):
            raise
        # a rank that dies takes the connections of the others with it
        print(f"mgsr: error: {_who()}another rank is gone, and this one ends too", file=sys.stderr)
        return 1
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


def _who() -> str:
    """Which of several ranks speaks."""
    ranks = sys.modules.get("mgsr.runtime.ranks")
    return f"rank {ranks.rank()}: " if ranks is not None and ranks.several() else ""


def _train(arguments: argparse.Namespace) -> int:
    from mgsr.runtime.ranks import is_first
    from mgsr.training.launch import joined, launch, must_launch
    from mgsr.training.run_folder import load_run_config, run_folder

    resume = arguments.resume is not None
    if arguments.resume in (None, "auto"):
        if arguments.config is None:
            raise UserError("train: name a CONFIG, such as configs/demo.yaml, or --resume RUN")
        config = load_config(arguments.config, arguments.overrides)
        resume = resume and (run_folder(config) / "config.yaml").exists()
    else:
        folder = Path(arguments.resume)
        there = load_run_config(folder)
        # the folder may have been moved with its root
        moved = [*arguments.overrides, f"run_root={folder.resolve().parents[2]}"]
        config = load_config(arguments.config or folder / "config.yaml", moved)
        if run_folder(config).resolve() != folder.resolve():
            raise UserError(f"{folder}: a run folder ends in {run_folder(there).relative_to(there.run_root)}")
    if must_launch(config.trainer):
        return launch(arguments.words, config.trainer)
    from mgsr.training.train import train

    with joined(config.trainer):
        metrics = train(config, resume=resume)
        if not is_first():
            return 0
    for name, value in metrics["result"].items():
        print(f"{name}: ROUGE-L {value['rouge_l']:.2f} (std {value['rouge_l_std']:.2f} over {value['std_over']})")
    print(f"written to {run_folder(config)}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> None:
    from mgsr.cli.evaluate import evaluate_files

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
    from mgsr.training.export import export

    out = export(arguments.run, arguments.out, merge=arguments.merge)
    print(f"written to {out}")


def _ablate(arguments: argparse.Namespace) -> None:
    from mgsr.study.run import run_study
    from mgsr.study.study import load_study

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
    from mgsr.study.report.write_report import report
    from mgsr.study.study import load_study

    places = [None if path is None else Path(path) for path in (arguments.results, arguments.out)]
    written = report(load_study(arguments.study), results=places[0], out=places[1])
    print(f"written to {written} and {written.with_name('report.html')}")


def _doctor(arguments: argparse.Namespace) -> int:
    from mgsr.planning.doctor import examine
    from mgsr.planning.findings import report_lines
    from mgsr.planning.units import parse_size

    memory = None if arguments.memory is None else parse_size(arguments.memory)
    with contextlib.redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        report = examine(arguments.config, arguments.overrides, available=memory)
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        print("\n".join(report_lines(report)))
    return 0 if report.well else 1


def _plan(arguments: argparse.Namespace) -> int:
    from mgsr.planning.plan import plan
    from mgsr.planning.plan_cost import Hardware
    from mgsr.planning.plan_table import configured, heading, memory_table, traffic_table, verdict, work_table
    from mgsr.planning.units import parse_size

    giga, tera = 1e9, 1e12
    hardware = Hardware(
        flops=arguments.flops * tera,
        flops_float32=arguments.flops_float32 * tera,
        mfu=arguments.mfu,
        bandwidth=arguments.bandwidth * giga,
        interconnect=arguments.interconnect * giga,
        host=arguments.host * giga,
    )
    with contextlib.redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        found = plan(
            arguments.config,
            arguments.overrides,
            devices=arguments.devices,
            nodes=arguments.nodes,
            available=parse_size(arguments.gpu),
            hardware=hardware,
            rows=arguments.rows,
        )
    if arguments.json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        print("\n".join(heading(found)))
        for table in (work_table(found), memory_table(found), traffic_table(found)):
            show(table)
        print(f"{configured(found)}\n{verdict(found)}")
    return 0 if found.recommended is not None else 1


def _texts(arguments: argparse.Namespace) -> None:
    from mgsr.cli.revisions import revised_texts

    print("\n\n".join(revised_texts(arguments.run, arguments.round, arguments.number)))


def _config(arguments: argparse.Namespace) -> None:
    if arguments.config is not None:
        print(dump(load_config(arguments.config, arguments.overrides)), end="")
        return
    for name, kind, default, text in describe(unfinished(arguments.overrides)):
        shown: Any = default if default != "" else '""'
        print(f"{name} ({kind}) = {shown}\n    {text}")


_COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "export": _export,
    "ablate": _ablate,
    "report": _report,
    "doctor": _doctor,
    "plan": _plan,
    "texts": _texts,
    "config": _config,
}

if __name__ == "__main__":
    sys.exit(main())
