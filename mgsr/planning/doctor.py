"""`mgsr doctor`: what would go wrong with a run, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mgsr.config.load import load_config
from mgsr.config.origin import placed
from mgsr.config.schema import ExperimentConfig
from mgsr.config.values import without_effect
from mgsr.models.preflight import Size, checks
from mgsr.planning.doctor_data import look_at_lengths, look_at_rows, look_at_tokenizers
from mgsr.planning.doctor_memory import look_at_memory
from mgsr.planning.findings import Report
from mgsr.planning.outline import outline
from mgsr.runtime.errors import UserError
from mgsr.training.build import check_match, mean_bounds, writer_class


def examine(path: str | Path | None, overrides: Sequence[str] = (), *, available: int | None = None) -> Report:
    """Configuration, rows, tokenizers, lengths, memory and disk of a run.

    Args:
        path: configuration file, None for the defaults; overrides: `key=value` words on top.
        available: bytes of one device to plan for; None: what this machine has free.
    """
    report = Report()
    try:
        config = load_config(path, overrides)
    except UserError as error:
        report.say("error", "config", str(error))
        return report
    report.say("ok", "config", f"{path or 'defaults'}: {config.experiment}/{config.arm}, seed {config.seed}")
    for line in without_effect(config):
        report.say("warning", "config", line)
    for name, model in (("teacher", config.teacher), ("student", config.student)):
        if model.trust_remote_code:
            report.say("warning", name, f"{name}.trust_remote_code: code that comes with {model.source} will run")
    rows = look_at_rows(config, report)
    sizes: dict[str, Size] = {}
    for section, check in checks(config, rows, sizes):
        try:
            with placed(config):
                check()
        except UserError as error:
            report.say("error", section, str(error))
    _look_elsewhere(config, report)
    tokenizer = look_at_tokenizers(config, report)
    if tokenizer is None:
        return report
    if "train" in rows:
        look_at_lengths(config, tokenizer, rows, report)
    try:
        look_at_memory(config, tokenizer, report, available)
        if report.well:
            report.figures["outline"] = outline(config, rows, sizes, tokenizer)
    except UserError as error:
        report.say("error", "memory", str(error))
    return report


def _look_elsewhere(config: ExperimentConfig, report: Report) -> None:
    """What the main job needs of another run, of the user's code and of its models' places."""
    try:
        mean_bounds(config)
        writer_class(config)
        check_match(config)
    except UserError as error:
        report.say("error", "plan", str(error))
