"""Losses on tensors: divergences, DAC-KL, span correlation, and the tiled objective that joins them."""

from mgsr.losses.clip_bounds import ClipModule
from mgsr.losses.clipping import PairSummary
from mgsr.losses.dac_kl import DacKL, dac_kl
from mgsr.losses.divergences import (
    DIVERGENCES,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    symmetric_kl,
    total_variation,
)
from mgsr.losses.fused.loss_terms import LossTerms, RowStats
from mgsr.losses.fused.policy_gradient import policy_gradient_objective
from mgsr.losses.fused.policy_tile import clipped_surrogate, reward_to_go
from mgsr.losses.fused.tiled_objective import tiled_objective
from mgsr.losses.reduction import (
    IGNORED,
    PredictionRows,
    TermCounts,
    align_predictions,
    global_mean,
    prediction_labels,
    prediction_rows,
    response_mask,
    span_pairs,
    term_counts,
)
from mgsr.losses.span_correlation import SpanCorrelation, span_correlation
from mgsr.losses.teacher_topk import CachedRows, cache_error, restored_logits, top_of_logits

__all__ = [
    "DIVERGENCES",
    "IGNORED",
    "CachedRows",
    "ClipModule",
    "DacKL",
    "LossTerms",
    "PairSummary",
    "PredictionRows",
    "RowStats",
    "SpanCorrelation",
    "TermCounts",
    "align_predictions",
    "cache_error",
    "clipped_surrogate",
    "dac_kl",
    "forward_kl",
    "global_mean",
    "jensen_shannon",
    "policy_gradient_objective",
    "prediction_labels",
    "prediction_rows",
    "response_mask",
    "restored_logits",
    "reverse_kl",
    "reward_to_go",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "span_correlation",
    "span_pairs",
    "symmetric_kl",
    "term_counts",
    "tiled_objective",
    "top_of_logits",
    "total_variation",
]
