"""Cross-entropy of a tile's labels. The definition is `mgsr.losses.cross_entropy`.

Identity: a = dL/dlog q is -f at the label and 0 elsewhere, where f is weight over denominator on ground-truth rows
and 0 on others. So a - q * sum(a) is f * q, less f at the label: the multiple of q joins that of the other terms.

Shapes: R rows, V classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy_tile(log_q_R: Tensor, truth_R: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Sum over the ground-truth rows, and f `[R]`; `log_q_R` is that of the labels."""
    total = -torch.where(truth_R, log_q_R, torch.zeros_like(log_q_R)).sum()
    return total, truth_R.to(log_q_R.dtype) * scale


def add_label_gradient(grad_RV: Tensor, labels_R: Tensor, factor_R: Tensor) -> None:
    """Take f off at the labels."""
    grad_RV.scatter_add_(1, labels_R.unsqueeze(1), -factor_R.unsqueeze(1))


def cross_entropy_gradient(q_RV: Tensor, labels_R: Tensor, factor_R: Tensor, out: Tensor) -> Tensor:
    """f * (q - onehot), in `out`, which may be `q`."""
    torch.mul(q_RV, factor_R.unsqueeze(1), out=out)
    add_label_gradient(out, labels_R, factor_R)
    return out
