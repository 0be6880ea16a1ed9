"""The objective from hidden states: mgsr's tiles against Liger's chunks, TRL's whole logits, and bare products.

1,024 tokens of which 128 are masked, float32; what they are is in `problems`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.bench import problems
from experiments.bench.measure import measure
from experiments.bench.problems import Problem
from mgsr.losses import IGNORED, dac_kl, span_correlation, tiled_objective
from mgsr.models.clip_network import ClipNetwork

CLIP = (0.1, 0.95)
CHUNKS = (64, 128, 256, 512, 1024)
TILES = (64, 150, 896)
"""Rows that the bare products take at a time: few, as many as mgsr takes of 50,257 classes, and all."""
KEPT_CLASSES = (16, 64, 256)


def mgsr(problem: Problem, clip: Any = CLIP, **options: Any) -> float:
    """All three terms, forward and backward."""
    terms = tiled_objective(
        problem.student,
        problem.student_weight,
        problem.teacher,
        problem.teacher_weight,
        problem.labels,
        problem.span_ids,
        clip=clip,
        **options,
    )
    return problem.backward(terms.total + terms.clip_penalty)


def mgsr_network(problem: Problem) -> float:
    """As `mgsr`, with gradients to a clip network."""
    torch.manual_seed(0)
    return mgsr(problem, ClipNetwork())


def mgsr_forward_kl(problem: Problem) -> float:
    """Forward KL alone, for comparison with the peers' single term."""
    return mgsr(problem, None, weights=(0.0, 1.0, 0.0), divergence="forward_kl")


def mgsr_cached(problem: Problem, k: int) -> float:
    """All three terms, the teacher's distribution from a cache of its k most probable classes."""
    return mgsr(problem, cached=problem.cached(k))


def liger(
    problem: Problem, *, hard: float = 0.5, soft: float = 0.5, chunk_size: int = 128, compiled: bool = False
) -> float:
    """Cross-entropy and forward KL (two terms), `LigerFusedLinearJSDLoss(beta=0)`."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=hard, weight_soft_loss=soft, beta=0.0, compiled=compiled, chunk_size=chunk_size
    )
    return problem.backward(
        loss(
            problem.student,
            problem.student_weight,
            problem.teacher,
            problem.teacher_weight,
            problem.labels,
        )
    )


def trl(problem: Problem) -> float:
    """Forward KL alone: two projections of all tokens, `GKDTrainer.generalized_jsd_loss(beta=0)`."""
    from trl.experimental.gkd import GKDTrainer

    with torch.no_grad():
        teacher = problem.teacher @ problem.teacher_weight.T
    student = problem.student @ problem.student_weight.T
    return problem.backward(
        GKDTrainer.generalized_jsd_loss(student, teacher, labels=problem.labels, beta=0, temperature=1.0)
    )


def products(problem: Problem, tile: int) -> float:
    """The four matrix products that no implementation can do without, on the tokens that count.

    Memory for a tile's logits is taken once, and the first tile writes the weight's gradient.
    """
    kept = problem.labels != IGNORED
    with torch.no_grad():
        student, teacher = problem.student[kept], problem.teacher[kept]
        room = student.new_empty(2, min(tile, len(student)), len(problem.student_weight))
        grad_states, grad_weight = torch.empty_like(student), torch.empty_like(problem.student_weight)
        for start in range(0, len(student), tile):
            here = slice(start, min(start + tile, len(student)))
            part, count = student[here], here.stop - start
            logits = torch.mm(part, problem.student_weight.T, out=room[0, :count])
            torch.mm(teacher[here], problem.teacher_weight.T, out=room[1, :count])
            torch.mm(logits, problem.student_weight, out=grad_states[here])
            grad_weight.addmm_(logits.T, part, beta=1 if start else 0)
        return float(grad_weight[0, 0] + grad_states[0, 0])


LIGER: dict[str, dict[str, Callable[[Problem], float]]] = {
    name: {
        f"{name}_{chunk}{'_compiled' if compiled else ''}": partial(
            liger, hard=hard, soft=1 - hard, chunk_size=chunk, compiled=compiled
        )
        for compiled in (False, True)
        for chunk in CHUNKS
    }
    for name, hard in (("liger", 0.5), ("liger_kl", 0.0))
}
"""Liger's two terms and its one, in all its sizes of chunk, compiled and not; the fastest is what mgsr meets."""

CASES: dict[str, Callable[[Problem], float]] = {
    "mgsr": mgsr,
    "mgsr_network": mgsr_network,
    "mgsr_forward_kl": mgsr_forward_kl,
    **{f"mgsr_cached_{k}": partial(mgsr_cached, k=k) for k in KEPT_CLASSES},
    **LIGER["liger"],
    **LIGER["liger_kl"],
    "trl": trl,
    **{f"products_{tile}": partial(products, tile=tile) for tile in TILES},
}


def check(problem: Problem) -> dict[str, float]:
    """What is timed computes what it should: mgsr against the dense functions, and the peers against mgsr.

    Raises:
        AssertionError: a loss or a gradient differs by more than 1e-4 relative.
    """
    torch.manual_seed(0)
    values = {}
    for name, clip in (("mgsr", CLIP), ("mgsr_network", ClipNetwork())):
        problem.clear()
        dense = problem.backward(_dense(problem, clip))
        values[name] = _same(problem, name, dense)
    problem.clear()
    single = mgsr_forward_kl(problem)
    for name in ("liger_kl_128", "trl"):
        values[name] = _same(problem, name, single)
    return values


def _dense(problem: Problem, clip: Any) -> Tensor:
    """The three terms from whole logits, by the functions that define them."""
    kept = problem.labels != IGNORED
    with torch.no_grad():
        teacher = problem.teacher @ problem.teacher_weight.T
    logits = problem.student @ problem.student_weight.T
    picked = torch.log_softmax(logits[kept], -1).gather(1, problem.labels[kept, None])
    if isinstance(clip, tuple):
        bounds = tuple(torch.full((int(kept.sum()),), bound) for bound in clip)
    else:
        bounds = clip(teacher[kept], logits[kept].detach())
    token = dac_kl(teacher[kept], logits[kept], *bounds)
    pairs = span_correlation(teacher[None], logits[None], torch.where(kept, problem.span_ids, -1)[None])
    return -picked.mean() + token.loss.mean() + pairs.loss.sum() / pairs.is_pair.sum()


def _same(problem: Problem, name: str, expected: float) -> float:
    """The case's value; it and its gradients are compared with what was computed before."""
    gradients = [leaf.grad.clone() for leaf in problem.leaves if leaf.grad is not None]
    problem.clear()
    value = CASES[name](problem)
    # Liger and TRL divide by the unmasked tokens too
    gap = abs(value - expected) / abs(expected)
    assert gap < 1e-4, f"{name} {value} differs from {expected}"
    for leaf, want in zip(problem.leaves, gradients, strict=True):
        assert leaf.grad is not None
        gap = float((leaf.grad - want).norm() / want.norm())
        assert gap < 1e-4, f"a gradient of {name} differs by {gap}"
    for leaf, want in zip(problem.leaves, gradients, strict=True):
        leaf.grad = want
    return value


def case(name: str, **options: Any) -> dict[str, Any]:
    """`check`, `problem` or one of `CASES`, on a text's states where `options` name two models and data."""
    problem = problems.of_text(**options) if "data" in options else problems.artificial(**options)
    if name == "problem":
        return problems.figures(problem)
    if name == "check":
        return check(problem)
    return measure(lambda: CASES[name](problem), reset=problem.clear, repeats=3)
