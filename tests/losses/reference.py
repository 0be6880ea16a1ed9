"""Numpy float64 references, written class by class from the definitions; slow, and no log-space tricks."""

from __future__ import annotations

import math

import numpy as np


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    total = 0.0
    for a, b in zip(np.ravel(p), np.ravel(q), strict=True):
        if a > 0:
            total += math.inf if b == 0 else a * (math.log(a) - math.log(b))
    return total


def divergence(name: str, p: np.ndarray, q: np.ndarray, value: float) -> float:
    """A divergence between two probability vectors; `value` is its parameter where it has one."""
    if name == "forward_kl":
        return kl(p, q)
    if name == "reverse_kl":
        return kl(q, p)
    if name == "symmetric_kl":
        return value * kl(p, q) + (1 - value) * kl(q, p)
    if name == "jensen_shannon":
        m = value * p + (1 - value) * q
        return value * kl(p, m) + (1 - value) * kl(q, m)
    if name == "skewed_forward_kl":
        return kl(p, value * p + (1 - value) * q)
    if name == "skewed_reverse_kl":
        return kl(q, (1 - value) * p + value * q)
    assert name == "total_variation"
    return sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2


def todi(p: np.ndarray, q: np.ndarray) -> float:
    shares = [a / (a + b) for a, b in zip(p, q, strict=True)]
    return sum(
        s * a * math.log(a / b) + (1 - s) * b * math.log(b / a) for s, a, b in zip(shares, p, q, strict=True)
    )


def alpha_beta(p: np.ndarray, q: np.ndarray, alpha: float, beta: float) -> float:
    both = alpha + beta
    terms = [
        a**alpha * b**beta - alpha / both * a**both - beta / both * b**both for a, b in zip(p, q, strict=True)
    ]
    return -sum(terms) / (alpha * beta)


def adaptive_kl(p: np.ndarray, q: np.ndarray, mu: float) -> float:
    order, mass, gaps = sorted(range(len(p)), key=lambda k: (-p[k], k)), 0.0, [0.0, 0.0]
    for rank, k in enumerate(order):
        mass += p[k]
        gaps[0 if rank == 0 or mass <= mu else 1] += abs(p[k] - q[k])
    head = gaps[0] / sum(gaps) if sum(gaps) else 0.5
    return head * kl(p, q) + (1 - head) * kl(q, p)


def alpha_mixture(p: np.ndarray, q: np.ndarray, alpha: float, lam: float, of: str) -> float:
    if alpha == 1:
        r = p**lam * q ** (1 - lam)
    else:
        power = (1 - alpha) / 2
        r = (lam * p**power + (1 - lam) * q**power) ** (1 / power)
    r = r / r.sum()
    return kl(p, r) if of == "forward_kl" else alpha_beta(p, r, 0.2, 0.7)


def concrete_score(difference: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    width = len(difference)
    return (
        sum(
            first[i] * second[j] * (difference[i] - difference[j]) ** 2 for i in range(width) for j in range(width)
        )
        / 4
    )


def entropy_aware(p: np.ndarray, q: np.ndarray, threshold: float, alpha: float) -> float:
    unsure = -sum(a * math.log(a) for a in p if a > 0) > threshold
    return kl(q, p) + (alpha * kl(p, q) if unsure else 0.0)


def veto(p: np.ndarray, q: np.ndarray, beta: float) -> float:
    mixed = p * q**beta
    return kl(mixed / mixed.sum(), q)


def ramp(x: float, kind: str) -> float:
    def sigmoid(y: float) -> float:
        return 1 / (1 + math.exp(-y)) if y > -700 else 0.0

    if kind == "sigmoid":
        return sigmoid(x)
    return min(1.0, max(0.0, (sigmoid(x) - sigmoid(-4)) / (1 - 2 * sigmoid(-4))))


def mask(
    p: np.ndarray, lower: float, upper: float, *, sharpness: float, kind: str = "clipped", quantile: str = "mass"
) -> list[float]:
    """m_k of every class; the order is by falling probability, then by id."""
    order = sorted(range(len(p)), key=lambda k: (-p[k], k))
    m, before = [0.0] * len(p), 0.0
    for rank, k in enumerate(order):
        c = before if quantile == "mass" else rank / len(p)
        if sharpness == 0:
            m[k] = 1.0 if lower <= c < upper else 0.0
        else:
            m[k] = ramp((c - lower) / sharpness, kind) * ramp((upper - c) / sharpness, kind)
        before += p[k]
    return m


def dac_kl(
    p: np.ndarray,
    q: np.ndarray,
    lower: float,
    upper: float,
    *,
    sharpness: float = 0.005,
    kind: str = "clipped",
    quantile: str = "mass",
    target: int | None = None,
    form: str = "normalised",
    keep_target: bool = True,
) -> tuple[float, float]:
    """(loss, retained mass): all bins listed one after the other, the target's two bins included."""
    m = mask(p, lower, upper, sharpness=sharpness, kind=kind, quantile=quantile)
    t = int(np.argmax(p)) if target is None else target
    others = [k for k in range(len(p)) if not (keep_target and k == t)]
    rest_p = sum((1 - m[k]) * p[k] for k in others)
    rest_q = sum((1 - m[k]) * q[k] for k in others)
    kept = kl(np.array([m[k] * p[k] for k in range(len(p))]), np.array([m[k] * q[k] for k in range(len(q))]))
    if form == "literal":
        return kept + (kl(p[t : t + 1], q[t : t + 1]) if keep_target else 0.0), 1 - rest_p
    own = kl(np.array([(1 - m[t]) * p[t]]), np.array([(1 - m[t]) * q[t]])) if keep_target else 0.0
    return kept + own + kl(np.array([rest_p]), np.array([rest_q])), 1 - rest_p


def pair_loss(p: np.ndarray, q: np.ndarray, norm: str, relation: str) -> float:
    """p and q: `[2, V]`, the two tokens of a pair."""
    width = p.shape[1]
    if relation == "hadamard":
        squared = sum((p[0, k] * p[1, k] - q[0, k] * q[1, k]) ** 2 for k in range(width))
    else:

        def relate(r: np.ndarray) -> float:
            inner = sum(r[0, k] * r[1, k] for k in range(width))
            if relation == "trace":
                return inner
            return inner / math.sqrt(sum(r[0] ** 2)) / math.sqrt(sum(r[1] ** 2))

        squared = (relate(p) - relate(q)) ** 2
    return squared if norm == "l2_squared" else math.sqrt(squared)


def objective(
    teacher_logits: np.ndarray,
    student_logits: np.ndarray,
    labels: list[int],
    span_ids: list[int],
    lower: float,
    upper: float,
    truth: list[bool],
) -> tuple[float, float, float]:
    """Means of cross-entropy, DAC-KL and span correlation over one call's rows."""
    p, q = softmax(teacher_logits), softmax(student_logits)
    rows = [n for n, label in enumerate(labels) if label != -100]
    sft = [-math.log(q[n, labels[n]]) for n in rows if truth[n]]
    dac = [dac_kl(p[n], q[n], lower, upper)[0] for n in rows]
    pairs = [
        pair_loss(p[[n, n + 1]], q[[n, n + 1]], "l2_squared", "hadamard")
        for n in rows
        if n + 1 in rows and span_ids[n] >= 0 and span_ids[n] == span_ids[n + 1]
    ]
    return tuple(sum(values) / len(values) if values else 0.0 for values in (sft, dac, pairs))
