"""Gradients that were computed in the forward pass, attached to the autograd graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def _graph_is_kept() -> bool:
    """Whether backward may run again (`retain_graph`); True where this torch does not tell."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if asked is None else bool(asked())


def _scaled_(grad: Tensor, factor: Tensor) -> Tensor:
    """grad * factor in place: nobody needs it again, and a copy would be as large as the output layer."""
    if factor.device.type == "cpu" and float(factor) == 1.0:
        return grad
    return grad.mul_(factor)


class _Attached(torch.autograd.Function):
    """Two scalars whose gradients to every input are already known, up to the factor from above."""

    @staticmethod
    def forward(
        ctx: Any,
        first: Tensor,
        second: Tensor,
        grads: Sequence[tuple[Tensor | None, Tensor | None]],
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.dtypes = [tensor.dtype for tensor in inputs]
        flat = [grad for pair in grads for grad in pair]
        ctx.present = [grad is not None for grad in flat]
        ctx.save_for_backward(*(grad for grad in flat if grad is not None))
        return first.clone(), second.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, from_first: Tensor | None, from_second: Tensor | None) -> tuple[Tensor | None, ...]:
        keep = _graph_is_kept()
        saved = iter(ctx.saved_tensors)
        flat = [next(saved) if present else None for present in ctx.present]
        out: list[Tensor | None] = []
        for index, dtype in enumerate(ctx.dtypes):
            total: Tensor | None = None
            for factor, grad in zip((from_first, from_second), flat[2 * index : 2 * index + 2], strict=True):
                if factor is None or grad is None:
                    continue
                part = grad * factor if keep else _scaled_(grad, factor)
                total = part if total is None else total + part
            out.append(None if total is None else total.to(dtype))
        return (None, None, None, *out)


def attach_gradients(
    first: Tensor, second: Tensor, inputs: Sequence[tuple[Tensor, Tensor | None, Tensor | None]]
) -> tuple[Tensor, Tensor]:
    """Make two scalars differentiable, given their gradients.

    Args:
        first: scalar without a graph.
        second: scalar without a graph.
        inputs: (input, gradient of `first`, gradient of `second`); None = no gradient. Each gradient has the
            shape of its input, in any floating dtype.

    Returns:
        The two scalars; backward may run several times (`retain_graph=True`), but only once differentiably.
    """
    if not inputs:
        return first, second
    grads = [(to_first, to_second) for _, to_first, to_second in inputs]
    return _Attached.apply(first, second, grads, *(tensor for tensor, _, _ in inputs))
