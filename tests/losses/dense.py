"""The objective from whole logits with the public dense functions and autograd: what the tiles must equal."""

from __future__ import annotations

import torch

from mgsr.losses import DIVERGENCES, cross_entropy, dac_kl, global_mean, span_correlation, tiled_objective
from mgsr.models.clip_network import ClipNetwork

CLIP = (0.1, 0.8)
WEIGHTS = (1.0, 0.7, 1.3)


def network(**options):
    """A small clip network whose bounds differ from row to row."""
    torch.manual_seed(0)
    net = ClipNetwork(features=8, hidden=8, sharpness=0.02, **options).double()
    torch.nn.init.normal_(net.outer.weight)
    return net


class Problem:
    """Random rows for `tiled_objective`; about a third masked, spans that cross tiles and masked rows."""

    def __init__(self, rows=41, classes=37, dtype=torch.float64, seed=0, scale=1.0, hidden=(8, 6)):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.hidden = (scale * normal(rows, hidden[0])).requires_grad_()
        self.weight = normal(classes, hidden[0]).requires_grad_()
        self.taught, self.teacher = scale * normal(rows, hidden[1]), normal(classes, hidden[1])
        self.labels = torch.randint(0, classes, (rows,), generator=generator)
        self.labels[torch.rand(rows, generator=generator) < 0.3] = -100
        self.spans = torch.randint(-1, max(rows // 6, 2), (rows,), generator=generator).sort().values
        self.truth = torch.rand(rows, generator=generator) < 0.6

    @property
    def arguments(self):
        return self.hidden, self.weight, self.taught, self.teacher, self.labels, self.spans

    @property
    def inputs(self):
        return [self.hidden, self.weight]


def dense_objective(
    problem,
    clip,
    *,
    weights=(1.0, 1.0, 1.0),
    temperature=1.0,
    target="argmax",
    sft_mask=None,
    divergence="dac_kl",
    divergence_kwargs=None,
    span_norm="l2_squared",
    span_relation="hadamard",
    **options,
):
    """(total, [sft, dac_kl, span], mean clipped mass), all differentiable."""
    student = problem.hidden @ problem.weight.T
    teacher = problem.taught @ problem.teacher.T
    keep = problem.labels != -100
    truth = keep if sft_mask is None else keep & sft_mask
    nll = cross_entropy(student, problem.labels)
    clipped = torch.zeros(())
    if divergence == "dac_kl":
        bounds = clip if isinstance(clip, tuple) else clip(teacher / temperature, student / temperature)
        ids = None if target == "argmax" else problem.labels.clamp_min(0)
        got = dac_kl(teacher, student, *bounds, temperature=temperature, target=ids, **options)
        values, clipped = got.loss, global_mean(1 - got.retained_mass, keep)
    else:
        values = DIVERGENCES[divergence](teacher, student, temperature=temperature, **(divergence_kwargs or {}))
    pairs = span_correlation(
        teacher[None],
        student[None],
        problem.spans[None],
        mask=keep[None],
        temperature=temperature,
        norm=span_norm,
        relation=span_relation,
    )
    terms = [global_mean(nll, truth), global_mean(values, keep), global_mean(pairs.loss, pairs.is_pair)]
    return sum(w * term for w, term in zip(weights, terms, strict=True)), terms, clipped


def assert_same(problem, clip, extra=(), tiles=(7,), rtol=1e-9, weights=WEIGHTS, **options):
    """Total, terms and every gradient of the tiled form are those of the dense one."""
    inputs = [*problem.inputs, *extra]
    want, terms, _ = dense_objective(problem, clip, weights=weights, **options)
    grads = torch.autograd.grad(want, inputs)
    for size in tiles:
        got = tiled_objective(*problem.arguments, clip=clip, weights=weights, tile_size=size, **options)
        for mine, other in zip((got.total, got.sft, got.dac_kl, got.span), (want, *terms), strict=True):
            torch.testing.assert_close(mine, other, rtol=rtol, atol=rtol)
        assert not (got.sft.requires_grad or got.dac_kl.requires_grad or got.span.requires_grad)
        for mine, other in zip(torch.autograd.grad(got.total, inputs), grads, strict=True):
            torch.testing.assert_close(mine, other, rtol=rtol, atol=rtol * float(other.abs().max()))
