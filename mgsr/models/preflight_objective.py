"""The objective's part of what is checked before the first stage of a run, see `preflight`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mgsr.config.own_functions import divergence_of, written_divergence_of
from mgsr.config.schema import ExperimentConfig, ObjectiveConfig
from mgsr.losses.divergences import DIVERGENCES
from mgsr.losses.divergences.check import CLASSES, check_divergence
from mgsr.models.chat_template import configured_tokenizer
from mgsr.models.vocabulary import written_vocab_size
from mgsr.runtime.errors import ConfigError


def has_own_function(objective: ObjectiveConfig) -> bool:
    """Whether a divergence is named by its import path: one of ours does not ask for a width."""
    return any(":" in name for name in (objective.divergence, objective.written_divergence))


def width_of_run(config: ExperimentConfig, shapes: Mapping[str, Any]) -> int | None:
    """How many ids both models share; None where a tokenizer is yet to be made, or a model could not be had.

    Args:
        shapes: of teacher and student. Of a student `init` the embedding is made for the teacher's tokenizer.
    """
    models = {"teacher": config.teacher, "student": config.student}
    if config.student.source in ("init", "teacher"):
        del models["student"]
    if config.teacher.source in ("", "init") or not models.keys() <= shapes.keys():
        return None
    return min(written_vocab_size(configured_tokenizer(model), shapes[name]) for name, model in models.items())


def check_objective(objective: ObjectiveConfig, width: int | None = None) -> None:
    """See that the divergence takes its options, before any weight is loaded.

    Args:
        width: of the run's logits, where it is known.
    """
    if objective.kind != "multi_granularity" or not objective.w_dac:
        return
    if objective.divergence == "dac_kl":
        if objective.written_divergence:
            raise ConfigError(
                "`objective.written_divergence` stands beside another divergence than dac_kl; set "
                "objective.divergence too",
                *("objective.written_divergence", "objective.divergence"),
            )
        if objective.divergence_options:
            raise ConfigError(
                "`objective.divergence_options` are none of dac_kl's, which has the section `clip`",
                "objective.divergence_options",
            )
        return
    both = {"divergence": (divergence_of(objective), objective.divergence_options)}
    written = written_divergence_of(objective)
    if written is not None:
        both["written_divergence"] = (written, objective.written_options)
    for key, (found, options) in both.items():
        try:
            function = DIVERGENCES[found] if isinstance(found, str) else found
            check_divergence(function, options, width or CLASSES)
        except ValueError as error:
            name = getattr(objective, key)
            raise ConfigError(f"`objective.{key}`: {name}: {error}", f"objective.{key}") from None
