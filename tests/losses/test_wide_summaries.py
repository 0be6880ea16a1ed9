"""A clip module may ask for more classes than a first selection has, and for any number of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mgsr.losses import dac_kl, tiled_objective
from mgsr.losses.fused import selection
from tests.losses import reference

ROWS, CLASSES, LOWER, UPPER = 4, 3000, 0.05, 0.9


class Wide(torch.nn.Module):
    """Fixed bounds, from a summary of `features` classes, whose width it checks."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.summary_features = features
        self.bounds = torch.nn.Parameter(torch.tensor([LOWER, UPPER], dtype=torch.float64))

    def forward(self, summary):
        rows, width = summary.teacher_log_probs.shape
        assert width == min(self.summary_features, CLASSES) and bool((summary.teacher_log_probs.diff() <= 0).all())
        return self.bounds[0].expand(rows), self.bounds[1].expand(rows)


@pytest.mark.parametrize("target", ["argmax", "label"])
@pytest.mark.parametrize("features", [1, 64, 511, 512, 513, 600, 1500, 2048, 2500, 2999, 3000, 9000])
def test_the_width_of_a_summary_changes_no_number(features, target):
    """0.6341 became 0.6347 with 600 classes: those behind the first 512 were taken away twice."""
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, 8, dtype=torch.float64, requires_grad=True)
    student, teacher = (0.3 * torch.randn(CLASSES, 8, dtype=torch.float64) for _ in range(2))
    taught, labels = torch.randn(ROWS, 8, dtype=torch.float64), torch.tensor([7, 2999, 0, 1234])
    module = Wide(features)
    terms = tiled_objective(
        hidden, student, taught, teacher, labels, None, clip=module, weights=(0.0, 1.0, 0.0), target=target
    )
    p, q = (reference.softmax((h @ w.T).detach().numpy()) for h, w in ((taught, teacher), (hidden, student)))
    kept = labels.tolist() if target == "label" else [None] * ROWS
    expected = [reference.dac_kl(p[i], q[i], LOWER, UPPER, target=kept[i])[0] for i in range(ROWS)]
    assert float(terms.dac_kl) == pytest.approx(np.mean(expected), rel=1e-10)
    bounds = torch.tensor([LOWER, UPPER], dtype=torch.float64, requires_grad=True)
    dense = dac_kl(
        taught @ teacher.T,
        hidden @ student.T,
        bounds[0].expand(ROWS),
        bounds[1].expand(ROWS),
        target=labels if target == "label" else None,
    ).loss.mean()
    want = torch.autograd.grad(dense, (hidden, bounds))
    got = torch.autograd.grad(terms.total, (hidden, module.bounds))
    for mine, other in zip(got, want, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_a_wide_summary_is_not_ranked_again(monkeypatch):
    ranked = []
    original = selection._ranked

    def watched(teacher, rows, depth, room):
        ranked.append(depth)
        return original(teacher, rows, depth, room)

    monkeypatch.setattr(selection, "_ranked", watched)
    logits = torch.randn(ROWS, CLASSES, dtype=torch.float64)
    eye = torch.eye(CLASSES, dtype=torch.float64)
    tiled_objective(logits, eye, logits.flip(0), eye, torch.arange(ROWS), None, clip=Wide(2500))
    assert ranked == []
