"""Both models' rows of a tile as compiled loops see them: what `workspace` and `span_correlation` do in passes.

For a CPU in float32, where neither model's probabilities are kept (`mgsr.losses.row_loops`).

Shapes: R rows, the halo among them; V classes; r chosen rows, K chosen classes of each.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgsr.losses.fused import kernel_rows
from mgsr.losses.fused.logit_gradient import LogitGradient, Part
from mgsr.losses.fused.workspace import Softmax
from mgsr.losses.kernel_check import kernels_do
from mgsr.runtime import devices
from mgsr.runtime.threads import in_shares

LEAST_WIDTH = 4096
"""With fewer classes the passes over them are short, and the calls of loops and of operations cost alike."""
COLUMNS = 4096
"""A thread's share of the classes ends at a multiple of this."""


def rows_by(
    device: torch.device, dtype: torch.dtype, width: int, depth: int, norm: str, relation: str
) -> ModuleType | None:
    """What has a `RowPair` that does without probabilities: this, `kernel_rows`, or nothing.

    It knows DAC-KL of ranked classes (`depth`), and the span's closed form.
    """
    if relation != "hadamard" or norm != "l2_squared" or depth == 0 or width < LEAST_WIDTH:
        return None
    if devices.reading_is_free(device):
        return sys.modules[__name__] if dtype == torch.float32 else None
    return kernel_rows if kernels_do(device, dtype) else None


def _loops() -> Any:
    # numba takes half a second to import
    from mgsr.losses import row_loops

    return row_loops


class RowPair:
    """Teacher and student of the same rows: softmaxes without probabilities, with the entropy.

    Args:
        teacher_RV, student_RV: logits over the temperature.
        ranking: values and ids of the teacher's most probable classes, `[R, K]` each.
        is_pair: entry i says that rows i, i + 1 are a pair; may be one shorter than R.
        scale: factor on the span's gradient; None: it isn't wanted.
    """

    def __init__(
        self,
        teacher_RV: Tensor,
        student_RV: Tensor,
        ranking: tuple[Tensor, Tensor],
        is_pair: Tensor,
        scale: float | None,
    ) -> None:
        self._last, sums = ranking[1][:, -1].contiguous(), np.empty((2, 4, len(student_RV)), np.float32)
        sums[0, 0] = ranking[0][:, 0].numpy()
        arrays = teacher_RV.numpy(), student_RV.numpy(), self._last.numpy(), *sums
        in_shares(lambda first, stop: _loops().softmax_sums(first, stop, *arrays), len(student_RV))
        totals, self._scale = torch.from_numpy(sums), scale
        self._outside = totals[:, 3] / totals[:, 1]
        self.teacher, self.student = _softmax(teacher_RV, totals[0]), _softmax(student_RV, totals[1])
        self._pairs = is_pair[: max(len(student_RV) - 1, 0)].numpy()
        self._arrays: list[np.ndarray] = []
        for side in (self.teacher, self.student):
            self._arrays += [side.logits.numpy(), side.base.numpy(), side.log_base.exp().numpy()]
        rows = len(student_RV)
        self._factor = np.zeros(rows, np.float32)
        self._centre = np.zeros(rows, np.float32)

    def outside(self, last: Tensor, apart: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both models' mass of all classes outside the most probable ones, `[r]` each.

        Args:
            last: `[r]`, the last class inside, see `row_loops.masses_outside`.
            apart: `[r]`, one more class inside; -1: none.
            rows: `[r]`, None: the first r.
        """
        chosen = torch.arange(len(last)) if rows is None else rows
        if bool((apart < 0).all()) and torch.equal(self._last[chosen], last):
            # found along with the softmaxes
            found = self._outside[:, chosen]
            return found[0], found[1]
        out = torch.empty(2, len(last))
        arrays = [tensor.contiguous().numpy() for tensor in (chosen, last, apart, out)]
        in_shares(lambda first, stop: _loops().masses_outside(first, stop, *self._arrays, *arrays), len(last))
        return out[0], out[1]

    def span(self) -> Tensor:
        """Sum over the pairs; its gradient is part of `add_up` from here on, where it is wanted."""
        rows, width = self.student.logits.shape
        pairs, scale = self._pairs, self._scale
        if not pairs.any():
            return self.student.logits.new_zeros(())
        self._factor[: len(pairs)][pairs] = -2.0 * (1.0 if scale is None else scale)
        count = torch.get_num_threads()
        sums = np.zeros((count, 2, rows))

        def work(first: int, stop: int) -> None:
            _loops().pair_sums(first, stop, *self._arrays, self._factor, *sums[first * count // width])

        in_shares(work, width, multiple=COLUMNS)
        squares, products = sums.sum(axis=0)
        value = torch.tensor(squares.sum(), dtype=torch.float32)
        if scale is None:
            self._factor[:] = 0.0
            return value
        shared = self._factor * products
        self._centre[:] = shared
        self._centre[1:] += shared[:-1]
        return value

    def add_up(self, token: LogitGradient, labels: Tensor, factor: Tensor, out: Tensor) -> Tensor | None:
        """The token term's and the span's gradient to the logits over the temperature, `factor` less at labels.

        The rows of `out [R, V]` are written, which may be the student's logits; a halo row's comes back.
        """
        rows, width = self.student.logits.shape
        count = len(out)
        scales = torch.zeros(2, rows)
        scales[:, :count] = token.q_scale
        bounds = torch.full((2, rows), -1)
        owner = torch.zeros(count, dtype=torch.int64)
        for place, part in enumerate(token.parts):
            owner[slice(None) if part.rows is None else part.rows] = place
            if part.edge is not None:
                every = slice(0, count) if part.rows is None else part.rows
                scales[0, every] = part.edge.q_scale
                bounds[0, every], bounds[1, every] = part.edge.last, part.edge.apart
        scales -= torch.from_numpy(self._centre)
        halo = torch.empty(rows - count, width)
        array, behind = out.numpy(), halo.numpy() if rows > count else np.empty((1, 0), np.float32)

        def work(first: int, stop: int) -> None:
            arrays = *scales.numpy(), *bounds.numpy(), array, behind[0]
            _loops().row_gradient(first, stop, *self._arrays, self._factor, *arrays)

        in_shares(work, width, multiple=COLUMNS)
        for place, part in enumerate(token.parts):
            if part.ids is not None:
                # of a row that comes again with more classes the later part counts
                stale = (owner if part.rows is None else owner[part.rows]) != place
                part.values.masked_fill_(stale.unsqueeze(1), 0.0)
                _add_to_classes(part, array)
            else:
                part.add_to(out)
        out.scatter_add_(1, labels.unsqueeze(1), -factor.unsqueeze(1))
        return halo if rows > count else None


def _add_to_classes(part: Part, out: np.ndarray) -> None:
    assert part.ids is not None
    chosen = torch.arange(len(part.ids)) if part.rows is None else part.rows
    arrays = chosen.numpy(), part.ids.contiguous().numpy(), part.values.contiguous().numpy(), out
    in_shares(lambda first, stop: _loops().add_to_classes(first, stop, *arrays), len(chosen))


def _softmax(logits_RV: Tensor, sums_4R: Tensor) -> Softmax:
    largest_R, total_R, moment_R, _ = sums_4R
    log_total_R = total_R.log()
    return Softmax(logits_RV, None, largest_R, -log_total_R, log_total_R - moment_R / total_R)
