"""Values of a configuration that are each allowed and contradict one another."""

from __future__ import annotations

import math
from pathlib import Path

from mgsr.config.keys import value_of
from mgsr.config.schema import ExperimentConfig
from mgsr.runtime.errors import ConfigError

_RESERVED_SETS = ("train", "dev", "test", "teacher")
TAKEN = ("results", "cache")
"""Folders of a run root that hold no experiment."""
_LONGEST_NAME = 200  # bytes: a file system takes 255, and what is written beside it needs the rest
_LEAST_TEMPERATURE = 1e-3
_FILLERS = {"data.train": "FILE", "teacher.source": "MODEL", "student.source": "MODEL"}


def check_together(config: ExperimentConfig) -> None:
    """Refuse values that contradict one another.

    Raises:
        ConfigError: the first contradiction, with what to set instead.
    """
    _check_names(config)
    _check_for_gaps(config)
    _check_clip(config)
    _check_lengths_and_betas(config)
    _check_test_sets(config)
    _check_models(config)
    _check_devices(config)
    _check_objective(config)
    if config.objective.kind == "minillm":
        _check_minillm(config)


def _is_name(name: str) -> bool:
    """Whether it can name a file or a folder, wherever that is."""
    plain = bool(name) and name.isprintable() and not set(name) & {"/", "\\"}
    return plain and not name.startswith(".") and len(name.encode()) <= _LONGEST_NAME


def _check_names(config: ExperimentConfig) -> None:
    for name in ("experiment", "arm"):
        value = getattr(config, name)
        if not _is_name(value):
            raise ConfigError(
                f"`{name}` is {value!r}; it names a folder: no slash, no leading dot, not empty, not over "
                f"{_LONGEST_NAME} bytes",
                name,
            )
    if config.experiment.lower() in TAKEN:
        what = f"`experiment` is {config.experiment}, a folder with a meaning below the run root"
        raise ConfigError(f"{what}; call it otherwise", "experiment")
    if not config.run_root:
        raise ConfigError("`run_root` is empty; name a folder, such as runs", "run_root")


def _check_for_gaps(config: ExperimentConfig) -> None:
    """All that a starting file leaves to be filled in, at once."""
    needed = ["data.train", *(["teacher.source"] if needs_teacher(config) else []), "student.source"]
    missing = [name for name in needed if not value_of(config, name)]
    if missing:
        named = ", ".join(f"`{name}`" for name in missing)
        words = " ".join(f"{name}={_FILLERS[name]}" for name in missing)
        raise ConfigError(
            f"{named} {'is' if len(missing) == 1 else 'are'} empty: set {words}; "
            "`mgsr init` prints a file to start from",
            *missing,
        )


def needs_teacher(config: ExperimentConfig) -> bool:
    """Whether a teacher has a part in the loss or in the text."""
    scrg = config.scrg
    rewrites = scrg.enabled and (scrg.text != "student" or scrg.passes > 0)
    return config.objective.w_dac > 0 or config.objective.w_span > 0 or rewrites


def _check_clip(config: ExperimentConfig) -> None:
    clip = config.clip
    if not clip.lower_max <= clip.upper_min < clip.upper_max:
        raise ConfigError(
            "`clip`: lower_max <= upper_min < upper_max must hold",
            *("clip.lower_max", "clip.upper_min", "clip.upper_max"),
        )
    # a lower bound of inf keeps the target class alone
    if clip.mode == "fixed" and not (clip.lower <= clip.upper or clip.lower == math.inf):
        raise ConfigError(
            f"`clip`: lower {clip.lower} <= upper {clip.upper} must hold", "clip.lower", "clip.upper"
        )
    if clip.mode == "network" and clip.sharpness == 0:
        raise ConfigError(
            "`clip.sharpness` is 0: a hard mask gives learned bounds no gradient; use clip.mode=fixed",
            *("clip.sharpness", "clip.mode"),
        )
    if clip.mode == "network" and (clip.ramp != "clipped" or clip.quantile != "mass"):
        raise ConfigError(
            "`clip.mode=network` learns with clip.ramp=clipped clip.quantile=mass; set these, or clip.mode=fixed",
            *("clip.mode", "clip.ramp", "clip.quantile"),
        )
    if clip.mode == "network" and clip.lr == 0:
        raise ConfigError(
            "`clip.lr` is 0: the network's bounds would stay where they start; use clip.mode=fixed",
            *("clip.lr", "clip.mode"),
        )
    if clip.mode == "mean_of_run" and not clip.run:
        raise ConfigError(
            "`clip.mode=mean_of_run` needs `clip.run`, the folder of a finished run", "clip.mode", "clip.run"
        )
    if isinstance(clip.mass_price, str) and clip.mass_price != "auto":
        raise ConfigError(
            f"`clip.mass_price` is {clip.mass_price!r}; it takes a number or auto", "clip.mass_price"
        )


