"""Cross-entropy of the labels, at temperature 1: the term of ground-truth text.

Fused twin: `fused/cross_entropy.py`. Shapes: `...` leading shape, V classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mgsr.losses.log_probs import compute_dtype
from mgsr.losses.reduction import IGNORED


def cross_entropy(student_logits: Tensor, labels: Tensor) -> Tensor:
    """-log q_y of every token, in nats; 0, without a gradient, where the label is -100.

    Args:
        student_logits: `[..., V]`, aligned: the logits of row t score `labels` of row t.
        labels: `[...]` class ids; -100 = no response token.

    Returns:
        `[...]`, float32 or wider, not reduced; mask ground-truth rows and average with `mgsr.losses.global_mean`.

    >>> cross_entropy(torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([1, -100]))
    tensor([0.3133, 0.0000])
    """
    log_q = torch.log_softmax(student_logits.to(compute_dtype(student_logits)), dim=-1)
    own = log_q.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return torch.where(labels == IGNORED, torch.zeros_like(own), -own)
