"""The losses, on tensors: what a term is, and how it is trained without logits of a whole batch in memory.

Every term is one file with its equation and source: `cross_entropy`; `dac_kl` (eq. 7 and 8 of Liu et al. 2024),
its bounds in `clip_bounds`; `span_correlation` (eq. 10); `divergences`; `policy_gradient` (MiniLLM). They return
values per token; `reduction` masks and averages them. What trains has the same names in `fused/`: the same
numbers, from hidden states in tiles. `objective` puts weights on the terms (eq. 1). `log_probs`, `ranking`,
`teacher_topk` and `projection` are what these stand on. `torch.compile(fullgraph=True)` takes `dac_kl`,
`span_correlation` and every divergence; the tiles are not for it.

A divergence of your own is a function like those in `divergences/`; a configuration names it by its import path.
It trains under autograd, a tile at a time.

Never here: files, configurations, batches, models, Lightning. Begin with `dac_kl.py`, then `fused/__init__.py`.
"""

from mgsr.losses.clip_bounds import ClipModule, PairSummary
from mgsr.losses.cross_entropy import cross_entropy
from mgsr.losses.dac_kl import DacKL, dac_kl
from mgsr.losses.divergences import (
    DIVERGENCES,
    adaptive_kl,
    alpha_beta,
    alpha_mixture,
    concrete_score,
    entropy_aware,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    symmetric_kl,
    todi,
    total_variation,
    veto,
)
from mgsr.losses.fused.policy_gradient import clipped_surrogate, policy_gradient_objective
from mgsr.losses.fused.tiled_objective import tiled_objective
from mgsr.losses.objective import MiniLLMObjective, Objective, Targets, Weights
from mgsr.losses.policy_gradient import policy_gradient, reward_to_go
from mgsr.losses.projection import OutputLayer
from mgsr.losses.reduction import (
    IGNORED,
    LossTerms,
    RowStats,
    TermCounts,
    align_predictions,
    global_mean,
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
    "MiniLLMObjective",
    "Objective",
    "OutputLayer",
    "PairSummary",
    "RowStats",
    "SpanCorrelation",
    "Targets",
    "TermCounts",
    "Weights",
    "adaptive_kl",
    "align_predictions",
    "alpha_beta",
    "alpha_mixture",
    "cache_error",
    "clipped_surrogate",
    "concrete_score",
    "cross_entropy",
    "dac_kl",
    "entropy_aware",
    "forward_kl",
    "global_mean",
    "jensen_shannon",
    "policy_gradient",
    "policy_gradient_objective",
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
    "todi",
    "top_of_logits",
    "total_variation",
    "veto",
]
