"""Both models' rows of a call: hidden states in, a tile's logits out, and the student's gradients back.

The output layer itself is `mgsr.losses.projection`. Gradients to it and to the states are summed over the tiles.
The sums are attached to the graph in the end, so that backward only scales them.

Shapes: N rows of a call, R rows of a tile, V classes, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mgsr.losses.projection import OutputLayer
from mgsr.losses.teacher_topk import CachedRows, StoredRanking, restored_logits
from mgsr.runtime import devices


class ModelRows:
    """One model's rows of a call: logits a tile at a time, from hidden states or from the cache.

    Works in `dtype` (float32 or wider) whatever the weights are stored in.

    Args:
        hidden_NH: last hidden states; those of cached rows are not read.
        layer: the output layer.
        width: classes that are used.
        product_dtype: see `factor_dtype`.
        cached: None: no row is.
    """

    def __init__(
        self,
        hidden_NH: Tensor,
        layer: OutputLayer,
        width: int,
        dtype: torch.dtype,
        product_dtype: torch.dtype | None,
        cached: CachedRows | None = None,
    ) -> None:
        self.hidden_NH, self.width, self.dtype, self.cached = hidden_NH.detach(), width, dtype, cached
        self.layer = layer.narrowed(width, dtype, product_dtype)
        self._place_N: Tensor | None = None
        if cached is not None:
            self._place_N = torch.full((len(hidden_NH),), -1, dtype=torch.int64, device=hidden_NH.device)
            self._place_N[cached.rows] = torch.arange(len(cached.rows), device=hidden_NH.device)

    def cached_among(self, rows: Tensor) -> list[bool]:
        """Which of some rows are cached: all that is ever looked at on a device."""
        return [] if self._place_N is None else (self._place_N[rows] >= 0).tolist()

    def stored(self, rows: Tensor, cached: Sequence[bool]) -> StoredRanking | None:
        """The cached ranking of some rows, of which `cached` says which have one; None where none has."""
        if self.cached is None or self._place_N is None or not any(cached):
            return None
        chosen = _places(cached, True, rows.device)
        ids = self.cached.ids[self._place_N[rows[chosen]]]
        inside = torch.tensor(cached, device=rows.device)
        known = torch.where(inside, ids.shape[1], self.width)
        return StoredRanking(chosen, ids, known, _places(cached, False, rows.device))

    def logits(
        self, rows: Tensor, out: Tensor | None = None, cached: Sequence[bool] = ()
    ) -> tuple[Tensor, Tensor]:
        """Logits `[R, V]` of some rows, in `out` where it is given, and states `[R, H]`.

        Args:
            cached: what `cached_among` says of the rows; empty: none is.
        """
        # picked tile by tile: copies of all rows would grow with N
        states = self.hidden_NH[rows].to(self.dtype)
        if self.cached is None or self._place_N is None or not any(cached):
            return self.layer.project(states, dtype=self.dtype, out=out), states
        logits = states.new_empty(len(rows), self.width) if out is None else out
        if all(cached):
            self._restored(rows, logits)
            return logits, states
        known, other = (_places(cached, kind, rows.device) for kind in (True, False))
        logits[known] = self._restored(rows[known])
        logits[other] = self.layer.project(states[other], dtype=self.dtype)
        return logits, states

    def _restored(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        assert self.cached is not None and self._place_N is not None
        place = self._place_N[rows]
        _, log_probs, ids, log_tail = self.cached
        return restored_logits(
            log_probs[place].to(self.dtype), ids[place], log_tail[place].to(self.dtype), self.width, out
        )


def _places(flags: Sequence[bool], kind: bool, device: torch.device) -> Tensor:
    return torch.tensor([i for i, flag in enumerate(flags) if flag is kind], dtype=torch.int64, device=device)


class StudentRows(ModelRows):
    """The student's rows, with their graph, and the gradients that come back.

    Gradients of the output layer have the full size of the parameter, also where only its first `width` classes
    are used.
    """

    def __init__(
        self,
        hidden_NH: Tensor,
        layer: OutputLayer,
        width: int,
        dtype: torch.dtype,
        product_dtype: torch.dtype | None,
        watch: Callable[[Tensor], None] | None = None,
    ) -> None:
        super().__init__(hidden_NH, layer, width, dtype, product_dtype)
        self._watch = watch
        self._inputs = hidden_NH, layer.weight, layer.bias
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

    def pull(self, rows: Tensor, grad_logits: Tensor, logits: Tensor, states: Tensor) -> None:
        """Hand the gradient of a tile's logits on to hidden states, weight and bias; overwrites `grad_logits`."""
        if self._watch is not None:
            self._watch(grad_logits)
        to_weight, to_bias = (None if t is None else t[: self.width] for t in (self._grad_weight, self._grad_bias))
        to_states = self.layer.pull(
            grad_logits,
            logits,
            states,
            dtype=self.dtype,
            to_hidden=self._grad_hidden is not None,
            to_weight=to_weight,
            to_bias=to_bias,
            fresh=self._untouched,
        )
        self._untouched = False
        if self._grad_hidden is not None and to_states is not None:
            self._grad_hidden[rows] += to_states

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


def _graph_is_kept() -> bool:
    """Whether backward may run again (`retain_graph`); True where this torch does not tell."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if asked is None else bool(asked())


def _scaled_(grad: Tensor, factor: Tensor) -> Tensor:
    """grad * factor in place: nobody needs it again, and a copy would be as large as the output layer."""
    if devices.reading_is_free(factor.device) and float(factor) == 1.0:
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
