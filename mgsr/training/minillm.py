"""MiniLLM's objective in the place of the three-term one, with the same interface (Gu et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mgsr.config.schema import ExperimentConfig
from mgsr.data.collate import Batch
from mgsr.losses import LossTerms, policy_gradient_objective
from mgsr.training.objective import Objective, Weights


@dataclass(frozen=True)
class MiniLLMObjective(Objective):
    """w_sft * cross-entropy on ground truth + w_dac * reverse KL by policy gradient on model-written text.

    The text is to be drawn by teacher-mixed sampling, its `behaviour_log_probs` in the batch. The policy part
    stands in the place of the token-level divergence: its value is `LossTerms.dac_kl`, averaged over the
    model-written tokens of the optimiser step. There is neither a span term nor a clip network, and the
    temperature is 1. See `mgsr.losses.fused.policy_gradient` for the loss itself;
    `options` are its keyword arguments.
    """

    def __post_init__(self) -> None:
        if self.weights[2] != 0 or self.clip is not None:
            raise ValueError(
                f"MiniLLM has no span term and no clip, got weights {self.weights}, clip {self.clip!r}"
            )

    def terms(
        self,
        batch: Batch,
        student_hidden_BTH: Tensor,
        teacher_hidden_BTH: Tensor | None,
        weights: Weights,
        **arguments: Any,
    ) -> LossTerms:
        """As `Objective.terms`; `rows` are of the model-written tokens alone."""
        sft, policy, span = weights
        if span != 0:
            raise ValueError(f"MiniLLM has no span term, got the weight {span}")
        counts, behaviour_BT = batch.counts, batch.behaviour_log_probs
        return policy_gradient_objective(
            student_hidden=student_hidden_BTH[:, :-1],
            teacher_hidden=teacher_hidden_BTH[:, :-1] if teacher_hidden_BTH is not None else None,
            labels=batch.labels[:, 1:],
            behaviour_log_probs=behaviour_BT[:, 1:] if behaviour_BT is not None else None,
            is_ground_truth=batch.is_ground_truth,
            weights=(sft, policy),
            counts=(counts.ground_truth_tokens, counts.response_tokens - counts.ground_truth_tokens),
            **arguments,
        )


def build_minillm(config: ExperimentConfig) -> MiniLLMObjective:
    """Bind the configuration, which `load_config` has checked, to the loss."""
    objective = config.objective
    return MiniLLMObjective(
        (objective.w_sft, objective.w_dac, objective.w_span),
        None,
        {"importance_clip": objective.importance_clip, "tile_size": objective.tile_size or None},
    )
