"""The objective of a run, built from its configuration."""

from __future__ import annotations

from typing import Any

import torch

from mgsr.config.schema import ExperimentConfig
from mgsr.losses import MiniLLMObjective, Objective
from mgsr.models.clip_network import ClipNetwork


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
    top_k = clip_config.mode == "top_k"
    divergence = {
        "symmetric_kl": {"weight": objective.divergence_weight},
        "jensen_shannon": {"beta": objective.beta},
        "skewed_forward_kl": {"alpha": objective.alpha},
        "skewed_reverse_kl": {"alpha": objective.alpha},
    }
    options: dict[str, Any] = {
        "divergence": objective.divergence,
        "divergence_kwargs": divergence.get(objective.divergence),
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
    }
    if objective.tile_size:
        options["tile_size"] = objective.tile_size
    return Objective((objective.w_sft, objective.w_dac, objective.w_span), clip, options)


def build_minillm(config: ExperimentConfig) -> MiniLLMObjective:
    """Bind the configuration, which `load_config` has checked, to the loss."""
    objective = config.objective
    return MiniLLMObjective(
        (objective.w_sft, objective.w_dac, objective.w_span),
        None,
        {"importance_clip": objective.importance_clip, "tile_size": objective.tile_size or None},
    )
