"""A term's gradient to a tile's logits, kept as little as it is until it is added up.

Identity: with a = dL/dlog q every term's gradient to the logits is (a - q * sum(a)) / temperature.

Shapes: R rows, V classes, r chosen rows, K chosen classes of each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mgsr.losses.fused.workspace import gather_classes, scatter_classes


class Edge(NamedTuple):
    """Which classes of some rows have another multiple of q than the rest, `q_scale [r]`: those inside.

    `last`, `apart`: see `row_loops.masses_outside`.
    """

    q_scale: Tensor
    last: Tensor
    apart: Tensor


class Part(NamedTuple):
    """Of a - q * sum(a) what is no multiple of q in a whole row.

    Without `ids` the `values [r, V]` are added to `rows` (None: to all). With `ids [r, K]` the `values [r, K]` are
    what a - q * sum(a) is for these classes, and replace what stands there; with an `edge` they are added to the
    multiple of q that is given there.
    """

    rows: Tensor | None
    ids: Tensor | None
    values: Tensor
    edge: Edge | None = None

    def add_to(self, out: Tensor) -> None:
        """Write into `out [R, V]`, where the multiples of q stand already."""
        if self.ids is not None:
            scatter_classes(out, self.rows, self.ids, self.values, add=self.edge is not None)
        elif self.rows is None:
            out += self.values
        else:
            out.index_add_(0, self.rows, self.values)


class LogitGradient(NamedTuple):
    """A term's gradient to the logits over the temperature: q * `q_scale [R]`, then the parts, in their order."""

    q_scale: Tensor
    parts: list[Part]


class TokenTerm(NamedTuple):
    """The token-level divergence of a tile: `loss [R]`, its scaled gradient, and of DAC-KL what else was seen.

    `clipped [R]` is the mass of the rest bin. `bounds`: lower and upper `[R]`, with their graph. `bounds_grad
    [4, R]`: dloss / dlower, dloss / dupper, dclipped / dlower, dclipped / dupper. `limits [2, R]`: the clipped
    mass at two other pairs of bounds. `open [R]`: rows that are not decided yet, and are 0 here.
    """

    loss: Tensor
    gradient: LogitGradient
    clipped: Tensor
    bounds: tuple[Tensor, Tensor] | None = None
    bounds_grad: Tensor | None = None
    limits: Tensor | None = None
    open: Tensor | None = None


def add_up(q: Tensor, token: LogitGradient, span: LogitGradient | None, out: Tensor) -> Tensor | None:
    """Both terms' gradient to the logits over the temperature: the tile's rows to `out [R, V]`, a halo row's back.

    Args:
        q: of the tile's rows, and of the halo row behind them where there is one; it may lie in `out`.
        token: of the tile's rows.
        span: of all rows of `q`, with one part `[R + halo, V]`; the halo has this gradient alone.
    """
    scale, parts, count = token.q_scale, token.parts, out.shape[0]
    halo = None
    if span is None:
        torch.mul(q[:count], scale.unsqueeze(1), out=out)
    else:
        direction = span.parts[0].values
        # before `q` may be overwritten: a part that replaces must keep the span's share
        parts = [_with_span(part, q, direction, span.q_scale) for part in parts]
        torch.addcmul(direction[:count], q[:count], (scale + span.q_scale[:count]).unsqueeze(1), out=out)
        if q.shape[0] > count:
            halo = torch.addcmul(direction[count:], q[count:], span.q_scale[count:].unsqueeze(1))
    for part in parts:
        part.add_to(out)
    return halo


def _with_span(part: Part, q: Tensor, direction: Tensor, q_scale: Tensor) -> Part:
    """The part with the span's a - q * sum(a) added; one that is added to whole rows leaves it there anyway."""
    rows, ids, values, _ = part
    if ids is None:
        return part
    scale = q_scale[: ids.shape[0]] if rows is None else q_scale[rows]
    span = gather_classes(direction, rows, ids).addcmul_(gather_classes(q, rows, ids), scale.unsqueeze(1))
    return Part(rows, ids, span.add_(values))
