"""Hidden states times an output layer, as fast as the processor's library allows.

Shapes: R rows, V classes, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mgsr.runtime.processor import is_amd

CLASSES = 2048
"""Classes that are multiplied at a time: what comes out stays in the cache until it is turned around."""

LEAST_ROWS = 16
"""With fewer rows the library takes other routines, whose sums are rounded otherwise."""


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