def _check_lengths_and_betas(config: ExperimentConfig) -> None:
    if config.data.max_prompt_length >= config.data.max_length:
        raise ConfigError(
            f"`data.max_prompt_length` is {config.data.max_prompt_length}; it must be smaller than "
            f"`data.max_length`, {config.data.max_length}",
            *("data.max_prompt_length", "data.max_length"),
        )
    stages = {"train": config.train, "teacher.sft": config.teacher.sft, "student.sft": config.student.sft}
    for stage, values in stages.items():
        if values.lr == 0:
            raise ConfigError(f"`{stage}.lr` is 0, and nothing would be learned; set one above 0", f"{stage}.lr")
        if len(values.betas) != 2 or not all(0 <= beta < 1 for beta in values.betas):
            raise ConfigError(
                f"`{stage}.betas` is {values.betas}; it takes two numbers in [0, 1)", f"{stage}.betas"
            )


def _check_test_sets(config: ExperimentConfig) -> None:
    for name in config.data.test_sets:
        if name in _RESERVED_SETS or not _is_name(name):
            raise ConfigError(
                f"`data.test_sets`: {name!r} names a file of predictions; no slash, no leading dot, "
                f"none of {', '.join(_RESERVED_SETS)}",
                "data.test_sets",
            )


def _check_objective(config: ExperimentConfig) -> None:
    scrg = config.scrg
    if len(set(config.evaluation.seeds)) < len(config.evaluation.seeds):
        raise ConfigError("`evaluation.seeds` names a seed twice; leave one out", "evaluation.seeds")
    if 0 < config.evaluation.temperature < _LEAST_TEMPERATURE:
        raise ConfigError(
            f"`evaluation.temperature` is {config.evaluation.temperature}; it takes 0 (greedy), or at least "
            f"{_LEAST_TEMPERATURE}",
            "evaluation.temperature",
        )
    taught = config.objective.w_dac > 0 or config.objective.w_span > 0
    if scrg.backend == "vllm" and (scrg.text != "student" or config.student.lora.r):
        raise ConfigError(
            "`scrg.backend=vllm` writes text of a student without adapters; set scrg.text=student "
            "student.lora.r=0",
            *("scrg.backend", "scrg.text", "student.lora.r"),
        )
    if scrg.cross_entropy and scrg.text != "teacher":
        raise ConfigError(
            "`scrg.cross_entropy` is for scrg.text=teacher: student text never carries cross-entropy",
            *("scrg.cross_entropy", "scrg.text"),
        )
    if not taught and not config.objective.w_sft:
        raise ConfigError(
            "`objective`: w_sft, w_dac and w_span are all 0, and nothing would train; give one a weight",
            *("objective.w_sft", "objective.w_dac", "objective.w_span"),
        )
    if scrg.enabled and not taught and not scrg.cross_entropy:
        raise ConfigError(
            "`scrg.enabled` with w_dac and w_span 0: student text would carry no loss; set scrg.enabled=false",
            *("scrg.enabled", "objective.w_dac", "objective.w_span"),
        )
    if config.objective.teacher_top_k and config.objective.temperature != 1:
        raise ConfigError(
            "`objective.teacher_top_k` keeps the teacher at temperature 1; set objective.temperature=1",
            *("objective.teacher_top_k", "objective.temperature"),
        )


