"""One run: prepare models and data, distil, evaluate the best checkpoint on the test sets, write metrics.json."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mgsr.config.load import fingerprint, with_absolute_paths
from mgsr.config.origin import placed
from mgsr.config.own_functions import own_code
from mgsr.config.schema import ExperimentConfig
from mgsr.config.values import without_effect
from mgsr.data.rows import Row
from mgsr.data.splits import read_split, rows_fingerprint, say_of_cut
from mgsr.evaluation.exposure_bias import exposure_bias
from mgsr.evaluation.floors import asked, cached_floors
from mgsr.evaluation.flops import flops_of
from mgsr.evaluation.test_set import Evaluation, evaluate_tests, say_of_unseen_words
from mgsr.models.chat_template import run_template
from mgsr.models.from_config import say_of_namesakes
from mgsr.models.preflight import Size, check_run
from mgsr.rounds.store import read_manifest, round_folders
from mgsr.rounds.text_quality import correction_examples, correction_quality, text_diversity
from mgsr.runtime.devices import computing_dtype, free_memory, matmul_precision, quick_cpu, working_device
from mgsr.runtime.errors import UserError
from mgsr.runtime.files import remove_leftovers, write_atomically
from mgsr.runtime.locks import locked
from mgsr.runtime.meter import Work, added
from mgsr.runtime.progress import say
from mgsr.runtime.ranks import agreed, first_alone, is_first, on_first
from mgsr.training.build import Job, build_job, check_match, mean_bounds, writer_class
from mgsr.training.callbacks import CostLog
from mgsr.training.checkpoint import resume_points
from mgsr.training.fsdp import phase_of, working
from mgsr.training.run_folder import METRICS, keep_models, open_run_folder, read_run_file, run_folder
from mgsr.training.sft import Start, prepare_models
from mgsr.training.trainer import fit, load_student

Announce = Callable[[ExperimentConfig, Mapping[str, Sequence[Row]], Mapping[str, Size]], None]


def train(config: ExperimentConfig, *, resume: bool = False, announce: Announce | None = None) -> dict[str, Any]:
    """Run a configuration to its end and return what `metrics.json` holds.

    Args:
        resume: go on with what the run folder holds; otherwise a folder that holds a run is refused.
        announce: is called on the first rank before the first stage, with the configuration, the rows by split
            and the models' sizes.

    Raises:
        UserError: anything the user can mend, as one line.
    """
    config = with_absolute_paths(config)
    trainer = config.trainer
    with placed(config), quick_cpu(trainer.threads), matmul_precision(trainer.matmul_precision):
        return _train(config, resume, announce)


def _train(config: ExperimentConfig, resume: bool, announce: Announce | None) -> dict[str, Any]:
    began = time.monotonic()
    if is_first():
        for line in without_effect(config):
            say(line)
    # read before anything is written: a bad row leaves no folder behind
    with first_alone():
        rows = _rows(config)
        say_of_cut(rows)
        say_of_namesakes(config)
        say_of_unseen_words(config.evaluation, rows)
    device = working_device(config.trainer.accelerator)
    mean_bounds(config)
    writer_class(config)
    folder = run_folder(config)
    if not (resume and resume_points(folder)):
        # a run that is taken up has the factor
        check_match(config)
    if resume and not (folder / "config.yaml").exists():
        raise UserError(f"{folder}: holds no run to resume (no config.yaml)")
    sizes = {} if (folder / METRICS).exists() else check_run(config, rows)
    fingerprints = {k: rows_fingerprint(v) for k, v in rows.items()}
    if template := run_template(config):
        fingerprints["chat_template"] = fingerprint(template)
    fingerprints |= own_code(config)
    with locked(folder) if is_first() else nullcontext():
        if is_first():
            remove_leftovers(folder)
            open_run_folder(folder, config, resume=resume, data=fingerprints)
        done = folder / METRICS
        if agreed(done.exists()):
            metrics = read_run_file(folder, METRICS)
            say(f"{folder}: complete already")
            return metrics
        if resume and is_first() and not resume_points(folder):
            say(f"{folder}: no resume point in checkpoints/: it begins at step 0")
        if announce is not None and is_first():
            announce(config, rows, sizes)
        metrics = _run(config, rows, folder, device)
        metrics["seconds"] = time.monotonic() - began
        on_first(lambda: write_atomically(done, json.dumps(metrics, indent=2) + "\n", kind="metrics"))
    return metrics


def _run(
    config: ExperimentConfig, rows: dict[str, list[Row]], folder: Path, device: torch.device
) -> dict[str, Any]:
    """What `metrics.json` holds, time aside."""
    start = prepare_models(config, rows)
    on_first(lambda: keep_models(folder, config, start.teacher, start.student))
    metrics = {"experiment": config.experiment, "arm": config.arm, "seed": config.seed, **start.figures}
    within = {name: [example.within for example in examples] for name, (_, examples) in start.tests.items()}
    metrics["floors"] = cached_floors(config, rows, within)

    done = _distil(config, rows, start, folder, device)
    # the student as it began may be another object, such as one in parts
    trained, start = done.student, replace(start, student=replace(start.student, model=done.student))
    free_memory()
    if done.best is not None:
        load_student(trained, done.best)
    metrics.update(done.figures)
    metrics["training_text"] = text_diversity(folder, done.ground_truth)
    quality = correction_quality(folder)
    if quality is not None:
        prompts = {row.id: asked(row) for row in rows["train"]}
        metrics["corrections"] = {**quality, "examples": correction_examples(folder, prompts)}
    with working(trained, computing_dtype(config.trainer.precision, device)) as computing:
        # the test sets, once, with the chosen checkpoint
        tokenizer, tests = start.student.tokenizer, start.tests
        written = evaluate_tests(config, computing, tokenizer, tests, start.vocab_size, start.ends, config.arm)
        on_first(lambda: _keep_predictions(folder, written))
        metrics["result"] = {name: evaluation.summary for name, evaluation in written.items()}
        if done.logger is not None:
            # the figure that TensorBoard's HPARAMS tab compares
            done.logger.log_metrics({"hp/rouge_l": metrics["result"]["test"]["rouge_l"]}, metrics["steps"])
            done.logger.save()
        if start.teacher is not None:
            teacher, examples = start.teacher.model, tests["test"][1]
            together = partial(phase_of, teacher, device)
            metrics["exposure"] = exposure_bias(
                config, computing, teacher, start.ends, examples, start.vocab_size, together=together
            )
    return metrics


class _Distilled(NamedTuple):
    """What is left of the main job: its module, data and trainer are gone.

    Attributes:
        student: whole, with the weights of the last step. best: the checkpoint to take instead, if there is one.
        ground_truth: response tokens of the training rows.
    """

    student: Any
    best: Path | None
    figures: dict[str, Any]
    ground_truth: Sequence[Sequence[int]]
    logger: Any


def _distil(
    config: ExperimentConfig, rows: dict[str, list[Row]], start: Start, folder: Path, device: torch.device
) -> _Distilled:
    started = time.monotonic()
    job = build_job(config, rows["train"], rows["dev"], start, folder, device)
    best = fit(
        config,
        job.module,
        job.data,
        start.student.tokenizer,
        folder=folder,
        length=job.length,
        name=f"{config.experiment}/{config.arm} seed {config.seed}",
        stop=job.stop,
        hyper_parameters=asdict(config),
    )
    figures = {"seconds_training": time.monotonic() - started, **_figures(job)}
    ground_truth = [row.response_ids for row in job.data.train_rows]
    return _Distilled(job.module.placement.last(), best, figures, ground_truth, job.module.logger)


def prepare(config: ExperimentConfig) -> None:
    """Make what the run starts from, as far as it isn't there: teacher, SFT student, and their test figures."""
    config = with_absolute_paths(config)
    with placed(config), quick_cpu(), matmul_precision(config.trainer.matmul_precision):
        rows = _rows(config)
        check_run(config, rows)
        prepare_models(config, rows)


