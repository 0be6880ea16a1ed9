"""The main job of a run, built from its configuration: module, data, and who writes the dev set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mgsr.config.schema import ExperimentConfig
from mgsr.data.rows import Row
from mgsr.data.splits import build_annotation, encode
from mgsr.evaluation.test_set import Predictor
from mgsr.models.from_config import with_adapters
from mgsr.rounds.writer import build_writer
from mgsr.runtime.devices import placed, working_device
from mgsr.runtime.errors import ConfigError
from mgsr.runtime.ranks import first_alone
from mgsr.training.checkpoint import StopRequest
from mgsr.training.datamodule import DistillationDataModule
from mgsr.training.module import DistillationModule
from mgsr.training.objective import build_clip, build_objective
from mgsr.training.optim import Length, training_length
from mgsr.training.sft import Start, cache_folder
from mgsr.training.teacher_cache import CacheReport, build_score, cached_teacher


@dataclass
class Job:
    """What `fit` takes. `cache_report`: of the teacher's cached distributions, where there are some."""

    module: DistillationModule
    data: DistillationDataModule
    stop: StopRequest
    length: Length
    cache_report: CacheReport | None


def build_job(
    config: ExperimentConfig, train_rows: Sequence[Row], dev_rows: Sequence[Row], start: Start, folder: Path
) -> Job:
    """Bind configuration, rows and models; `folder` is the run's, its rounds of text go there."""
    student = start.student
    ids = {"eos_token_id": student.eos_id, "pad_token_id": student.pad_id}
    device = working_device(config.trainer.accelerator)
    annotation = build_annotation(
        student.tokenizer,
        config.spans,
        seed=config.seed,
        cache_file=cache_folder(config) / "phrases.json",
        wanted=config.objective.w_span > 0,
    )
    train_examples = encode(train_rows, student.tokenizer, config.data, "training rows").examples
    dev_examples = encode(dev_rows, student.tokenizer, config.data, "dev rows").examples
    with first_alone():
        train, dev = annotation.ground_truth(train_examples), annotation.ground_truth(dev_examples)
    length = training_length(config.train, len(train), config.trainer.devices * config.trainer.num_nodes)
    objective = build_objective(config, build_clip(config, start.vocab_size, mean_bounds(config)))
    needs_teacher = objective.needs_teacher or config.scrg.enabled
    teacher = start.teacher.model if start.teacher is not None and needs_teacher else None
    stop = StopRequest(f"mgsr train --resume {folder}")
    predictor = Predictor(
        student.tokenizer,
        dev_examples[: config.evaluation.val_rows or None],
        config.evaluation,
        vocab_size=start.vocab_size,
        pad_token_id=student.pad_id,
        check=stop.check,
    )
    module = DistillationModule(
        with_adapters(student.model, config),
        teacher,
        objective,
        train=config.train,
        trainer=config.trainer,
        total_steps=length.total_steps,
        micro_batches=length.micro_batches,
        vocab_size=start.vocab_size,
        clip_lr=config.clip.lr,
        predict=predictor,
        check_stop=stop.check,
        seed=config.seed,
        placement=config.teacher.placement,
    )
    writer = build_writer(
        config,
        module.placement,
        student.tokenizer,
        annotation,
        vocab_size=start.vocab_size,
        check=stop.check,
    )
    tops, report = None, None
    if config.objective.teacher_top_k and teacher is not None:
        # the first rank writes what is missing, the others read it
        with first_alone(), placed(device, teacher):
            tops, report = cached_teacher(
                cache_folder(config),
                teacher,
                train,
                config.objective.teacher_top_k,
                vocab_size=start.vocab_size,
                **ids,
            )
    score = None
    if config.teacher.placement == "cpu" and teacher is not None and objective.needs_teacher:
        score = build_score(module.placement, device, config.train.micro_batch_size, **ids)
    data = DistillationDataModule(
        config,
        train,
        dev,
        stage=config.train,
        length=length,
        pad_token_id=student.pad_id,
        run_folder=folder,
        seed=config.seed,
        writer=writer if config.scrg.enabled else None,
        tops=tops,
        score=score,
    )
    return Job(module, data, stop, length, report)


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
