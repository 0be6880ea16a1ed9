"""The main job of a run, built from its configuration: module, data, and who writes the dev set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import mgsr
from mgsr.config.own_functions import class_of, divergence_of, written_divergence_of
from mgsr.config.schema import ExperimentConfig
from mgsr.data.prompts import Example
from mgsr.data.rows import Row
from mgsr.data.splits import build_annotation, encode, encode_answered
from mgsr.evaluation.test_set import Predictor
from mgsr.losses import MiniLLMObjective, Objective
from mgsr.models.clip_network import ClipNetwork
from mgsr.models.from_config import with_adapters
from mgsr.rounds.unrevised import WRITERS
from mgsr.rounds.writer import RoundWriter, UnrevisedWriter
from mgsr.runtime.devices import placed, product_dtype, working_device
from mgsr.runtime.errors import ConfigError, DataError
from mgsr.runtime.json_files import read_json
from mgsr.runtime.ranks import first_alone
from mgsr.training.datamodule import DistillationDataModule
from mgsr.training.launch import StopRequest, stop_request
from mgsr.training.module import DistillationModule
from mgsr.training.optim import Length, training_length
from mgsr.training.run_folder import ENVIRONMENT, METRICS, SHAPES
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
    config: ExperimentConfig,
    train_rows: Sequence[Row],
    dev_rows: Sequence[Row],
    start: Start,
    folder: Path,
    device: torch.device,
) -> Job:
    """Bind configuration, rows and models.

    Args:
        folder: of the run; its rounds of text go there.
        device: where models work outside of Lightning.
    """
    student = start.student
    ends = start.ends
    ids: dict[str, Any] = {"eos_token_id": ends.stop_ids, "pad_token_id": ends.pad_id}
    annotation = build_annotation(
        student.tokenizer,
        config.spans,
        seed=config.seed,
        cache_file=cache_folder(config) / "phrases.json",
        wanted=config.objective.w_span > 0,
        stop_ids=ends.stop_ids,
    )
    train_examples = encode(train_rows, student.tokenizer, config.data, "training rows").examples
    dev_examples = encode(dev_rows, student.tokenizer, config.data, "dev rows").examples
    with first_alone():
        train, dev = annotation.ground_truth(train_examples), annotation.ground_truth(dev_examples)
    length = training_length(config.train, len(train), config.trainer.devices * config.trainer.num_nodes)
    objective = build_objective(config, build_clip(config, start.vocab_size, mean_bounds(config)))
    needs_teacher = objective.needs_teacher or config.scrg.enabled
    teacher = start.teacher.model if start.teacher is not None and needs_teacher else None
    stop = stop_request(config)
    answered: Sequence[Example] = dev_examples
    # every dev row is answered, also one that no loss is measured on
    if config.evaluation.max_prompt_length or len(dev_examples) < len(dev_rows):
        answered = encode_answered(dev_rows, student.tokenizer, config.data, config.evaluation, "dev prompts")
    predictor = Predictor(
        student.tokenizer,
        answered[: config.evaluation.val_rows or None],
        config.evaluation,
        vocab_size=start.vocab_size,
        pad_token_id=ends.pad_id,
        stop_ids=ends.stop_ids,
        lead=ends.lead,
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
    writer = writer_class(config)(
        config,
        module.placement,
        student.tokenizer,
        annotation,
        vocab_size=start.vocab_size,
        device=device,
        check=stop.check,
        **ids,
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
        pad_token_id=ends.pad_id,
        run_folder=folder,
        seed=config.seed,
        writer=writer if config.scrg.enabled else None,
        tops=tops,
        score=score,
        references={row.id: row.references for row in train_rows},
    )
    return Job(module, data, stop, length, report)


def check_match(config: ExperimentConfig) -> None:
    """See that `objective.match_gradient` can be measured.

    Raises:
        ConfigError: models are in parts, or not on the device.
    """
    measured = config.objective.match_gradient and config.objective.w_dac > 0
    if measured and (config.trainer.strategy == "fsdp2" or config.teacher.placement != "replicated"):
        raise ConfigError(
            "`objective.match_gradient` measures whole models on the device when a run begins; set "
            "trainer.strategy=ddp teacher.placement=replicated until the first checkpoint, or leave it out",
            *("objective.match_gradient", "trainer.strategy", "teacher.placement"),
        )


def writer_class(config: ExperimentConfig) -> type[RoundWriter]:
    """Who writes the text of rounds.

    Raises:
        ConfigError: a class of the user's own cannot be imported, or is no `UnrevisedWriter`.
    """
    # what is no text of the student's is taken to have no corrections, wherever a run is planned and told of
    return class_of(config.scrg.text, WRITERS, UnrevisedWriter, "scrg.text")


def build_clip(config: ExperimentConfig, vocab_size: int, mean_bounds: tuple[float, float] | None) -> Any:
    """The clip network, or a pair of fixed bounds; None where the token level is another loss, without bounds.

    Args:
        vocab_size: classes that the divergence sees; top_k measures rank in shares of it.
        mean_bounds: for `clip.mode: mean_of_run`, the bounds read from that run.
    """
    clip = config.clip
    if config.objective.divergence != "dac_kl" or config.objective.kind == "minillm":
        return None
    if clip.mode == "fixed":
        return (clip.lower, clip.upper)
    if clip.mode == "mean_of_run":
        assert mean_bounds is not None
        return mean_bounds
    if clip.mode == "top_k":
        return (float("-inf"), clip.top_k / vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return ClipNetwork(
            hidden=clip.hidden_size,
            lower_max=clip.lower_max,
            upper_min=clip.upper_min,
            upper_max=clip.upper_max,
            sharpness=clip.sharpness,
            objective=clip.objective,
            mass_price=clip.mass_price,
            clip_share=clip.clip_share,
        )


def build_objective(config: ExperimentConfig, clip: Any) -> Objective:
    """Bind the configuration to the loss; `clip` as from `build_clip`."""
    if config.objective.kind == "minillm":
        return build_minillm(config)
    objective, clip_config = config.objective, config.clip
    device = working_device(config.trainer.accelerator)
    top_k = clip_config.mode == "top_k"
    options: dict[str, Any] = {
        "divergence": divergence_of(objective),
        "written_divergence": written_divergence_of(objective),
        "temperature": objective.temperature,
        # top-k is a hard mask on rank
        "sharpness": 0.0 if top_k else clip_config.sharpness,
        "quantile": "rank" if top_k else clip_config.quantile,
        "ramp": clip_config.ramp,
        "target": clip_config.target,
        "keep_target": clip_config.keep_target,
        "form": clip_config.form,
        "span_norm": config.spans.norm,
        "span_relation": config.spans.relation,
        "product_dtype": product_dtype(config.trainer.precision, device),
    }
    if objective.tile_size:
        options["tile_size"] = objective.tile_size
    weights = objective.w_sft, objective.w_dac, objective.w_span
    built = Objective(weights, clip, options, objective.divergence_options, objective.written_options)
    built.match = objective.match_gradient and built.weights[1] > 0
    return built


def build_minillm(config: ExperimentConfig) -> MiniLLMObjective:
    """Bind the configuration, which `load_config` has checked, to the loss."""
    objective, device = config.objective, working_device(config.trainer.accelerator)
    options = {
        "importance_clip": objective.importance_clip,
        "tile_size": objective.tile_size or None,
        "product_dtype": product_dtype(config.trainer.precision, device),
    }
    return MiniLLMObjective((objective.w_sft, objective.w_dac, objective.w_span), None, options)


def mean_bounds(config: ExperimentConfig) -> tuple[float, float] | None:
    """For `clip.mode: mean_of_run`: the mean learned bounds of a finished run, or of a study's result file.

    Raises:
        ConfigError: the run is not there, has no learned bounds, or was made by code of another numerics version.
    """
    if config.clip.mode != "mean_of_run":
        return None
    path, remedy = Path(config.clip.run), "name a finished run with clip.mode=network"
    bounds = {"dac": {"lower": float, "upper": float}}
    try:
        if path.suffix == ".json":
            result = read_json(path, {"metrics": bounds, "environment": SHAPES[ENVIRONMENT]}, remedy)
            metrics, environment = result["metrics"], result["environment"]
        else:
            metrics = read_json(path / METRICS, bounds, remedy)
            environment = read_json(path / ENVIRONMENT, SHAPES[ENVIRONMENT], remedy)
    except DataError as error:
        raise ConfigError(f"`clip.run`: {error}", "clip.run") from None
    version = environment["numerics"]
    if version != mgsr.NUMERICS_VERSION:
        raise ConfigError(
            f"`clip.run`: {path} is of numerics version {version}, this code is of {mgsr.NUMERICS_VERSION}; "
            "run it anew",
            "clip.run",
        )
    return metrics["dac"]["lower"], metrics["dac"]["upper"]
