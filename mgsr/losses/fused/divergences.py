"""The token-level divergences of a tile. The definitions are those of `mgsr.losses.divergences`.

Identities, with a = dL/dlog q up to a multiple of q (which falls out of a - q * sum(a)):

    forward KL          a = -p
    reverse KL          a = q log(q / p)
    symmetric KL        a = -weight p + (1 - weight) q log(q / p)
    Jensen-Shannon      a = (1 - beta) q log(q / m),                m = beta p + (1 - beta) q
    skewed forward KL   a = -(1 - alpha) p q / m,                   m = alpha p + (1 - alpha) q
    skewed reverse KL   a = q log(q / m) - alpha q^2 / m,           m = (1 - alpha) p + alpha q; without the
                        second term where no gradient goes through m
    total variation     a = q sign(q - p) / 2

Where a class has probability 0 in one model the sums may be infinite or no number: such a tile goes through the
definition, under autograd, as a divergence does that has no closed form here.

Shapes: R rows, V classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mgsr.losses.divergences import DIVERGENCES, Divergence, check_share
from mgsr.losses.fused.logit_gradient import LogitGradient, Part, TokenTerm
from mgsr.losses.fused.tile_models import Tile
from mgsr.losses.fused.workspace import Softmax
from mgsr.losses.log_probs import kl_from_log_probs

Named = tuple[str | Divergence, dict[str, Any]]
"""A divergence, or its name, and its options."""

ClosedForm = Callable[..., tuple[Tensor, Tensor]]
"""Teacher, student and options -> the divergence `[R]`, and a `[R, V]` in memory of its own."""


def forward_kl_tile(tile: Tile, coefficient: float | None, base: Tensor | None) -> TokenTerm:
    """KL(p || q) of every row.

    Args:
        coefficient: factor on the gradient; None: it isn't wanted.
        base: `[R]`, another term's multiple of q, which goes into the same pass.
    """
    loss, a = _forward_kl(tile.teacher, tile.student)
    if not bool(torch.isfinite(loss).all()):
        # inf - inf, or 0 * inf; a stays right
        loss = kl_from_log_probs(tile.teacher.log_probs(), tile.student.log_probs())
    return _term(loss, a, coefficient, base)


def divergence_tile(
    tile: Tile,
    logits: tuple[Tensor, Tensor],
    divergence: str | Divergence,
    options: dict[str, Any],
    temperature: float,
    coefficient: float | None,
    base: Tensor | None,
) -> TokenTerm:
    """A divergence, or one by its name, see `forward_kl_tile`; `logits` are teacher's and student's, `[R, V]`."""
    if divergence == "forward_kl" and not options:
        return forward_kl_tile(tile, coefficient, base)
    function = DIVERGENCES[divergence] if isinstance(divergence, str) else divergence
    form = CLOSED_FORMS.get(divergence) if isinstance(divergence, str) else None
    if form is None:
        return _by_autograd(logits, function, options, temperature, coefficient, base)
    loss, a = form(tile.teacher, tile.student, **options)
    if not bool(torch.isfinite(loss).all()):
        return _by_autograd(logits, function, options, temperature, coefficient, base)
    return _term(loss, a, coefficient, base)


def divergences_tile(
    tile: Tile,
    logits: tuple[Tensor, Tensor],
    truth_R: Tensor,
    of_truth: Named,
    of_written: Named,
    temperature: float,
    coefficient: float | None,
    base: Tensor | None,
) -> TokenTerm:
    """One divergence on rows of ground truth, and another on written text, see `divergence_tile`."""
    both = [
        divergence_tile(tile, logits, which, options, temperature, coefficient, None)
        for which, options in (of_truth, of_written)
    ]
    loss = torch.where(truth_R, both[0].loss, both[1].loss)
    scale = torch.where(truth_R, both[0].gradient.q_scale, both[1].gradient.q_scale)
    parts = []
    for term, others in zip(both, (~truth_R, truth_R), strict=True):
        # not multiplied: 0 * inf would be no number
        mine = (part.values.masked_fill_(others.unsqueeze(1), 0.0) for part in term.gradient.parts)
        parts += [Part(None, None, values) for values in mine]
    return TokenTerm(loss, LogitGradient(scale if base is None else scale + base, parts), torch.zeros_like(loss))


def _term(loss: Tensor, a: Tensor, coefficient: float | None, base: Tensor | None) -> TokenTerm:
    """Overwrites a."""
    zero = torch.zeros_like(loss)
    if coefficient is None:
        return TokenTerm(loss, LogitGradient(zero if base is None else base, []), zero)
    a *= coefficient
    scale = a.sum(dim=-1).neg_()
    if base is not None:
        scale += base
    return TokenTerm(loss, LogitGradient(scale, [Part(None, None, a)]), zero)


def _by_autograd(
    logits: tuple[Tensor, Tensor],
    function: Divergence,
    options: dict[str, Any],
    temperature: float,
    coefficient: float | None,
    base: Tensor | None,
) -> TokenTerm:
    with torch.enable_grad():
        student = logits[1].detach().requires_grad_(coefficient is not None)
        loss = function(logits[0], student, temperature=temperature, **options)
    if not isinstance(loss, Tensor) or loss.shape != logits[1].shape[:-1]:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"a divergence of logits {list(logits[1].shape)} has to return one value per token, "
            f"{list(logits[1].shape[:-1])}, not {shape}"
        )
    parts = []
    if coefficient is not None:
        (grad,) = torch.autograd.grad(loss, student, torch.full_like(loss, coefficient))
        grad = grad.to(loss.dtype)
        # the gradient to the logits over the temperature is wanted
        parts = [Part(None, None, grad * temperature)]
    loss = loss.detach()
    zero = torch.zeros_like(loss)
    return TokenTerm(loss, LogitGradient(zero if base is None else base, parts), zero)


def _log_ratio(above: Softmax, below: Softmax) -> Tensor:
    """log(above / below) of every class, from the logits."""
    constant = (above.log_base - above.base) - (below.log_base - below.base)
    return torch.sub(above.logits, below.logits).add_(constant.unsqueeze(1))


def _reverse_kl(teacher: Softmax, student: Softmax) -> tuple[Tensor, Tensor]:
    a = _log_ratio(student, teacher).mul_(student.probs)
    return a.sum(dim=-1), a


def _forward_kl(teacher: Softmax, student: Softmax) -> tuple[Tensor, Tensor]:
    loss = torch.linalg.vecdot(teacher.probs, _log_ratio(teacher, student))
    return loss, teacher.probs.neg()


def _symmetric_kl(teacher: Softmax, student: Softmax, *, weight: float = 0.5) -> tuple[Tensor, Tensor]:
    check_share("weight", weight)
    if weight in (0.0, 1.0):
        return (_forward_kl if weight else _reverse_kl)(teacher, student)
    a = _log_ratio(student, teacher)
    forward = torch.linalg.vecdot(teacher.probs, a).neg_()
    a *= student.probs
    loss = weight * forward + (1.0 - weight) * a.sum(dim=-1)
    return loss, a.mul_(1.0 - weight).add_(teacher.probs, alpha=-weight)


def _share(of: Tensor, other: Tensor, weight_other: float) -> Tensor:
    """log(of / mixture), from `other - of` so that equal distributions lose nothing.

    Over `of` and not over the mixture, as 1 + x is 0 in float32 where the one is a hundred-millionth of the other.
    A class without mass in both gives 0, and one without mass in `of` alone a number to multiply 0 with.
    """
    ratio = torch.sub(other, of).mul_(weight_other)
    return ratio.div_(of.clamp_min(torch.finfo(of.dtype).tiny)).log1p_().neg_()


def _jensen_shannon(teacher: Softmax, student: Softmax, *, beta: float = 0.5) -> tuple[Tensor, Tensor]:
    check_share("beta", beta, open_interval=True)
    p, q = teacher.probs, student.probs
    of_p = torch.linalg.vecdot(p, _share(p, q, 1.0 - beta))
    a = _share(q, p, beta).mul_(q)
    loss = beta * of_p + (1.0 - beta) * a.sum(dim=-1)
    return loss, a.mul_(1.0 - beta)


def _skewed_forward_kl(teacher: Softmax, student: Softmax, *, alpha: float = 0.1) -> tuple[Tensor, Tensor]:
    check_share("alpha", alpha)
    if alpha == 0.0:
        return _forward_kl(teacher, student)
    p, q = teacher.probs, student.probs
    m = torch.lerp(q, p, alpha)
    loss = torch.linalg.vecdot(p, _share(p, q, 1.0 - alpha))
    return loss, torch.mul(p, q).div_(m.clamp_min_(torch.finfo(m.dtype).tiny)).mul_(alpha - 1.0)


def _skewed_reverse_kl(
    teacher: Softmax, student: Softmax, *, alpha: float = 0.1, detach: bool = False
) -> tuple[Tensor, Tensor]:
    check_share("alpha", alpha)
    if alpha == 0.0:
        return _reverse_kl(teacher, student)
    p, q = teacher.probs, student.probs
    m = torch.lerp(p, q, alpha)
    a = _share(q, p, 1.0 - alpha).mul_(q)
    loss = a.sum(dim=-1)
    if detach:
        return loss, a
    return loss, a.sub_(torch.mul(q, q).div_(m.clamp_min_(torch.finfo(m.dtype).tiny)), alpha=alpha)


def _total_variation(teacher: Softmax, student: Softmax) -> tuple[Tensor, Tensor]:
    difference = torch.sub(student.probs, teacher.probs)
    loss = torch.linalg.vector_norm(difference, ord=1, dim=-1).mul_(0.5)
    return loss, difference.sign_().mul_(student.probs).mul_(0.5)


CLOSED_FORMS: dict[str, ClosedForm] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "symmetric_kl": _symmetric_kl,
    "jensen_shannon": _jensen_shannon,
    "skewed_forward_kl": _skewed_forward_kl,
    "skewed_reverse_kl": _skewed_reverse_kl,
    "total_variation": _total_variation,
}
