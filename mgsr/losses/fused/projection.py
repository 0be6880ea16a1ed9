"""A model's output layer, used one tile of rows at a time. Shapes: R rows, V classes, H hidden size."""

from __future__ import annotations

import torch
from torch import Tensor

from mgsr.losses.fused.products import times_transposed


def factor_dtype(weight: Tensor, asked: torch.dtype | None) -> torch.dtype | None:
    """What a product with `weight` takes its factors in: bfloat16, or None for the dtype of its results.

    `asked` decides where it is given; otherwise it is bfloat16 on a GPU under such autocast or with such a weight.
    On a CPU those products are slower than float32's. Never float16: the gradient of a mean over thousands of
    tokens lies below its smallest number.

    Raises:
        ValueError: `asked` is neither bfloat16 nor None.
    """
    if asked not in (None, torch.bfloat16):
        raise ValueError(f"product_dtype must be torch.bfloat16 or None, got {asked}")
    if asked is not None or weight.device.type != "cuda":
        return asked
    if torch.is_autocast_enabled("cuda"):
        low = torch.get_autocast_dtype("cuda") == torch.bfloat16
    else:
        low = weight.dtype == torch.bfloat16
    return torch.bfloat16 if low else None


def _product(left: Tensor, right: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """`left @ right` in `dtype`, in which it is summed, whatever the factors are in."""
    if left.dtype == dtype:
        return torch.mm(left, right, out=out)
    if left.device.type != "cuda":
        return torch.mm(left.to(dtype), right.to(dtype), out=out)
    if out is None:
        return torch.mm(left, right, out_dtype=dtype)
    return torch.mm(left, right, out_dtype=dtype, out=out)


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, fresh: bool) -> None:
    """`total += left @ right` in place and in `total`'s dtype; `fresh`: nothing stands there yet."""
    beta = 0 if fresh else 1
    if left.dtype == total.dtype:
        total.addmm_(left, right, beta=beta)
    elif left.device.type != "cuda":
        total.addmm_(left.to(total.dtype), right.to(total.dtype), beta=beta)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, beta=beta, out=total)


class Head:
    """logits = scale * (h W^T + b), then cap * tanh(logits / cap) where a soft cap is given.

    Works in `dtype` (float32 or wider) whatever the weights are stored in; the cast is made once. With `factors`,
    those of the matrix products are in that narrower dtype instead, and sums still in `dtype`. `accumulate` names
    the gradients to add up over the tiles: they have the full size of the parameter, also where only its first
    `width` classes are used.
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
        factors: torch.dtype | None = None,
        accumulate: tuple[bool, bool] = (False, False),
    ) -> None:
        if softcap is not None and not softcap > 0:
            raise ValueError(f"softcap must be positive, got {softcap}")
        self.width, self.scale, self.softcap, self.dtype = width, scale, softcap, dtype
        self.weight = weight_VH.detach()[:width].to(factors or dtype)
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
        if self.weight.dtype != self.dtype:
            logits = _product(hidden_RH.to(self.weight.dtype), self.weight.t(), self.dtype, out)
            if self.bias is not None:
                logits += self.bias
        else:
            logits = times_transposed(hidden_RH, self.weight, self.bias, out)
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
        if self.grad_bias is not None:
            self.grad_bias[: self.width] += grad_logits_RV.sum(dim=0)
        factor_RV = grad_logits_RV.to(self.weight.dtype)
        if self._grad_weight is not None:
            states_RH = hidden_RH.to(self.weight.dtype)
            _add_product(self._grad_weight[: self.width], factor_RV.t(), states_RH, fresh=self._untouched)
            self._untouched = False
        return _product(factor_RV, self.weight, self.dtype) if to_hidden else None
