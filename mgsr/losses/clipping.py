"""What the clipped divergence, its tiled form and the clip network share: ramps, masks, ranking, summaries.

Shapes: R rows (tokens), V classes, K selected classes. `c` is a class's quantile: the mass, or the share of
classes, that is ranked strictly before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

RAMPS = ("clipped", "sigmoid")
QUANTILES = ("mass", "rank")
FORMS = ("normalised", "literal")
RAMP_REACH = 4.0
"""The clipped ramp is exactly 0 or 1 further than this many sharpnesses from a bound."""
SORT_WIDTH = 2048
"""Up to this many classes a full sort is the quickest way to rank them."""
PARALLEL_ELEMENTS = 1 << 19
"""Elements that a thread of its own is worth when numpy ranks them."""

_TAIL = 1.0 / (1.0 + math.exp(RAMP_REACH))
_SPAN = 1.0 - 2.0 * _TAIL


def check_clipping(sharpness: float, ramp: str, quantile: str, form: str) -> None:
    """Refuse an unknown option by its name.

    Raises:
        ValueError: with the offending value.
    """
    if not (sharpness >= 0 and math.isfinite(sharpness)):
        raise ValueError(f"sharpness must be finite and at least 0, got {sharpness}")
    for name, value, known in (("ramp", ramp, RAMPS), ("quantile", quantile, QUANTILES), ("form", form, FORMS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def ramp_value(x: Tensor, kind: str) -> Tensor:
    """The ramp from 0 to 1 around x = 0: a sigmoid, or a sigmoid whose tails beyond +-4 are cut."""
    value = torch.sigmoid(x)
    if kind == "clipped":
        value = ((value - _TAIL) / _SPAN).clamp(0.0, 1.0)
    return value


def ramp_value_(x: Tensor, kind: str) -> Tensor:
    """`ramp_value` in place, without gradient tracking."""
    x.sigmoid_()
    return x.sub_(_TAIL).div_(_SPAN).clamp_(0.0, 1.0) if kind == "clipped" else x


def ramp_slope(value: Tensor, kind: str) -> Tensor:
    """Derivative of the ramp, from its value: 0 where the clipped ramp is flat."""
    product = torch.addcmul(value, value, value, value=-1.0)
    if kind == "sigmoid":
        return product
    # the sigmoid is value * span + tail; ceil(product) is 1 between the flat ends and 0 on them
    between = product.ceil()
    return product.mul_(_SPAN).add_(between, alpha=_TAIL * (1.0 - _TAIL) / _SPAN)


def clip_mask(c: Tensor, lower: Tensor, upper: Tensor, sharpness: float, ramp: str) -> Tensor:
    """m = ramp((c - lower) / s) * ramp((upper - c) / s); for s = 0 the hard mask lower <= c < upper.

    `lower` and `upper` broadcast against `c`; the soft mask is differentiable in both.
    """
    if sharpness == 0.0:
        return ((c >= lower) & (c < upper)).to(c.dtype)
    return ramp_value((c - lower) / sharpness, ramp) * ramp_value((upper - c) / sharpness, ramp)


def ranked_quantile(log_probs_RK: Tensor, quantile: str, width: int) -> Tensor:
    """Quantiles of the K largest classes, given in descending order. `width` is V."""
    if quantile == "rank":
        ranks = torch.arange(log_probs_RK.shape[-1], device=log_probs_RK.device, dtype=torch.float64)
        # in float64 first: rank / V then rounds exactly as a bound k / V that came as a Python float
        return (ranks / width).to(log_probs_RK.dtype).expand_as(log_probs_RK)
    # shifted by one, not cumsum - p: that would cancel for the top class
    before = torch.zeros_like(log_probs_RK)
    torch.cumsum(log_probs_RK[..., :-1].exp(), dim=-1, out=before[..., 1:])
    return before


def sort_classes(log_probs_RV: Tensor) -> tuple[Tensor, Tensor]:
    """All classes of every row, descending, ties by smaller id: log-probabilities and ids.

    >>> sort_classes(torch.tensor([[0.0, 2.0, 1.0, 2.0]]))[1]
    tensor([[1, 3, 2, 0]])
    """
    log_probs_RV = log_probs_RV.detach()
    if log_probs_RV.device.type != "cpu" or log_probs_RV.numel() == 0:
        return log_probs_RV.sort(dim=-1, descending=True, stable=True)
    # numpy's sort is several times quicker than torch's on a CPU, but not stable: rows with ties are done again
    ids = _by_numpy(lambda rows: np.argsort(-rows, axis=-1), log_probs_RV)
    values = log_probs_RV.gather(-1, ids)
    if values.shape[-1] > 1:
        tied = (~((values[:, :-1] - values[:, 1:]).amin(dim=-1) > 0)).nonzero().squeeze(1)
        if tied.numel():
            values[tied], ids[tied] = log_probs_RV[tied].sort(dim=-1, descending=True, stable=True)
    return values, ids


def _by_numpy(function: Callable[[np.ndarray], np.ndarray], tensor_RK: Tensor) -> Tensor:
    """A row-wise function of numpy on a tensor of the CPU, with as many threads as torch uses.

    numpy works on one thread and lets go of the interpreter's lock meanwhile.
    """
    array = tensor_RK.numpy()
    parts = min(torch.get_num_threads(), array.size // PARALLEL_ELEMENTS)
    if parts <= 1:
        return torch.from_numpy(function(array))
    with ThreadPoolExecutor(parts) as pool:
        return torch.from_numpy(np.concatenate(list(pool.map(function, np.array_split(array, parts)))))


def _largest(log_probs_RV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Ids `[R, k]` of the k largest classes, ascending, and the (k + 1)-th largest value `[R]`; k < V."""
    if log_probs_RV.device.type != "cpu":
        ids = log_probs_RV.topk(k + 1, dim=-1).indices
        return ids[:, :k].sort(dim=-1).values, log_probs_RV.gather(1, ids[:, k:]).squeeze(1)

    def largest(rows: np.ndarray) -> np.ndarray:
        # of the negative: numpy finds a place near the front of a row sooner
        ids = np.argpartition(-rows, k, axis=-1)[:, : k + 1].copy()
        ids[:, :k].sort(axis=-1)
        return ids

    ids = _by_numpy(largest, log_probs_RV)
    return ids[:, :k], log_probs_RV.gather(1, ids[:, k:]).squeeze(1)


