"""What a run leaves behind as models: its student, its adapters with their base, its teacher.

`mgsr export` writes the student as a plain transformers folder, or its adapters as peft's, with a model card and
how it is asked. A run's checkpoints refer to the teacher and to the frozen base of adapters, and do not hold them:
they are found here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mgsr import models
from mgsr.config.schema import ExperimentConfig
from mgsr.evaluation.model_card import ASKED, CARD, Base, how_it_is_asked, model_card
from mgsr.models.from_config import build_student, load_cached, quiet_transformers, with_adapters
from mgsr.runtime.devices import settle
from mgsr.runtime.errors import UserError
from mgsr.runtime.progress import say
from mgsr.training.run_folder import (
    BASE,
    METRICS,
    STUDENT,
    TEACHER,
    base_has_changed,
    load_run_config,
    read_run_file,
)
from mgsr.training.sft import prepare_teacher, stage_seed
from mgsr.training.trainer import chosen_checkpoint, load_student

# precisions that turn all weights into their own type
TRUE_TYPES = {"64-true": torch.float64, "bf16-true": torch.bfloat16}


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
    if models.content_fingerprint(model) != read_run_file(folder, BASE)["content"]:
        raise base_has_changed(folder, config, cached)
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
    content = read_run_file(folder, BASE)["content"]
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


def load_run_teacher(run: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The teacher of a run, fine-tuned as it was.

    Raises:
        UserError: the run had none, or it is no longer in the cache beside the run.
    """
    folder = Path(run)
    config = load_run_config(folder)
    if read_run_file(folder, TEACHER)["cache"] is None:
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
    teacher = prepare_teacher(config)
    assert teacher is not None
    return settle(teacher.model), teacher.tokenizer


def _cached(folder: Path, name: str) -> Path | None:
    """The folder in the cache beside the run that one of its small files names."""
    cache = read_run_file(folder, name)["cache"]
    return None if cache is None else folder.resolve().parents[2] / "cache" / Path(cache).name


def load_run(run: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The best student of a run (the last one where no dev set chose), adapters merged, and its tokenizer.

    Of a run that is not finished it is said so.

    Needs nothing but the run's own folder; with adapters, also the model they stand on.

    Raises:
        UserError: not a run folder, no checkpoint in it yet, or the adapters' base is gone or has changed.
    """
    model, tokenizer = _load_best(Path(run))
    merged = models.merge_lora(model) if models.has_adapters(model) else model
    merged.generation_config = models.kept_generation_config(Path(run) / STUDENT, merged, tokenizer)
    return merged.eval(), tokenizer


def _load_best(folder: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """As `load_run`, adapters not merged."""
    config = load_run_config(folder)
    checkpoint = chosen_checkpoint(folder)
    if checkpoint is None and (folder / METRICS).exists():
        raise UserError(f"{folder}: is finished, and its checkpoints are gone; restore them, or run it anew")
    if checkpoint is None:
        raise UserError(f"{folder}: no checkpoint yet; finish the run with mgsr train --resume {folder}")
    if not (folder / STUDENT / "config.json").exists():
        raise UserError(f"{folder / STUDENT}: is missing, its student's shape and tokenizer; restore that folder")
    if not (folder / METRICS).exists():
        say(f"{folder}: not finished (no {METRICS}): this is its student so far, of {checkpoint.name}")
    quiet_transformers()
    tokenizer = models.load_tokenizer(str(folder / STUDENT))
    if config.student.lora.r:
        model = with_adapters(as_trained(load_base(folder, config, tokenizer), config.trainer.precision), config)
    else:
        model = _shape(folder / STUDENT, config)
    load_student(model, checkpoint)
    models.check_values(str(checkpoint), model)
    return model, tokenizer


def _shape(folder: Path, config: ExperimentConfig) -> PreTrainedModel:
    """A model of the student's shape; its weights are still to be filled in."""
    code = config.student.trust_remote_code
    with models.one_line_errors(str(folder / "config.json"), "put the run's own config.json back", done="used"):
        shape = AutoConfig.from_pretrained(folder, trust_remote_code=code)
        return AutoModelForCausalLM.from_config(
            shape, dtype=models.parse_dtype(config.student.dtype), trust_remote_code=code
        )


def export(run: str | Path, out: str | Path, *, merge: bool = False, dtype: str = "") -> Path:
    """Write a run's student: as `AutoModelForCausalLM`'s folder, or as peft's folder of its adapters.

    Args:
        merge: add adapters into the weights, so that neither mgsr nor peft nor the base is needed to load
            them. A run without adapters has nothing to merge.
        dtype: of the weights that are written, such as `bfloat16`; empty: as they were trained.

    Raises:
        UserError: not a run, no checkpoint, `out` exists and is not empty; with adapters, their base is gone,
            has changed, or (without `merge`) lies in no folder that peft could load it from, or another type is
            asked for without `merge`.
    """
    folder, out = Path(run), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already; choose an empty or new folder")
    config = load_run_config(folder)
    if dtype and config.student.lora.r and not merge:
        raise UserError(f"{folder}: adapters keep their type; export with --merge for {dtype} weights")
    base = base_location(folder, config) if config.student.lora.r and not merge else None
    # read before anything is written; the card goes into the folder before that gets its name
    card = model_card(config, read_run_file(folder, METRICS, missing={}), base)

    def told(ends: GenerationConfig) -> dict[str, str]:
        closing: Any = ends.eos_token_id
        return {CARD: card, ASKED: how_it_is_asked(config, str(tokenizer.convert_ids_to_tokens(closing[0])))}

    if base is None:
        model, tokenizer = load_run(folder)
        if dtype:
            model = model.to(getattr(torch, dtype))
        models.save_model_folder(model, tokenizer, out, texts=told(model.generation_config))
    else:
        adapters, tokenizer = _load_best(folder)
        ends = models.kept_generation_config(folder / STUDENT, adapters, tokenizer)
        models.save_adapter_folder(
            adapters,
            tokenizer,
            out,
            base=base.location,
            revision=base.revision,
            texts=told(ends),
            generation_config=ends,
        )
    return out
