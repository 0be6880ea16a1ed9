"""Models that a run's checkpoints refer to and do not hold: its teacher, and the frozen base of its adapters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mgsr import models
from mgsr.config.load import ExperimentConfig
from mgsr.models.from_config import build_student, quiet_transformers
from mgsr.runtime.errors import UserError
from mgsr.runtime.files import write_atomically
from mgsr.training.run_folder import BASE, TEACHER, load_run_config, read_json
from mgsr.training.sft import load_cached, prepare_teacher, stage_seed

# precisions that turn all weights into their own type
TRUE_TYPES = {"64-true": torch.float64, "bf16-true": torch.bfloat16}


@dataclass(frozen=True)
class Base:
    """The model that adapters stand on: folder or hub id, revision on the hub, fingerprint of its weights."""

    location: str
    revision: str | None
    content: str


def keep_base(folder: Path, config: ExperimentConfig, student: PreTrainedModel, lies_in: Path) -> None:
    """Write who the base of a student with adapters is; without adapters there is nothing to write.

    Args:
        student: before it gets its adapters; lies_in: its folder in the cache, if it was fine-tuned.

    Raises:
        UserError: the base is not the one the run began with.
    """
    if not config.student.lora.r:
        return
    content = models.content_fingerprint(student)
    known = read_json(folder / BASE)
    if known.get("content") not in (None, content):
        raise _changed(folder, config, lies_in)
    base = {
        # a fine-tuned base lies in the cache, any other comes from its source
        "cache": lies_in.name if config.student.sft.enabled else None,
        "source": config.student.source,
        "revision": config.student.revision,
        "content": content,
    }
    write_atomically(folder / BASE, json.dumps(base, indent=2) + "\n")


def load_base(folder: Path, config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model that a run's adapters stand on, from where the run's student came from.

    Args:
        folder: of the run; tokenizer: the run's.

    Raises:
        UserError: it is no longer there, or not the one the run began with.
    """
    quiet_transformers()
    student, cached = config.student, _cached(folder, BASE)
    if student.sft.enabled:
        if cached is None or not (cached / "config.json").exists():
            raise UserError(
                f"{folder}: the base of its adapters is no longer at {cached or 'its place'}; put that folder "
                "back, or begin another run with the same student, which makes it again"
            )
        model = load_cached(cached, student)
    else:
        teacher = None
        try:
            if student.source == "teacher":
                teacher = _load_teacher(folder, config)[0]
            model = build_student(config, student, teacher, tokenizer, seed=stage_seed(config, student.sft))
        except UserError as error:
            raise UserError(
                f"{folder}: the base of its adapters ({student.source}) cannot be had: {error}; put it back"
            ) from error
    if models.content_fingerprint(model) != read_json(folder / BASE).get("content"):
        raise _changed(folder, config, cached)
    return model


def as_trained(base: PreTrainedModel, precision: str) -> PreTrainedModel:
    """`base` with its weights rounded, in place, to the type that Lightning's `precision` trains in."""
    kind = TRUE_TYPES.get(precision)
    if kind is not None:
        for parameter in base.parameters():
            parameter.data = parameter.data.to(kind).to(parameter.dtype)
    return base


def base_location(folder: Path, config: ExperimentConfig) -> Base:
    """Where anyone finds the model that a run's adapters stand on.

    Raises:
        UserError: no folder and no hub repository holds that model as it is.
    """
    student, cached = config.student, _cached(folder, BASE)
    content = str(read_json(folder / BASE).get("content"))
    if cached is not None:
        return Base(str(cached), None, content)
    if student.source in ("init", "teacher") or student.keep_layers:
        raise UserError(
            f"{folder}: its adapters stand on a model that was made for the run and lies in no folder; "
            "export with --merge"
        )
    found = models.resolve_source(student.source, gguf_file=student.gguf_file or None)
    if found.gguf_file is not None:
        raise UserError(
            f"{folder}: its adapters stand on a GGUF file, which peft cannot load; export with --merge"
        )
    location = str(Path(found.location).resolve()) if found.is_local else found.location
    return Base(location, student.revision or None, content)


def _changed(folder: Path, config: ExperimentConfig, cached: Path | None) -> UserError:
    place = cached if config.student.sft.enabled else config.student.source
    return UserError(
        f"{folder}: the base of its adapters is not the one it began with (its weights differ); put that one back "
        f"({place}), or begin another run"
    )


def load_run_teacher(run: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The teacher of a run, fine-tuned as it was.

    Raises:
        UserError: the run had none, or it is no longer in the cache beside the run.
    """
    folder = Path(run)
    config = load_run_config(folder)
    if read_json(folder / TEACHER).get("cache") is None:
        raise UserError(f"{run}: this run had no teacher; name one with --teacher FOLDER")
    try:
        return _load_teacher(folder, config)
    except UserError as error:
        raise UserError(f"{run}: {error}; name one with --teacher FOLDER") from error


def _load_teacher(folder: Path, config: ExperimentConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    quiet_transformers()
    cached = _cached(folder, TEACHER)
    if cached is not None and (cached / "config.json").exists():
        return load_cached(cached, config.teacher), models.load_tokenizer(str(cached))
    if config.teacher.source == "init" or config.teacher.sft.enabled:
        raise UserError(f"its teacher is no longer at {cached}")
    teacher = prepare_teacher(config, [])
    assert teacher is not None
    return teacher.model, teacher.tokenizer


def _cached(folder: Path, name: str) -> Path | None:
    """The folder in the cache beside the run that one of its small files names."""
    cache: Any = read_json(folder / name).get("cache")
    return None if cache is None else folder.resolve().parents[2] / "cache" / Path(str(cache)).name
