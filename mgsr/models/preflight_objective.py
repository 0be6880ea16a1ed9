"""The objective's part of what is checked before the first stage of a run, see `preflight`."""

from __future__ import annotations

from mgsr.config.own_functions import divergence_of, written_divergence_of
from mgsr.config.schema import ObjectiveConfig
from mgsr.losses.divergences import DIVERGENCES
from mgsr.losses.divergences.check import check_divergence
from mgsr.runtime.errors import ConfigError


def check_objective(objective: ObjectiveConfig) -> None:
    """See that the divergence takes its options, before any weight is loaded."""
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
            check_divergence(DIVERGENCES[found] if isinstance(found, str) else found, options)
        except ValueError as error:
            name = getattr(objective, key)
            raise ConfigError(f"`objective.{key}`: {name}: {error}", f"objective.{key}") from None
