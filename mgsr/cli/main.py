"""The command line: one function per command."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgsr.cli.answer import Command, answer
from mgsr.cli.hints import check_config, check_model, check_run, check_study, is_config, keys_below, refuse_unknown
from mgsr.cli.streams import prints, with_safe_streams
from mgsr.runtime.errors import RunInterruptedError, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code.

    0 if all went well. 1 where `doctor` found an error, or `plan` no strategy that fits. 2 for an error that is
    the user's to mend. 130 and 143 for a run that was stopped by Ctrl-C or SIGTERM, 141 where nobody reads what it
    prints.
    """
    return with_safe_streams(lambda: answer(_COMMANDS, argv))


def _train(arguments: argparse.Namespace) -> int:
    from mgsr.config.load import load_config

    if arguments.config is not None:
        check_config(arguments.config, "train")
    if arguments.resume not in (None, "auto"):
        check_run(arguments.resume)
    from mgsr.runtime.ranks import is_first
    from mgsr.training.launch import joined, launch, must_launch, stop_request
    from mgsr.training.run_folder import load_run_config, run_folder

    resume = arguments.resume is not None
    if arguments.resume in (None, "auto"):
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
    from mgsr.planning.outline import announce
    from mgsr.training.train import train

    with joined(config.trainer):
        try:
            metrics = train(config, resume=resume, announce=announce)
        except KeyboardInterrupt:
            # in what is no stage, such as writing the test sets
            raise stop_request(config).ended() from None
        if not is_first():
            return 0
    from mgsr.cli.ending import show_ending

    show_ending(metrics, run_folder(config))
    return 0


def _init(arguments: argparse.Namespace) -> None:
    from mgsr.config.starting_file import starting_file

    print(starting_file(arguments.overrides), end="")


def _evaluate(arguments: argparse.Namespace) -> None:
    check_run(arguments.source)
    if arguments.teacher is not None:
        check_model(arguments.teacher, "--teacher")
    from mgsr.cli.console import evaluation_table, show
    from mgsr.cli.evaluate import evaluate_files
    from mgsr.runtime.devices import quick_cpu, working_device

    with quick_cpu():
        results = evaluate_files(
            arguments.source,
            arguments.data,
            seeds=arguments.seeds,
            template=arguments.template,
            temperature=arguments.temperature,
            max_new_tokens=arguments.max_new_tokens,
            batch_size=arguments.batch_size,
            limit=arguments.limit,
            rouge_tokenizer=arguments.rouge_tokenizer,
            teacher=arguments.teacher,
            device=working_device(arguments.device, "--device ").type,
            out=arguments.out,
        )
    show(evaluation_table(results))


def _export(arguments: argparse.Namespace) -> None:
    check_run(arguments.run)
    from mgsr.training.export import export

    out = export(arguments.run, arguments.out, merge=arguments.merge, dtype=arguments.dtype)
    print(f"written to {out}")


def _ablate(arguments: argparse.Namespace) -> None:
    check_study(arguments.study, arguments.command)
    if arguments.config is not None:
        check_config(arguments.config, "ablate STUDY --config")
        if arguments.record:
            raise UserError("--record keeps results of the study's own base; leave it out with --config")
    from mgsr.cli.console import show, study_table
    from mgsr.study.run import run_study
    from mgsr.study.study import as_run, load_study

    study = load_study(arguments.study, arguments.config)
    if not arguments.record:
        study = as_run(study, arguments.overrides)
    if (asked := arguments.question) is not None:
        study = dataclasses.replace(study, question=asked, typed={**study.typed, "question": asked})
    try:
        summary = run_study(
            study,
            arguments.seeds,
            arguments.overrides,
            arms=arguments.arms,
            jobs=arguments.jobs,
            record=arguments.record,
        )
    except (KeyboardInterrupt, RunInterruptedError) as stop:
        why = str(stop) if isinstance(stop, RunInterruptedError) else "stopped by Ctrl-C"
        more = f"{why}; all runs go on with: mgsr {shlex.join(arguments.words)}"
        raise RunInterruptedError(more, getattr(stop, "exit_code", 130) - 128) from None
    folder = f"{study.base_config(arguments.overrides).run_root}/{study.name}"
    show(study_table(summary))
    print(f"figures    {folder}/metrics.json")
    print(f"runs       {folder}/<arm>/seed=<n>/ (config, checkpoints, rounds of text, predictions)")
    print(f"curves     tensorboard --logdir {shlex.quote(folder)}")
    if arguments.record:
        print(f"recorded   {study.pool()}")
    told = arguments.study if arguments.record else folder
    print(f"report     mgsr report {shlex.quote(told)}")
    if arguments.report:
        _write_report(told)