def _rows(config: ExperimentConfig) -> dict[str, list[Row]]:
    return {split: read_split(config.data, split) for split in ("train", "dev", "test", *config.data.test_sets)}


def _keep_predictions(folder: Path, written: Mapping[str, Evaluation]) -> None:
    for name, evaluation in written.items():
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in evaluation.predictions]
        write_atomically(folder / "predictions" / f"{name}.jsonl", "".join(lines))


def _figures(job: Job) -> dict[str, Any]:
    """What the training itself showed: rounds of text, clipping bounds, dev figures."""
    trainer, data = job.module.trainer, job.data
    figures: dict[str, Any] = {"steps": trainer.global_step}
    if job.module.objective.match:
        figures["divergence_factor"] = job.module.objective.factor
    if job.module.skipped:
        figures["steps_left_out"] = job.module.skipped
    latest = job.module.latest
    figures["val"] = {k.removeprefix("val/"): v for k, v in latest.items() if k.startswith("val/")}
    figures["dac"] = {k.removeprefix("dac/"): v for k, v in latest.items() if k.startswith("dac/")}
    best: list[Any] = list(trainer.checkpoint_callbacks)
    scores = [float(c.best_model_score) for c in best if getattr(c, "best_model_score", None) is not None]
    if scores:
        figures["val"]["best_rouge_l"] = max(scores)
    costs = next(c for c in trainer.callbacks if isinstance(c, CostLog))  # type: ignore[attr-defined]
    spent = costs.totals(data)
    if job.cache_report is not None:
        # as if this run had made the cache, whoever has
        cached = Work()
        for row in data.train_rows:
            cached.read(len(row), len(row.response_ids))
        spent = added(spent, cached.named("read_teacher"))
    flops = flops_of(spent, job.module.student, job.module.teacher)
    figures["costs"] = spent | ({} if flops is None else {"flops": flops})
    if job.cache_report is not None:
        # who wrote it is chance: this run, one before it, or another one
        figures["teacher_cache"] = {k: v for k, v in asdict(job.cache_report).items() if k != "written"}
    rounds = [read_manifest(path) for path in round_folders(data.run_folder).values()]
    statistics = [r["statistics"] for r in rounds if r is not None and r["statistics"]]
    if statistics:
        names = set().union(*statistics)
        figures["scrg"] = {
            name: sum(values) / len(values)
            for name in sorted(names)
            if (values := [s[name] for s in statistics if name in s])
        }
        figures["scrg"]["rounds"] = len(statistics)
    return figures
