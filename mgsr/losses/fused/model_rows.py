"""Both models' rows of a call: hidden states in, a tile's logits out, and the student's gradients back.

The output layer itself is `mgsr.losses.projection`. The gradient of a product h W^T is g W to h and g^T h to W,
summed over the tiles. The sums are attached to the graph in the end, so that backward only scales them.

Shapes: N rows of a call, M response rows, R rows of a tile, V classes, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mgsr.losses.projection import OutputLayer, add_product, product
from mgsr.losses.teacher_topk import CachedRows, restored_logits


class StudentRows:
    """The student's rows of a call: logits a tile at a time, and the gradients that come back.

    Works in `dtype` (float32 or wider) whatever the weights are stored in. Gradients of the output layer have the
    full size of the parameter, also where only its first `width` classes are used.

    Args:
        hidden_NH: last hidden states, with their graph.
        layer: the output layer, with its graph.
        width: classes that are used.
        product_dtype: see `factor_dtype`.
    """

    def __init__(
        self,
        hidden_NH: Tensor,
        layer: OutputLayer,
        width: int,
        dtype: torch.dtype,
        product_dtype: torch.dtype | None,
    ) -> None:
        self._inputs = hidden_NH, layer.weight, layer.bias
        self.hidden_NH, self.width, self.dtype = hidden_NH.detach(), width, dtype
        self.layer = layer.narrowed(width, dtype, product_dtype)
        to_hidden, to_weight, to_bias = (
            torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in self._inputs
        )
        self.wants_gradient = to_hidden or to_weight or to_bias
        device = hidden_NH.device
        self._grad_hidden = torch.zeros(hidden_NH.shape, dtype=dtype, device=device) if to_hidden else None
        self._grad_weight = self._grad_bias = None
        self._untouched = True
        if to_weight:
            # the first tile writes it, so that it need not be zeroed first
            self._grad_weight = torch.empty(layer.weight.shape, dtype=dtype, device=layer.weight.device)
            self._grad_weight[width:] = 0.0
        if to_bias and layer.bias is not None:
            self._grad_bias = torch.zeros(layer.bias.shape, dtype=dtype, device=layer.bias.device)

    def logits(self, rows: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits `[R, V]` of some rows, in `out` where that is given, and their states `[R, H]`."""
        # picked tile by tile: copies of all rows would grow with N
        states = self.hidden_NH[rows].to(self.dtype)
        return self.layer.project(states, dtype=self.dtype, out=out), states

    def pull(self, rows: Tensor, grad_logits: Tensor, logits: Tensor, states: Tensor) -> None:
        """Hand the gradient of a tile's logits on to hidden states, weight and bias; overwrites `grad_logits`."""
        layer = self.layer
        if layer.softcap is not None:
            grad_logits *= 1.0 - (logits / layer.softcap).square_()
        if layer.scale != 1.0:
            grad_logits *= layer.scale
        if self._grad_bias is not None:
            self._grad_bias[: self.width] += grad_logits.sum(dim=0)
        factor = grad_logits.to(layer.weight.dtype)
        if self._grad_weight is not None:
            whole, narrow = self._grad_weight[: self.width], states.to(layer.weight.dtype)
            add_product(whole, factor.t(), narrow, fresh=self._untouched)
            self._untouched = False
        if self._grad_hidden is not None:
            self._grad_hidden[rows] += product(factor, layer.weight, self.dtype)

    def attach(
        self, first: Tensor, second: Tensor, others: Sequence[tuple[Tensor, Tensor | None, Tensor | None]] = ()
    ) -> tuple[Tensor, Tensor]:
        """`first` with what was pulled as its gradient, and both with that of `others`."""
        if self._grad_weight is not None and self._untouched:
            self._grad_weight.zero_()
        grads = (self._grad_hidden, self._grad_weight, self._grad_bias)
        own = [
            (t, grad, None)
            for t, grad in zip(self._inputs, grads, strict=True)
            if t is not None and grad is not None
        ]
        return with_precomputed_gradients(first, second, [*own, *others])


class TeacherRows:
    """Teacher logits of any slice of the response rows: from hidden states, or from the cache where it has them.

    Args:
        hidden_NH: states of all N rows of the call; those of cached rows are not read.
        layer: the output layer; width, dtype, product_dtype: as in `StudentRows`.
        kept_M: which of them are response rows.
        cached: None: no row is.
    """

    def __init__(
        self,
        hidden_NH: Tensor,
        layer: OutputLayer,
        width: int,
        dtype: torch.dtype,
        product_dtype: torch.dtype | None,
        kept_M: Tensor,
        cached: CachedRows | None = None,
    ) -> None:
        self.layer, self.dtype, self.cached = layer.narrowed(width, dtype, product_dtype), dtype, cached
        self.hidden_NH, self.kept_M = hidden_NH.detach(), kept_M
        self.place_M: Tensor | None = None
        if cached is not None:
            place_N = torch.full((len(hidden_NH),), -1, dtype=torch.int64, device=kept_M.device)
            place_N[cached.rows] = torch.arange(len(cached.rows), device=kept_M.device)
            self.place_M = place_N[kept_M]

    def logits(self, start: int, end: int, out: Tensor | None = None) -> Tensor:
        """`[end - start, V]`, in `out` where that is given and no row is cached."""
        hidden, width = self.hidden_NH[self.kept_M[start:end]].to(self.dtype), self.layer.weight.shape[0]
        known = None if self.place_M is None else self.place_M[start:end] >= 0
        if known is None or not bool(known.any()):
            return self.layer.project(hidden, dtype=self.dtype, out=out)
        assert self.cached is not None and self.place_M is not None
        chosen = self.place_M[start:end][known]
        restored = restored_logits(
            self.cached.log_probs[chosen].to(hidden.dtype),
            self.cached.ids[chosen],
            self.cached.log_tail[chosen].to(hidden.dtype),
            width,
        )
        if bool(known.all()):
            return restored
        logits = hidden.new_empty(end - start, width)
        logits[known] = restored
        logits[~known] = self.layer.project(hidden[~known], dtype=self.dtype)
        return logits


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


def with_precomputed_gradients(
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
