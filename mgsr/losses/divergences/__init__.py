"""Divergences between a teacher's and a student's next-token distribution, by the names that a configuration uses.

Every function reads logits, works in log space and returns one value per token; mask and average with
`mgsr.losses.global_mean`. p is the teacher's softmax, q the student's, both at `temperature`; there is no
temperature**2 factor. `classic` has those that have closed forms in `fused/divergences.py`; `newer` has those that
are trained by their function, under autograd, a tile of tokens at a time. So is one of a user's own, which a
configuration names by its import path.

Never here: files, configurations, masks. Begin with `classic.forward_kl`, whose docstring has what all share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mgsr.losses.divergences.classic import (
    check_share,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    symmetric_kl,
    total_variation,
)
from mgsr.losses.divergences.newer import (
    adaptive_kl,
    alpha_beta,
    alpha_mixture,
    concrete_score,
    entropy_aware,
    todi,
    veto,
)

__all__ = [
    "CLASSIC",
    "DIVERGENCES",
    "NEWER",
    "Divergence",
    "adaptive_kl",
    "alpha_beta",
    "alpha_mixture",
    "check_share",
    "concrete_score",
    "entropy_aware",
    "forward_kl",
    "jensen_shannon",
    "reverse_kl",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "symmetric_kl",
    "todi",
    "total_variation",
    "veto",
]

Divergence = Callable[..., Any]
"""Teacher and student logits `[..., V]`, `temperature` and options -> `[...]`."""

CLASSIC: dict[str, Divergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "symmetric_kl": symmetric_kl,
    "jensen_shannon": jensen_shannon,
    "skewed_forward_kl": skewed_forward_kl,
    "skewed_reverse_kl": skewed_reverse_kl,
    "total_variation": total_variation,
}
NEWER: dict[str, Divergence] = {
    "todi": todi,
    "alpha_beta": alpha_beta,
    "adaptive_kl": adaptive_kl,
    "alpha_mixture": alpha_mixture,
    "concrete_score": concrete_score,
    "entropy_aware": entropy_aware,
    "veto": veto,
}
DIVERGENCES = CLASSIC | NEWER
