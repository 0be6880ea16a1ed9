"""One run: prepare models and data, distil, evaluate the best checkpoint on the test sets, write metrics.json."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mgsr import models
from mgsr.config import ExperimentConfig
from mgsr.data.corpus import read_manifest, write_atomically
from mgsr.data.prompts import Example, pad_id, require_eos
from mgsr.data.rows import Row
from mgsr.datamodule import DistillationDataModule
from mgsr.devices import placed, working_device
from mgsr.distillation import DistillationModule
from mgsr.errors import ConfigError, UserError
from mgsr.evaluation import Predictor, evaluate
from mgsr.fitting import fit, load_student
from mgsr.material import build_annotation, encode, read_split
from mgsr.objective import Objective, build_clip, build_objective
from mgsr.optimisation import training_length
from mgsr.progress import say
from mgsr.runs import keep_shape, open_run_folder, run_folder
from mgsr.stages import (
    Prepared,
    cache_folder,
    cached_evaluation,
    prepare_student,
    prepare_teacher,
    quiet_transformers,
)
from mgsr.teacher_cache import cached_teacher
from mgsr.writing import build_write


def train(config: ExperimentConfig, *, resume: bool = False) -> dict[str, Any]:
    """Run a configuration to its end and return what `metrics.json` holds.

    Args:
        resume: go on with what the run folder holds; otherwise a folder that holds a run is refused.

    Raises:
        UserError: anything the user can mend, as one line.
    """
    began = time.monotonic()
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    # read before anything is written: a bad row leaves no folder behind
    rows = {split: read_split(config.data, split) for split in ("train", "dev", "test", *config.data.test_sets)}
    working_device(config.trainer.accelerator)
    mean_bounds(config)
    folder = run_folder(config)
    if not (folder / "metrics.json").exists():
        check_tokenizers(config)
    open_run_folder(folder, config, resume=resume)
    done = folder / "metrics.json"
    if done.exists():
        say(f"{folder}: complete already")
        return json.loads(done.read_text(encoding="utf-8"))

    teacher = prepare_teacher(config, rows["dev"])
    student = prepare_student(config, teacher, rows["train"], rows["dev"])
    tokenizer = student.tokenizer
    vocab_size = shared_vocabulary(teacher, student)
    keep_shape(folder, student.model, tokenizer, None if teacher is None else teacher.folder.name)
    tests = {
        name: (rows[name], list(encode(rows[name], tokenizer, config.data, f"{name} rows").examples))
        for name in ("test", *config.data.test_sets)
    }
    metrics: dict[str, Any] = {"experiment": config.experiment, "arm": config.arm, "seed": config.seed}
    if teacher is not None:
        metrics["teacher"] = cached_evaluation(config, teacher, tests, "teacher")
    metrics["sft_start"] = cached_evaluation(config, student, tests, "sft_start")

    started = time.monotonic()
    device = working_device(config.trainer.accelerator)
    module, data, best = distil(config, rows["train"], rows["dev"], teacher, student, vocab_size, folder)
    metrics["seconds_training"] = time.monotonic() - started
    if best is not None:
        load_student(module.student, best)
    metrics.update(_figures(module, data))
    with placed(device, module.student):
        metrics["result"] = _test(config, module, student, tests, folder, vocab_size)
    metrics["seconds"] = time.monotonic() - began
    write_atomically(done, json.dumps(metrics, indent=2) + "\n")
    return metrics


def check_tokenizers(config: ExperimentConfig) -> None:
    """Refuse tokenizers that disagree before anything is trained, where both come from elsewhere."""
    sources = config.teacher.source, config.student.source
    if sources[0] == sources[1] or any(source in ("", "init", "teacher") for source in sources):
        return
    quiet_transformers()
    teacher, student = (
        models.load_tokenizer(
            model.source,
            gguf_file=model.gguf_file or None,
            revision=model.revision or None,
            trust_remote_code=model.trust_remote_code,
        )
        for model in (config.teacher, config.student)
    )
    problem = models.vocabulary_report(teacher, student).problem
    if problem is not None:
        raise UserError(f"teacher and student must share token ids, but {problem}: use models of one family")


def shared_vocabulary(teacher: Prepared | None, student: Prepared) -> int:
    """Number of token ids that both models share; refuses tokenizers that disagree."""
    require_eos(student.tokenizer)
    if teacher is None:
        return len(student.tokenizer)
    return models.shared_vocab_size(teacher.tokenizer, student.tokenizer, teacher.model, student.model)


def mean_bounds(config: ExperimentConfig) -> tuple[float, float] | None:
    """For `clip.mode: mean_of_run`: the mean learned bounds of a finished run."""
    if config.clip.mode != "mean_of_run":
        return None
    path = Path(config.clip.run) / "metrics.json"
    try:
        bounds = json.loads(path.read_text(encoding="utf-8"))["dac"]
        return float(bounds["lower"]), float(bounds["upper"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"`clip.run`: {path} holds no mean bounds; name a finished run with clip.mode=network"
        ) from None


def distil(
    config: ExperimentConfig,
    train_rows: list[Row],
    dev_rows: list[Row],
    teacher: Prepared | None,
    student: Prepared,
    vocab_size: int,
    folder: Path,
) -> tuple[DistillationModule, DistillationDataModule, Path | None]:
    """The main job: returns the trained module, its data, and the best checkpoint by dev ROUGE-L."""
    tokenizer = student.tokenizer
    annotation = build_annotation(
        tokenizer,
        config.spans,
        seed=config.seed,
        cache_file=cache_folder(config) / "phrases.json",
        wanted=config.objective.w_span > 0,
    )
    train_examples = encode(train_rows, tokenizer, config.data, "training rows").examples
    dev_examples: tuple[Example, ...] = encode(dev_rows, tokenizer, config.data, "dev rows").examples
    train_sequences = annotation.ground_truth(train_examples)
    length = training_length(config.train, len(train_sequences), config.trainer.devices * config.trainer.num_nodes)
    objective = build_objective(config, build_clip(config, vocab_size, mean_bounds(config)))
    needs_teacher = objective.needs_teacher or config.scrg.enabled
    teacher_model = teacher.model if teacher is not None and needs_teacher else None
    module = build_module(config, adapted(student.model, config), teacher_model, objective, length, vocab_size)
    write = build_write(
        config,
        module.student,
        teacher_model,
        tokenizer,
        annotation,
        vocab_size=vocab_size,
        check=module.check_stop,
    )
    tops, report = None, None
    if config.objective.teacher_top_k and teacher_model is not None:
        with placed(working_device(config.trainer.accelerator), teacher_model):
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
        annotation.ground_truth(dev_examples),
        stage=config.train,
        length=length,
        pad_token_id=pad_id(tokenizer),
        run_folder=folder,
        seed=config.seed,
        write=write if config.scrg.enabled else None,
        tops=tops,
    )
    data.cache_report = report
    shown = dev_examples[: config.evaluation.val_rows or None]
    predictor = Predictor(
        tokenizer, shown, config.evaluation, vocab_size=vocab_size, pad_token_id=pad_id(tokenizer)
    )
    module.predict = predictor
    name = f"{config.experiment}/{config.arm} seed {config.seed}"
    best = fit(
        config,
        module,
        data,
        tokenizer,
        folder=folder,
        length=length,
        name=name,
        predictor=predictor,
        hyper_parameters=asdict(config),
    )
    return module, data, best


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


def build_module(
    config: ExperimentConfig, student: Any, teacher: Any, objective: Objective, length: Any, vocab_size: int
) -> DistillationModule:
    return DistillationModule(
        student,
        teacher,
        objective,
        train=config.train,
        trainer=config.trainer,
        total_steps=length.total_steps,
        micro_batches=length.micro_batches,
        vocab_size=vocab_size,
        clip_lr=config.clip.lr,
        seed=config.seed,
    )


def _figures(module: DistillationModule, data: DistillationDataModule) -> dict[str, Any]:
    """What the training itself showed: rounds of text, clipping bounds, dev figures."""
    trainer = module.trainer
    figures: dict[str, Any] = {"steps": trainer.global_step}
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    figures["val"] = {k.removeprefix("val/"): v for k, v in metrics.items() if k.startswith("val/")}
    figures["dac"] = {k.removeprefix("dac/"): v for k, v in metrics.items() if k.startswith("dac/")}
    best: list[Any] = list(trainer.checkpoint_callbacks)
    scores = [float(c.best_model_score) for c in best if getattr(c, "best_model_score", None) is not None]
    if scores:
        figures["val"]["best_rouge_l"] = max(scores)
    if data.cache_report is not None:
        figures["teacher_cache"] = asdict(data.cache_report)
    rounds = [read_manifest(path) or {} for path in sorted((data.run_folder / "scrg").glob("round=*"))]
    statistics = [r["statistics"] for r in rounds if r.get("statistics")]
    if statistics:
        names = set().union(*statistics)
        figures["scrg"] = {
            name: sum(values) / len(values)
            for name in sorted(names)
            if (values := [s[name] for s in statistics if name in s])
        }
        figures["scrg"]["rounds"] = len(statistics)
    return figures


def _test(
    config: ExperimentConfig,
    module: DistillationModule,
    student: Prepared,
    tests: dict[str, tuple[list[Row], list[Example]]],
    folder: Path,
    vocab_size: int,
) -> dict[str, Any]:
    """Read the test sets, once, with the chosen checkpoint."""
    say(f"{config.arm}: writing the test sets with {len(config.evaluation.seeds)} seeds")
    results = {}
    for name, (_, examples) in tests.items():
        predictor = Predictor(
            student.tokenizer,
            examples,
            config.evaluation,
            vocab_size=vocab_size,
            pad_token_id=pad_id(student.tokenizer),
        )
        evaluation = evaluate(module.student, predictor)
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in evaluation.predictions)
        write_atomically(folder / "predictions" / f"{name}.jsonl", "".join(lines))
        results[name] = evaluation.summary
    logger = module.logger
    if logger is not None:
        logger.log_metrics({"hp/rouge_l": results["test"]["rouge_l"]}, module.trainer.global_step)
        logger.save()
    return results
