"""A model's output layer, used one tile of rows at a time. Shapes: R rows, V classes, H hidden size."""

from __future__ import annotations

import torch
from torch import Tensor


class Head:
    """logits = scale * (h W^T + b), then cap * tanh(logits / cap) where a soft cap is given.

    Works in `dtype` (float32 or wider) whatever the weights are stored in; the cast is made once. `accumulate`
    names the gradients to add up over the tiles: they have the full size of the parameter, also where only its
    first `width` classes are used.
    """

    def __init__(
        self,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        *,
        scale: float = 1.0,
        softcap: float | None = None,
        width: int,
        dtype: torch.dtype,
        accumulate: tuple[bool, bool] = (False, False),
    ) -> None:
        if softcap is not None and not softcap > 0:
            raise ValueError(f"softcap must be positive, got {softcap}")
        self.width, self.scale, self.softcap = width, scale, softcap
        self.weight = weight_VH.detach()[:width].to(dtype)
        self.bias = None if bias_V is None else bias_V.detach()[:width].to(dtype)
        self._grad_weight: Tensor | None = None
        self._untouched = True
        self.grad_bias: Tensor | None = None
        if accumulate[0]:
            # the first tile writes it, so that it need not be zeroed first
            self._grad_weight = torch.empty(weight_VH.shape, dtype=dtype, device=weight_VH.device)
            self._grad_weight[width:] = 0.0
        if accumulate[1] and bias_V is not None:
            self.grad_bias = torch.zeros(bias_V.shape, dtype=dtype, device=bias_V.device)

    @property
    def grad_weight(self) -> Tensor | None:
        """`[V, H]`, summed over the tiles so far."""
        if self._grad_weight is not None and self._untouched:
            self._grad_weight.zero_()
            self._untouched = False
        return self._grad_weight

    def project(self, hidden_RH: Tensor, out: Tensor | None = None) -> Tensor:
        """Logits `[R, V]`, in `out` where that is given."""
        if out is None:
            logits = torch.nn.functional.linear(hidden_RH, self.weight, self.bias)
        elif self.bias is None:
            logits = torch.mm(hidden_RH, self.weight.t(), out=out)
        else:
            logits = torch.addmm(self.bias, hidden_RH, self.weight.t(), out=out)
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def pull(
        self, grad_logits_RV: Tensor, logits_RV: Tensor, hidden_RH: Tensor, *, to_hidden: bool
    ) -> Tensor | None:
        """Gradient `[R, H]` to the hidden states (if asked for); adds those of weight and bias up.

        Overwrites `grad_logits`.
        """
        if self.softcap is not None:
            grad_logits_RV *= 1.0 - (logits_RV / self.softcap).square_()
        if self.scale != 1.0:
            grad_logits_RV *= self.scale
        if self._grad_weight is not None:
            beta = 0 if self._untouched else 1
            self._grad_weight[: self.width].addmm_(grad_logits_RV.t(), hidden_RH, beta=beta)
            self._untouched = False
        if self.grad_bias is not None:
            self.grad_bias[: self.width] += grad_logits_RV.sum(dim=0)
        return grad_logits_RV @ self.weight if to_hidden else None
