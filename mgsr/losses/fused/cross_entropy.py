"""Cross-entropy of a tile's labels. The definition is `mgsr.losses.cross_entropy`.

Identity: a = dL/dlog q is -f at the label and 0 elsewhere, where f is weight over denominator on ground-truth rows
and 0 on others. So a - q * sum(a) is f * q, less f at the label: the multiple of q joins that of the other terms.

Shapes: R rows, V classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy_tile(
    log_q_R: Tensor, truth_R: Tensor, labels_R: Tensor, factor_R: Tensor, grad_RV: Tensor | None
) -> Tensor:
    """Sum over the ground-truth rows; takes f off `grad_RV` at the labels.

    Args:
        log_q_R: of the labels.
        factor_R: f.
        grad_RV: gradient to the logits, f * q in it already; None: it isn't wanted.
    """
    if grad_RV is not None:
        grad_RV.scatter_add_(1, labels_R.unsqueeze(1), -factor_R.unsqueeze(1))
    return -torch.where(truth_R, log_q_R, torch.zeros_like(log_q_R)).sum()
