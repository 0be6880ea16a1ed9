"""A model's output layer: from hidden states to logits, as fast as the processor's library allows.

`fused/model_rows.py` makes logits with it tile by tile, and pulls their gradient back through it.

Shapes: `...` leading shape, R rows, V classes, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mgsr.runtime.processor import has_bf16_units, is_amd

CLASSES = 2048
"""Classes that are multiplied at a time: what comes out stays in the cache until it is turned around."""

LEAST_SIDE = 32
"""Of matrices with a smaller side the library rounds no factor (seen at 7)."""
LEAST_ROWS = 16
"""With fewer rows the library takes other routines, whose sums are rounded otherwise."""


@dataclass(frozen=True)
class OutputLayer:
    """The map from last hidden states to logits: `softcap * tanh(scale * (W h + b) / softcap)`.

    Attributes:
        weight: `[V, H]`.
        bias: `[V]` or None.
        scale: factor on the logits, 1 for most models (Cohere's `logit_scale`, Granite's `1 /
            logits_scaling`).
        softcap: Gemma's `final_logit_softcapping`; None leaves the logits as they are.
        rounds: on a CPU, factors of products are rounded to bfloat16, though all is stored in float32.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    rounds: bool = False

    def to(self, device: torch.device) -> OutputLayer:
        """The same on another device; where it is there already nothing is copied."""
        bias = None if self.bias is None else self.bias.detach().to(device)
        return replace(self, weight=self.weight.detach().to(device), bias=bias)

    def narrowed(self, width: int, dtype: torch.dtype, product_dtype: torch.dtype | None = None) -> OutputLayer:
        """Without a graph, cut to the first `width` classes, and cast once to what `project(dtype=dtype)` takes.

        Args:
            product_dtype: of the factors of matrix products, see `factor_dtype`; sums stay in `dtype`.

        Raises:
            ValueError: the soft cap isn't positive, or `product_dtype` is neither bfloat16 nor None.
        """
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"softcap must be positive, got {self.softcap}")
        factors = factor_dtype(self.weight, product_dtype)
        bias = None if self.bias is None else self.bias.detach()[:width].to(dtype)
        weight = self.weight.detach()[:width]
        if factors is None or weight.device.type == "cuda":
            return replace(self, weight=weight.to(factors or dtype), bias=bias)
        return replace(self, weight=weight.to(dtype), bias=bias, rounds=True)

    def project(
        self,
        hidden: Tensor,
        vocab_size: int | None = None,
        *,
        dtype: torch.dtype | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Logits `[..., V]` of states `[..., H]`, float32 or wider; V is `vocab_size` if given.

        Args:
            dtype: in which products are summed, at least as wide as the weight; None: as the weight.
            out: takes the logits; then no gradient flows.
        """
        weight, bias = self.weight, self.bias
        if vocab_size is not None:
            weight, bias = weight[:vocab_size], None if bias is None else bias[:vocab_size]
        if self.rounds:
            logits = rounded_product(hidden, weight.t(), out=out)
            if bias is not None:
                logits += bias
        elif dtype is None or dtype == weight.dtype:
            logits = times_transposed(hidden.to(weight.device), weight, bias, out)
        else:
            logits = product(hidden.to(weight.dtype), weight.t(), dtype, out)
            if bias is not None:
                logits += bias
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_()
            # autograd keeps what tanh gave
            logits = logits * self.softcap if logits.requires_grad else logits.mul_(self.softcap)
        return logits

    def pull(
        self,
        grad: Tensor,
        logits: Tensor,
        hidden: Tensor,
        *,
        dtype: torch.dtype,
        to_hidden: bool,
        to_weight: Tensor | None,
        to_bias: Tensor | None,
        fresh: bool,
    ) -> Tensor | None:
        """The way back through `project`, in sums of `dtype`: g W to h, and g^T h to W.

        Args:
            grad: `[R, V]`, to the logits; overwritten.
            logits: what `project` gave; read where there is a soft cap.
            hidden: `[R, H]`, of which.
            to_hidden: whether its gradient is wanted.
            to_weight: `[V, H]`, what the weight's gradient is added to; None: it isn't wanted.
            to_bias: `[V]`, likewise.
            fresh: nothing stands in `to_weight` yet.

        Returns:
            The gradient to `hidden`, where it is wanted.
        """
        if self.softcap is not None:
            grad *= 1.0 - (logits / self.softcap).square_()
        if self.scale != 1.0:
            grad *= self.scale
        if to_bias is not None:
            to_bias += grad.sum(dim=0)
        if self.rounds:
            if to_weight is not None:
                rounded_product(grad.t(), hidden, added_to=to_weight, fresh=fresh)
            return rounded_product(grad, self.weight) if to_hidden else None
        factor = grad.to(self.weight.dtype)
        if to_weight is not None:
            add_product(to_weight, factor.t(), hidden.to(self.weight.dtype), fresh=fresh)
        return product(factor, self.weight, dtype) if to_hidden else None


@dataclass(frozen=True, eq=False)
class HiddenLogits:
    """Logits of response positions, made from their hidden states a slice at a time.

    Attributes:
        hidden_NH: `[N, H]`, sequence after sequence.
        head: the output layer.
        vocab_size: number of leading ids, None for all.
    """

    hidden_NH: Tensor  # noqa: N815
    head: OutputLayer
    vocab_size: int | None = None

    def __len__(self) -> int:
        return self.hidden_NH.shape[0]

    @torch.no_grad()
    def __getitem__(self, rows: slice) -> Tensor:
        return self.head.project(self.hidden_NH[rows], self.vocab_size)


def factor_dtype(weight: Tensor, asked: torch.dtype | None) -> torch.dtype | None:
    """What a product with `weight` takes its factors in: bfloat16, or None for the dtype of its results.

    `asked` decides where it is given; otherwise it is bfloat16 on a GPU under such autocast or with such a weight.
    Never float16: the gradient of a mean over thousands of tokens lies below its smallest number.

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


def product(left: Tensor, right: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """`left @ right` in `dtype`, in which it is summed, whatever the factors are in."""
    if left.dtype == dtype:
        return torch.mm(left, right, out=out)
    if out is None:
        return torch.mm(left, right, out_dtype=dtype)
    return torch.mm(left, right, out_dtype=dtype, out=out)


def add_product(total: Tensor, left: Tensor, right: Tensor, *, fresh: bool) -> None:
    """`total += left @ right` in place and in `total`'s dtype; `fresh`: nothing stands there yet."""
    beta = 0 if fresh else 1
    if left.dtype == total.dtype:
        total.addmm_(left, right, beta=beta)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, beta=beta, out=total)


@contextmanager
def _rounding() -> Iterator[None]:
    """Within the block oneDNN rounds the factors of large float32 products to bfloat16; sums stay in float32."""
    setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


def rounded_product(
    left: Tensor, right: Tensor, *, out: Tensor | None = None, added_to: Tensor | None = None, fresh: bool = False
) -> Tensor:
    """`left @ right` on a CPU, both factors rounded to bfloat16: by its units, or before.

    Args:
        out: takes the product.
        added_to: what it is added to instead; `fresh`: nothing stands there yet.
    """
    large = min(*left.shape, right.shape[1]) >= LEAST_SIDE
    quick = large and has_bf16_units() and left.dtype == torch.float32
    if not quick:
        left, right = left.bfloat16().to(left.dtype), right.bfloat16().to(right.dtype)
    with _rounding() if quick else nullcontext():
        if added_to is not None:
            return added_to.addmm_(left, right, beta=0 if fresh else 1)
        return torch.mm(left, right, out=out)


def times_transposed(
    left_RH: Tensor, weight_VH: Tensor, bias_V: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """`left @ weight.T + bias`, `[R, V]`, in `out` where that is given.

    PyTorch's wheels multiply float32 by MKL, which on a processor of AMD's takes longer for a few rows times a
    large transposed matrix than for that matrix times the few columns (seen on Zen 4, where the sums came out the
    same to the last digit). There it is done that way around, a block of classes at a time. Elsewhere, and where a
    gradient is to flow, it is PyTorch's own product.
    """
    if not _turns_around(left_RH, weight_VH):
        if out is None:
            return F.linear(left_RH, weight_VH, bias_V)
        if bias_V is None:
            return torch.mm(left_RH, weight_VH.t(), out=out)
        return torch.addmm(bias_V, left_RH, weight_VH.t(), out=out)
    rows, classes = left_RH.shape[0], weight_VH.shape[0]
    product = left_RH.new_empty(rows, classes) if out is None else out
    columns_HR = left_RH.t()
    block = left_RH.new_empty(min(CLASSES, classes), rows)
    for start in range(0, classes, CLASSES):
        stop = min(start + CLASSES, classes)
        torch.mm(weight_VH[start:stop], columns_HR, out=block[: stop - start])
        product[:, start:stop] = block[: stop - start].t()
    if bias_V is not None:
        product += bias_V
    return product


def _turns_around(left_RH: Tensor, weight_VH: Tensor) -> bool:
    return (
        left_RH.device.type == "cpu"
        and left_RH.dtype == weight_VH.dtype == torch.float32
        and left_RH.dim() == 2
        and left_RH.shape[0] >= LEAST_ROWS
        and weight_VH.shape[0] >= 2 * CLASSES
        and not (torch.is_grad_enabled() and (left_RH.requires_grad or weight_VH.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and is_amd()
    )