def _check_minillm(config: ExperimentConfig) -> None:
    scrg, objective = config.scrg, config.objective

    def refuse(what: str, *names: str) -> None:
        raise ConfigError(f"`objective.kind=minillm` {what}", "objective.kind", *names)

    if not (scrg.enabled and scrg.text == "mixed"):
        refuse("trains on mixed text; set scrg.enabled=true scrg.text=mixed", "scrg.enabled", "scrg.text")
    if objective.w_span:
        refuse("has no span term; set objective.w_span=0", "objective.w_span")
    if objective.teacher_top_k:
        refuse("needs the whole teacher: set objective.teacher_top_k=0", "objective.teacher_top_k")
    if objective.temperature != 1:
        refuse("works at temperature 1; set objective.temperature=1", "objective.temperature")


def _check_devices(config: ExperimentConfig) -> None:
    trainer, placement = config.trainer, config.teacher.placement
    if trainer.accelerator == "cpu":
        check_device(config, "cpu")
    if placement == "sharded" and trainer.strategy != "fsdp2":
        raise ConfigError(
            "`teacher.placement=sharded` is part of `trainer.strategy=fsdp2`; set that too",
            "teacher.placement",
            "trainer.strategy",
        )
    if placement == "sharded" and config.objective.teacher_top_k:
        raise ConfigError(
            "`teacher.placement=sharded` with `objective.teacher_top_k`: ranks would call the teacher a different "
            "number of times; set one of them",
            *("teacher.placement", "objective.teacher_top_k"),
        )
    if trainer.strategy == "fsdp2":
        if trainer.precision == "16-mixed":
            raise ConfigError(
                "`trainer.strategy=fsdp2` takes no `trainer.precision=16-mixed` (its scaler reads gradients); "
                "use bf16-mixed",
                *("trainer.strategy", "trainer.precision"),
            )
        if trainer.compile:
            raise ConfigError(
                "`trainer.strategy=fsdp2` with `trainer.compile` is not supported; set one of them",
                "trainer.strategy",
                "trainer.compile",
            )
    if config.scrg.backend == "vllm" and trainer.devices * trainer.num_nodes > 1:
        raise ConfigError(
            "`scrg.backend=vllm` writes on one device; set trainer.devices=1, or scrg.backend=transformers",
            *("scrg.backend", "trainer.devices", "trainer.num_nodes"),
        )


def check_device(config: ExperimentConfig, kind: str) -> None:
    """Refuse a kind of device, `cpu` or `cuda`, that cannot do what is asked.

    Raises:
        ConfigError: 16-mixed on a CPU, which has no scaler of gradients.
    """
    if kind == "cpu" and config.trainer.precision == "16-mixed":
        raise ConfigError(
            "`trainer.precision=16-mixed` is for GPUs; on a CPU set trainer.precision=bf16-mixed or 32-true",
            *("trainer.precision", "trainer.accelerator"),
        )


def _check_models(config: ExperimentConfig) -> None:
    for role, model in (("teacher", config.teacher), ("student", config.student)):
        if model.source in ("init", "teacher"):
            for name in ("gguf_file", "revision"):
                if getattr(model, name):
                    raise ConfigError(
                        f"`{role}.{name}` has no meaning with {role}.source={model.source}; set {role}.{name}=''",
                        *(f"{role}.{name}", f"{role}.source"),
                    )
        trained = model.sft.enabled or (role == "student" and not config.student.lora.r)
        if model.dtype == "float16" and trained:
            raise ConfigError(
                f"`{role}.dtype=float16` gives NaN when it is trained; set {role}.dtype=float32, with "
                "trainer.precision=16-mixed or bf16-mixed to save memory",
                *(f"{role}.dtype", f"{role}.sft.enabled"),
            )
    if config.teacher.source == "teacher":
        if not Path("teacher").is_dir():
            raise ConfigError(
                "`teacher.source=teacher` is for a student, and here is no folder of that name; name a model",
                "teacher.source",
            )
        # no word from here on
        config.teacher.source = "./teacher"
    if config.student.source == "teacher" and not config.teacher.source:
        raise ConfigError("`student.source=teacher` and `teacher.source` is empty; name one", "student.source")
