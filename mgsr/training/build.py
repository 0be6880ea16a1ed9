"""The main job of a run, built from its configuration: module, data, and who writes the dev set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from mgsr import models
from mgsr.config.load import ExperimentConfig
from mgsr.data.prompts import pad_id, require_eos
from mgsr.data.rows import Row
from mgsr.data.splits import build_annotation, encode
from mgsr.evaluation.test_set import Predictor
from mgsr.rounds.writer import build_write
from mgsr.runtime.devices import placed, working_device
from mgsr.runtime.errors import ConfigError
from mgsr.runtime.ranks import first_alone
from mgsr.training.checkpoint import StopRequest
from mgsr.training.datamodule import DistillationDataModule
from mgsr.training.module import DistillationModule
from mgsr.training.objective import build_clip, build_objective
from mgsr.training.optim import Length, training_length
from mgsr.training.sft import Prepared, cache_folder
from mgsr.training.teacher_cache import cached_teacher, response_states
from mgsr.training.teacher_states import Score, build_score
from mgsr.training.teacher_top import CacheReport


@dataclass
class Job:
    """What `fit` takes. `cache_report`: of the teacher's cached distributions, where there are some."""

    module: DistillationModule
    data: DistillationDataModule
    stop: StopRequest
    length: Length
    cache_report: CacheReport | None


def build_job(
    config: ExperimentConfig,
    train_rows: Sequence[Row],
    dev_rows: Sequence[Row],
    teacher: Prepared | None,
    student: Prepared,
    vocab_size: int,
    folder: Path,
) -> Job:
    """Bind configuration, rows and models.

    Args:
        vocab_size: from `shared_vocabulary`.
        folder: of the run; its rounds of text go there.
    """
    tokenizer = student.tokenizer
    annotation = build_annotation(
        tokenizer,
        config.spans,
        seed=config.seed,
        cache_file=cache_folder(config) / "phrases.json",
        wanted=config.objective.w_span > 0,
    )
    train_examples = encode(train_rows, tokenizer, config.data, "training rows").examples
    dev_examples = encode(dev_rows, tokenizer, config.data, "dev rows").examples
    with first_alone():
        train_sequences = annotation.ground_truth(train_examples)
        dev_sequences = annotation.ground_truth(dev_examples)
    length = training_length(config.train, len(train_sequences), config.trainer.devices * config.trainer.num_nodes)
    objective = build_objective(config, build_clip(config, vocab_size, mean_bounds(config)))
    needs_teacher = objective.needs_teacher or config.scrg.enabled
    teacher_model = teacher.model if teacher is not None and needs_teacher else None
    stop = StopRequest(f"mgsr train --resume {folder}")
    shown = dev_examples[: config.evaluation.val_rows or None]
    predictor = Predictor(
        tokenizer,
        shown,
        config.evaluation,
        vocab_size=vocab_size,
        pad_token_id=pad_id(tokenizer),
        check=stop.check,
    )
    module = DistillationModule(
        adapted(student.model, config),
        teacher_model,
        objective,
        train=config.train,
        trainer=config.trainer,
        total_steps=length.total_steps,
        micro_batches=length.micro_batches,
        vocab_size=vocab_size,
        clip_lr=config.clip.lr,
        predict=predictor,
        check_stop=stop.check,
        seed=config.seed,
        placement=config.teacher.placement,
    )
    write = build_write(
        config,
        module.placement,
        tokenizer,
        annotation,
        vocab_size=vocab_size,
        check=stop.check,
    )
    tops, report = None, None
    if config.objective.teacher_top_k and teacher_model is not None:
        # the first rank writes what is missing, the others read it
        with first_alone(), placed(working_device(config.trainer.accelerator), teacher_model):
            tops, report = cached_teacher(
                cache_folder(config),
                teacher_model,
                train_sequences,
                config.objective.teacher_top_k,
                vocab_size=vocab_size,
                eos_token_id=require_eos(tokenizer),
                pad_token_id=pad_id(tokenizer),
            )
    data = DistillationDataModule(
        config,
        train_sequences,
        dev_sequences,
        stage=config.train,
        length=length,
        pad_token_id=pad_id(tokenizer),
        run_folder=folder,
        seed=config.seed,
        write=write if config.scrg.enabled else None,
        tops=tops,
        score=_score(config, module, tokenizer) if config.teacher.placement == "cpu" and teacher_model else None,
    )
    return Job(module, data, stop, length, report)


def _score(
    config: ExperimentConfig, module: DistillationModule, tokenizer: PreTrainedTokenizerBase
) -> Score | None:
    """For a teacher that is on the device in phases of its own."""
    if not module.objective.needs_teacher:
        return None
    read = partial(
        response_states,
        eos_token_id=require_eos(tokenizer),
        pad_token_id=pad_id(tokenizer),
        batch_size=config.train.micro_batch_size,
    )
    return build_score(module.placement, read, working_device(config.trainer.accelerator))


def adapted(student: Any, config: ExperimentConfig) -> Any:
    """The student as it is trained: itself, or with low-rank adapters on it."""
    lora = config.student.lora
    if not lora.r:
        return student
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return models.add_lora(
            student,
            r=lora.r,
            alpha=lora.alpha,
            dropout=lora.dropout,
            target_modules=lora.target_modules or None,
        )


def shared_vocabulary(teacher: Prepared | None, student: Prepared) -> int:
    """Number of token ids that both models share; refuses tokenizers that disagree."""
    require_eos(student.tokenizer)
    if teacher is None:
        return models.written_vocab_size(student.tokenizer, student.model)
    return models.shared_vocab_size(teacher.tokenizer, student.tokenizer, teacher.model, student.model)


def mean_bounds(config: ExperimentConfig) -> tuple[float, float] | None:
    """For `clip.mode: mean_of_run`: the mean learned bounds of a finished run, or of a study's result file."""
    if config.clip.mode != "mean_of_run":
        return None
    path = Path(config.clip.run)
    path = path if path.suffix == ".json" else path / "metrics.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        bounds = content.get("metrics", content)["dac"]
        return float(bounds["lower"]), float(bounds["upper"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"`clip.run`: {path} holds no mean bounds; name a finished run with clip.mode=network"
        ) from None
