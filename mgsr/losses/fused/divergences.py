"""The token-level divergences of a tile. The definitions are those of `mgsr.losses.divergences`.

Identity, for the forward KL: a = dL/dlog q is -p, so that a - q * sum(a) is q * sum(p) - p. Every other divergence
goes through its definition under autograd, a tile at a time: there the definition is its own twin.

Shapes: R rows, V classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mgsr.losses.divergences import DIVERGENCES
from mgsr.losses.fused.workspace import LogitGradient, Part, Tile, TokenTerm
from mgsr.losses.log_probs import kl_from_log_probs


def forward_kl_tile(tile: Tile, coefficient: float | None, base: Tensor | None) -> TokenTerm:
    """KL(p || q) of every row.

    Args:
        coefficient: factor on the gradient; None: it isn't wanted.
        base: `[R]`, another term's multiple of q, which goes into the same pass.
    """
    loss = kl_from_log_probs(tile.teacher.log_probs(), tile.student.log_probs())
    zero = torch.zeros_like(loss)
    if coefficient is None:
        return TokenTerm(loss, LogitGradient(zero if base is None else base, []), zero)
    p = tile.teacher.probs
    scale = p.sum(dim=-1) * coefficient
    if base is not None:
        scale = scale + base
    return TokenTerm(loss, LogitGradient(scale, [Part(None, None, p * -coefficient)]), zero)


def divergence_tile(
    tile: Tile,
    logits: tuple[Tensor, Tensor],
    name: str,
    options: dict[str, Any],
    temperature: float,
    coefficient: float | None,
    base: Tensor | None,
) -> TokenTerm:
    """A divergence by its name, see `forward_kl_tile`; `logits` are the teacher's and the student's, `[R, V]`."""
    if name == "forward_kl" and not options:
        return forward_kl_tile(tile, coefficient, base)
    with torch.enable_grad():
        student = logits[1].detach().requires_grad_(coefficient is not None)
        loss = DIVERGENCES[name](logits[0], student, temperature=temperature, **options)
    zero = torch.zeros_like(loss.detach())
    parts = []
    if coefficient is not None:
        (grad,) = torch.autograd.grad(loss, student, torch.full_like(loss, coefficient))
        # the gradient to the logits over the temperature is wanted
        parts = [Part(None, None, grad * temperature)]
    return TokenTerm(loss.detach(), LogitGradient(zero if base is None else base, parts), zero)
