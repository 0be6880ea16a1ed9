"""The policy objective token by token in numpy, and random cases of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgsr.losses import LossTerms, policy_gradient_objective

IGNORED = -100
CLASSES = 6


# -- an independent reference, token by token ---------------------------------------------------------------


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max()
    return z - math.log(np.exp(z).sum())


def reference(
    case: dict[str, Any],
    *,
    clip: float,
    counts: tuple[float, float],
    weights: tuple[float, float] = (1.0, 1.0),
    frozen: dict[tuple[int, int], tuple[float, float]] | None = None,
) -> tuple[float, float, float, dict[tuple[int, int], tuple[float, float]]]:
    """(total, cross-entropy, policy, {(b, t): (w, A)}); `frozen` holds w and A, which carry no gradient."""
    student, teacher, labels = case["student_logits"], case["teacher_logits"], case["labels"]
    sft = policy = 0.0
    constants = {}
    for b, row in enumerate(labels):
        places = [t for t, label in enumerate(row) if label != IGNORED]
        log_q = {t: log_softmax(student[b, t]) for t in places}
        if case["truth"][b]:
            sft -= sum(log_q[t][row[t]] for t in places)
            continue
        log_p = {t: log_softmax(teacher[b, t]) for t in places}
        reward = [log_p[t][row[t]] - log_q[t][row[t]] for t in places]
        for i, t in enumerate(places):
            after = reward[i + 1 :]
            ratio = math.exp(log_q[t][row[t]] - case["behaviour"][b, t])
            constants[b, t] = (ratio, sum(after) / len(after) if after else 0.0)
            w, advantage = constants[b, t] if frozen is None else frozen[b, t]
            kl = sum(math.exp(a) * (a - c) for a, c in zip(log_q[t], log_p[t], strict=True))
            policy += w * kl
            policy += max(-ratio * advantage, -min(max(ratio, 1 - clip), 1 + clip) * advantage)
    sft, policy = (v / c if c else 0.0 for v, c in zip((sft, policy), counts, strict=True))
    return weights[0] * sft + weights[1] * policy, sft, policy, constants


def make_case(seed: int = 0, *, sequences: int = 4, length: int = 6, spread: float = 1.0) -> dict[str, Any]:
    """Random states and heads in float64; prompts and padding of all sizes, half of the text ground truth."""
    rng = np.random.default_rng(seed)
    case: dict[str, Any] = {
        "h_s": rng.normal(size=(sequences, length, 3)) * spread,
        "h_t": rng.normal(size=(sequences, length, 4)) * spread,
        "w_s": rng.normal(size=(CLASSES, 3)),
        "w_t": rng.normal(size=(CLASSES, 4)),
        "b_s": rng.normal(size=CLASSES) * 0.3,
        "truth": np.arange(sequences) % 2 == 1,
        "labels": np.full((sequences, length), IGNORED),
    }
    for b in range(sequences):
        start = int(rng.integers(0, min(3, length)))
        end = int(rng.integers(start + 1, length + 1))
        case["labels"][b, start:end] = rng.integers(0, CLASSES, size=end - start)
    case = with_logits(case)
    # importance ratios on both sides of 1
    case["behaviour"] = rng.normal(size=(sequences, length)) * 0.5
    for b, t in zip(*np.nonzero(case["labels"] != IGNORED), strict=True):
        case["behaviour"][b, t] += log_softmax(case["student_logits"][b, t])[case["labels"][b, t]]
    return case


def with_logits(case: dict[str, Any]) -> dict[str, Any]:
    return case | {
        "student_logits": case["h_s"] @ case["w_s"].T + case["b_s"],
        "teacher_logits": case["h_t"] @ case["w_t"].T,
    }


def call(case: dict[str, Any], **options: Any) -> tuple[LossTerms, dict[str, Tensor]]:
    """The objective on a case, and the leaves of its graph."""
    leaves = {name: torch.tensor(case[name], requires_grad=True) for name in ("h_s", "w_s", "b_s")}
    terms = policy_gradient_objective(
        leaves["h_s"],
        leaves["w_s"],
        torch.tensor(case["h_t"]),
        torch.tensor(case["w_t"]),
        torch.tensor(case["labels"]),
        torch.tensor(case["behaviour"]),
        torch.tensor(case["truth"]),
        student_bias=leaves["b_s"],
        **options,
    )
    return terms, leaves


def gradients(case: dict[str, Any], **options: Any) -> list[Tensor]:
    terms, leaves = call(case, **options)
    return list(torch.autograd.grad(terms.total, list(leaves.values())))


def counts_of(case: dict[str, Any]) -> tuple[int, int]:
    response = case["labels"] != IGNORED
    return int(response[case["truth"]].sum()), int(response[~case["truth"]].sum())