def top_classes(log_probs_RV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most probable classes of every row: log-probabilities and ids, descending, ties by smaller id.

    Exact also where the k-th class ties with the next one; such rows take a full sort.

    >>> top_classes(torch.tensor([[0.0, 2.0, 1.0, 2.0]]), 3)[1]
    tensor([[1, 3, 2]])
    """
    log_probs_RV = log_probs_RV.detach()
    width = log_probs_RV.shape[-1]
    k = min(k, width)
    if k == width or width <= SORT_WIDTH:
        values, ids = sort_classes(log_probs_RV)
        return values[:, :k], ids[:, :k]
    # by id first: equal values then come out by id
    ids, following = _largest(log_probs_RV, k)
    values, order = sort_classes(log_probs_RV.gather(1, ids))
    ids = ids.gather(1, order)
    tied = (~(values[:, -1] > following)).nonzero().squeeze(1)
    if tied.numel():
        values[tied], ids[tied] = _break_ties(log_probs_RV[tied], values[tied], ids[tied])
    return values, ids


def _break_ties(log_probs_RV: Tensor, values_RK: Tensor, ids_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Among the classes that equal the last selected one, take those of the smallest ids."""
    last_R1 = values_RK[:, -1:]
    if bool(torch.isnan(last_R1).any()):
        values, ids = sort_classes(log_probs_RV)
        return values[:, : ids_RK.shape[1]], ids[:, : ids_RK.shape[1]]
    ids_RK = ids_RK.clone()
    for row, equal in enumerate(log_probs_RV == last_R1):
        places = (values_RK[row] == last_R1[row]).nonzero().squeeze(1)
        ids_RK[row, places] = equal.nonzero().squeeze(1)[: len(places)]
    return values_RK, ids_RK


def class_quantiles(log_probs_RV: Tensor, ids_RV: Tensor, quantile: str) -> Tensor:
    """Quantile c of every class in the order of the ids, from the full ranking `sort_classes` gives."""
    ranked = ranked_quantile(log_probs_RV, quantile, log_probs_RV.shape[-1])
    return torch.empty_like(log_probs_RV).scatter_(-1, ids_RV, ranked)


def entropy(log_probs_RV: Tensor, probs_RV: Tensor) -> Tensor:
    """Entropy of every row in nats; classes of probability 0 contribute 0."""
    value = (probs_RV * log_probs_RV).sum(dim=-1)
    if bool(torch.isnan(value).any()):
        # 0 * -inf
        lowest = torch.finfo(log_probs_RV.dtype).min
        value = (probs_RV * log_probs_RV.clamp_min(lowest)).sum(dim=-1)
    return -value


class PairSummary(NamedTuple):
    """What a clip network is told about one token: `[R, F]`, `[R, F]`, `[R]`, `[R]`.

    The F largest teacher log-probabilities (F = V where the vocabulary is smaller), the student's of the same
    classes, and both entropies.
    """

    teacher_log_probs: Tensor
    student_log_probs: Tensor
    teacher_entropy: Tensor
    student_entropy: Tensor


def summarise(teacher_log_probs_RV: Tensor, student_log_probs_RV: Tensor, features: int) -> PairSummary:
    """The `PairSummary` of log-probabilities, ranked with a selection of its own."""
    values, ids = top_classes(teacher_log_probs_RV, features)
    return PairSummary(
        values,
        student_log_probs_RV.gather(1, ids),
        entropy(teacher_log_probs_RV, teacher_log_probs_RV.exp()),
        entropy(student_log_probs_RV, student_log_probs_RV.exp()),
    )
