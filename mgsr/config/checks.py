"""Values of a configuration that are each allowed and contradict one another."""

from __future__ import annotations

from mgsr.config.schema import ExperimentConfig
from mgsr.runtime.errors import ConfigError

_RESERVED_SETS = ("train", "dev", "test", "teacher")


def check_together(config: ExperimentConfig) -> None:
    """Refuse values that contradict one another, and turn a price of the clip network into a number.

    Raises:
        ConfigError: the first contradiction, with what to set instead.
    """
    _check_names(config)
    _check_clip(config)
    _check_lengths_and_betas(config)
    _check_test_sets(config)
    _check_devices(config)
    _check_objective(config)
    if config.objective.kind == "minillm":
        _check_minillm(config)


def _check_names(config: ExperimentConfig) -> None:
    for name in ("experiment", "arm"):
        value = getattr(config, name)
        if not value or "/" in value or "\\" in value or "\0" in value or value.startswith("."):
            raise ConfigError(f"`{name}` is {value!r}; it names a folder: no slash, no leading dot, not empty")


def _check_clip(config: ExperimentConfig) -> None:
    clip = config.clip
    if not clip.lower_max <= clip.upper_min < clip.upper_max:
        raise ConfigError("`clip`: lower_max <= upper_min < upper_max must hold")
    if clip.mode == "network" and clip.sharpness == 0:
        raise ConfigError(
            "`clip.sharpness` is 0: a hard mask gives learned bounds no gradient; use clip.mode=fixed"
        )
    if clip.mode == "network" and (clip.ramp != "clipped" or clip.quantile != "mass"):
        raise ConfigError("`clip.mode=network` learns bounds on mass with the clipped ramp; use clip.mode=fixed")
    if clip.mode == "mean_of_run" and not clip.run:
        raise ConfigError("`clip.mode=mean_of_run` needs `clip.run`, the folder of a finished run")
    if isinstance(clip.mass_price, str) and clip.mass_price != "auto":
        try:
            # YAML takes 1e-3 for a word
            clip.mass_price = float(clip.mass_price)
        except ValueError:
            raise ConfigError(f"`clip.mass_price` is {clip.mass_price!r}; it takes a number or auto") from None
    if not isinstance(clip.mass_price, str):
        clip.mass_price = float(clip.mass_price)
        if not 0 <= clip.mass_price < float("inf"):
            raise ConfigError(f"`clip.mass_price` is {clip.mass_price}; it must be at least 0 and finite")


def _check_lengths_and_betas(config: ExperimentConfig) -> None:
    if config.data.max_prompt_length >= config.data.max_length:
        raise ConfigError("`data.max_prompt_length` must be smaller than `data.max_length`")
    stages = {"train": config.train, "teacher.sft": config.teacher.sft, "student.sft": config.student.sft}
    for stage, values in stages.items():
        if len(values.betas) != 2 or not all(0 <= beta < 1 for beta in values.betas):
            raise ConfigError(f"`{stage}.betas` is {values.betas}; it takes two numbers in [0, 1)")


def _check_test_sets(config: ExperimentConfig) -> None:
    for name in config.data.test_sets:
        if name in _RESERVED_SETS or "/" in name or "\\" in name or name.startswith(".") or not name:
            raise ConfigError(
                f"`data.test_sets`: {name!r} names a file of predictions; no slash, no leading dot, "
                f"none of {', '.join(_RESERVED_SETS)}"
            )


def _check_objective(config: ExperimentConfig) -> None:
    scrg = config.scrg
    if config.objective.divergence == "jensen_shannon" and not 0 < config.objective.beta < 1:
        raise ConfigError("`objective.beta` of jensen_shannon must lie strictly between 0 and 1")
    if not config.evaluation.seeds:
        raise ConfigError("`evaluation.seeds` is empty; give at least one sampling seed")
    needs_teacher = config.objective.w_dac > 0 or config.objective.w_span > 0
    rewrites = scrg.enabled and (scrg.text != "student" or scrg.passes > 0)
    if (needs_teacher or rewrites) and not config.teacher.source:
        raise ConfigError("`teacher.source` is empty; this objective needs a teacher")
    if not config.student.source:
        raise ConfigError("`student.source` is empty; name a model, `teacher` or `init`")
    if scrg.backend == "vllm" and (scrg.text != "student" or config.student.lora.r):
        raise ConfigError(
            "`scrg.backend=vllm` writes text of a student without adapters; set scrg.text=student student.lora.r=0"
        )
    if scrg.cross_entropy and scrg.text != "teacher":
        raise ConfigError(
            "`scrg.cross_entropy` is for scrg.text=teacher: student text never carries cross-entropy"
        )
    if scrg.enabled and not needs_teacher and not scrg.cross_entropy:
        raise ConfigError(
            "`scrg.enabled` with w_dac and w_span 0: student text would carry no loss; set scrg.enabled=false"
        )
    if config.objective.teacher_top_k and config.objective.temperature != 1:
        raise ConfigError(
            "`objective.teacher_top_k` keeps the teacher at temperature 1; set objective.temperature=1"
        )


def _check_minillm(config: ExperimentConfig) -> None:
    scrg = config.scrg
    if not (scrg.enabled and scrg.text == "mixed"):
        raise ConfigError("`objective.kind=minillm` trains on mixed text; set scrg.enabled=true scrg.text=mixed")
    if config.objective.w_span:
        raise ConfigError("`objective.kind=minillm` has no span term; set objective.w_span=0")
    if config.objective.teacher_top_k:
        raise ConfigError("`objective.kind=minillm` needs the whole teacher: set objective.teacher_top_k=0")
    if config.objective.temperature != 1:
        raise ConfigError("`objective.kind=minillm` works at temperature 1; set objective.temperature=1")


def _check_devices(config: ExperimentConfig) -> None:
    trainer, placement = config.trainer, config.teacher.placement
    if placement == "sharded" and trainer.strategy != "fsdp2":
        raise ConfigError("`teacher.placement=sharded` is part of `trainer.strategy=fsdp2`; set that too")
    if placement == "sharded" and config.objective.teacher_top_k:
        raise ConfigError(
            "`teacher.placement=sharded` with `objective.teacher_top_k`: ranks would call the teacher a different "
            "number of times; set one of them"
        )
    if trainer.strategy == "fsdp2":
        if trainer.precision == "16-mixed":
            raise ConfigError(
                "`trainer.strategy=fsdp2` takes no `trainer.precision=16-mixed` (its scaler reads gradients); "
                "use bf16-mixed"
            )
        if trainer.compile:
            raise ConfigError("`trainer.strategy=fsdp2` with `trainer.compile` is not supported; set one of them")
    if config.scrg.backend == "vllm" and trainer.devices * trainer.num_nodes > 1:
        raise ConfigError(
            "`scrg.backend=vllm` writes on one device; set trainer.devices=1, or scrg.backend=transformers"
        )