def _report(arguments: argparse.Namespace) -> None:
    folder = Path(arguments.study)
    if folder.is_dir() and not (folder / "study.yaml").exists() and any(folder.glob("*/study.yaml")):
        _report_all(folder)
        return
    check_study(arguments.study, arguments.command)
    _write_report(arguments.study, arguments.out)


def _write_report(word: str, out: str | None = None) -> None:
    from mgsr.study.report.write import report
    from mgsr.study.study import load_study

    study = load_study(word)
    if study.path.parent != study.home and (study.home / "study.yaml").exists():
        # of an installed study, as it was run here
        study = load_study(study.home)
    written, _ = report(study, out=None if out is None else Path(out))
    print(f"written to {written} and {written.with_name('report.html')}")


def _report_all(folder: Path) -> None:
    """Every study in a folder, and the index over them."""
    from mgsr.study.report.write import INDEX, index
    from mgsr.study.study import load_study

    left = index(folder, [load_study(path) for path in sorted(folder.glob("*/study.yaml"))])
    print(f"written to {folder / INDEX}")
    if left:
        print(f"without an answer, as declared seeds are missing: {', '.join(left)}")


def _doctor(arguments: argparse.Namespace) -> int:
    if arguments.config is not None:
        check_config(arguments.config, "doctor")
    from mgsr.planning.doctor import examine
    from mgsr.planning.findings import report_lines
    from mgsr.planning.units import parse_size

    memory = None if arguments.memory is None else parse_size(arguments.memory)
    with contextlib.redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        report = examine(arguments.config, arguments.overrides, available=memory)
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print("\n".join(report_lines(report)))
    return 0 if report.well else 1


def _plan(arguments: argparse.Namespace) -> int:
    if arguments.config is not None:
        check_config(arguments.config, "plan")
    from mgsr.cli.console import show
    from mgsr.planning.plan import plan
    from mgsr.planning.plan_cost import Hardware
    from mgsr.planning.plan_table import TABLES, configured, heading, verdict
    from mgsr.planning.units import parse_size

    giga, tera = 1e9, 1e12
    hardware = Hardware(
        flops=arguments.flops * tera,
        flops_float32=arguments.flops_float32 * tera,
        mfu=arguments.mfu,
        bandwidth=arguments.bandwidth * giga,
        interconnect=arguments.interconnect * giga,
        host=arguments.host * giga,
        disk=arguments.disk * giga,
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
        print(json.dumps(found.to_dict(), indent=2))
    else:
        print("\n".join(heading(found)))
        for table in TABLES:
            show(table(found))
        print(f"{configured(found)}\n{verdict(found)}")
    return 0 if found.recommended is not None else 1


def _texts(arguments: argparse.Namespace) -> None:
    check_run(arguments.run)
    from mgsr.cli.revisions import revised_texts, show_texts

    show_texts(revised_texts(arguments.run, arguments.round, arguments.number))


def _config(arguments: argparse.Namespace) -> None:
    import yaml

    from mgsr.config.keys import describe
    from mgsr.config.load import dump, load_config, unfinished
    from mgsr.config.shipped import listed
    from mgsr.config.values import without_effect

    if arguments.list:
        print("configs: mgsr train NAME")
        print("\n".join(f"  {name:14} {said}" for name, said in listed("config").items()))
        print("studies: mgsr ablate NAME")
        print("\n".join(f"  {name:14} {said}" for name, said in listed("study").items()))
        return
    keys = list(describe(unfinished(arguments.overrides)))
    chosen = keys if arguments.config is None else keys_below(arguments.config, keys)
    if arguments.config is not None and (is_config(arguments.config) or not chosen):
        refuse_unknown(arguments.config, keys)
        check_config(arguments.config, "config")
        config = load_config(arguments.config, arguments.overrides)
        for line in without_effect(config):
            print(line, file=sys.stderr)
        text = dump(config)
        if not prints(text):
            # not escaped by the stream, which would make other values of them
            text = yaml.safe_dump(yaml.safe_load(text), sort_keys=False)
        print(text, end="")
        return
    for name, kind, default, text in chosen:
        shown: Any = default if default != "" else '""'
        print(f"{name} ({kind}) = {shown}\n    {text}")


def _completion(arguments: argparse.Namespace) -> None:
    from mgsr.cli.completion import script

    print(script(arguments.shell), end="")


_COMMANDS: dict[str, Command] = {
    "train": _train,
    "init": _init,
    "evaluate": _evaluate,
    "export": _export,
    "ablate": _ablate,
    "report": _report,
    "doctor": _doctor,
    "plan": _plan,
    "texts": _texts,
    "config": _config,
    "completion": _completion,
}
