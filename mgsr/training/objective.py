"""The objective of a run: its configuration bound to the tiled loss.

Other ways to distil are settings of the same core, `experiments/baselines/study.yaml`. With p the teacher, q the
student, y* a ground-truth response, y the student's, and all losses per token, sums over the positions t:

- SFT: -log q(y*_t | y*_<t, x).
- KD (Hinton et al. 2015; word level in Kim and Rush 2016): SFT + KL(p || q) on y*.
- SeqKD (Kim and Rush 2016): -log q(y^T_t | y^T_<t, x) on a response y^T of the teacher's, the only text. Theirs is
  found by beam search; here it is sampled.
- ImitKD (Lin et al. 2020): KL(p || q) after prefixes of y* and of y, in the mixture's shares.
- GKD (Agarwal et al. 2024): beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, on y* and y.
- MiniLLM (Gu et al. 2024): KL(q || p) of whole responses by policy gradient, and SFT; see `mgsr.training.minillm`.
- DistiLLM (Ko et al. 2024): KL(p || alpha p + (1 - alpha) q), or KL(q || (1 - alpha) p + alpha q), on y* and on
  replayed y, whose share rises when the dev loss does.
- SKD (Xu et al. 2025): KL(p || q) on text the student writes, a token outside the teacher's top K replaced by one
  of the teacher's as it is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mgsr.config.schema import ExperimentConfig
from mgsr.data.collate import Batch
from mgsr.losses import LossTerms, tiled_objective
from mgsr.models.clip_network import ClipNetwork
from mgsr.models.output_layer import OutputHead, head_arguments

Weights = tuple[float, float, float]


@dataclass(frozen=True)
class Objective:
    """w_sft * SFT + w_dac * token-level divergence + w_span * span correlation (Liu et al. 2024, eq. 1)."""

    weights: Weights
    clip: Any
    options: dict[str, Any]

    @property
    def needs_teacher(self) -> bool:
        return self.weights[1] > 0 or self.weights[2] > 0

    @property
    def has_idle_parameters(self) -> bool:
        """Whether some trained parameters never get a gradient: those of a clip network without weight."""
        return clip_network(self) is not None and not self.weights[1]

    def __call__(
        self,
        batch: Batch,
        student_hidden_BTH: Tensor,
        student: OutputHead,
        teacher_hidden_BTH: Tensor | None,
        teacher: OutputHead | None,
        *,
        weights: Weights | None = None,
        vocab_size: int | None = None,
        collect_rows: bool = False,
    ) -> LossTerms:
        """Terms of one micro-batch, each over the denominator of its whole optimiser step.

        Args:
            student_hidden_BTH: last hidden states; state t predicts token t + 1.
            weights: in place of the configured ones, as for the gradient norm of one term.
            vocab_size: number of token ids that teacher and student share.
            collect_rows: keep per-token figures for logging.
        """
        if weights is not None and not weights[1] and not weights[2]:
            # cross-entropy alone, as for its gradient norm: nothing of the teacher enters
            teacher_hidden_BTH = teacher = None
        return self.terms(
            batch,
            student_hidden_BTH,
            teacher_hidden_BTH,
            self.weights if weights is None else weights,
            **head_arguments(student, teacher),
            vocab_size=vocab_size,
            collect_rows=collect_rows,
            **self.options,
        )

    def terms(
        self,
        batch: Batch,
        student_hidden_BTH: Tensor,
        teacher_hidden_BTH: Tensor | None,
        weights: Weights,
        **arguments: Any,
    ) -> LossTerms:
        """The loss itself; `arguments` are those of its function: output layers, vocabulary, options."""
        labels_N, span_ids_N, sft_mask_N = shift(batch)
        return tiled_objective(
            student_hidden=flatten(student_hidden_BTH),
            teacher_hidden=flatten(teacher_hidden_BTH) if teacher_hidden_BTH is not None else None,
            labels=labels_N,
            span_ids=span_ids_N,
            clip=self.clip,
            weights=weights,
            sft_mask=sft_mask_N,
            counts=batch.counts.as_tuple(),
            cached=batch.teacher_top,
            **arguments,
        )


def flatten(hidden_BTH: Tensor) -> Tensor:
    """States that predict a next token, one row each: `[B, T, H]` -> `[B (T - 1), H]`."""
    return hidden_BTH[:, :-1].reshape(-1, hidden_BTH.shape[-1])


def shift(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, span ids and ground-truth rows as `[B (T - 1)]`, aligned with `flatten`'s rows."""
    labels = batch.labels[:, 1:]
    ground_truth = batch.is_ground_truth[:, None].expand_as(labels)
    return labels.reshape(-1), batch.span_ids[:, 1:].reshape(-1), ground_truth.reshape(-1)


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
        # it builds upon this module
        from mgsr.training.minillm import build_minillm

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


def clip_network(objective: Objective) -> nn.Module | None:
    """The trained part of the clipping, if there is one."""
    return objective.clip if isinstance(objective.clip, nn.Module) else None
