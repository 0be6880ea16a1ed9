"""Both models' rows of a tile as Triton's kernels see them: `rows` on a GPU, in float32.

Neither model's probabilities are kept (`mgsr.losses.row_kernels`), and nothing is looked at on the way.

Shapes: R rows, the halo among them; V classes; r rows of the tile's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mgsr.losses.fused.logit_gradient import LogitGradient
from mgsr.losses.fused.workspace import Softmax


class RowPair:
    """Teacher and student of the same rows, see `rows.RowPair`."""

    def __init__(
        self,
        teacher_RV: Tensor,
        student_RV: Tensor,
        ranking: tuple[Tensor, Tensor],
        is_pair: Tensor,
        scale: float | None,
    ) -> None:
        from mgsr.losses.row_kernels import softmax_sums

        # the largest logits come along, though the ranking knows the teacher's
        self.teacher = teacher = Softmax(teacher_RV, None, *softmax_sums(teacher_RV))
        self.student = student = Softmax(student_RV, None, *softmax_sums(student_RV))
        self._models = *teacher[:1], *teacher[2:4], *student[:1], *student[2:4]
        rows = len(student_RV)
        self._wanted = scale is not None
        self._factor = student_RV.new_zeros(rows)
        if rows > 1:
            pairs = is_pair[: rows - 1]
            self._factor[: len(pairs)] = pairs * (-2.0 * (1.0 if scale is None else scale))
        self._span: tuple[Tensor, Tensor] | None = None

    def outside(self, last: Tensor, apart: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both models' mass of all classes outside the most probable ones, `[r]`, and in one pass the span's sums.

        Args:
            last, apart: `[r]`, see `rows.RowPair.outside`.
            rows: None, as all of the tile's own rows come at once.
        """
        from mgsr.losses.row_kernels import row_sums

        assert rows is None, "the kernels take all of a tile's rows"
        bounds = self._bounds()
        bounds[0, : len(last)], bounds[1, : len(last)] = last, apart
        teacher, student, squares, products = row_sums(self._models, self._factor, bounds[0], bounds[1])
        self._span = squares, products
        return teacher[: len(last)], student[: len(last)]

    def _bounds(self) -> Tensor:
        """`last` and `apart` of rows whose classes are all inside, `[2, R]`."""
        return torch.full((2, len(self._factor)), -1, dtype=torch.int64, device=self._factor.device)

    def span(self) -> Tensor:
        """Sum over the pairs; its gradient is part of `add_up`, where it is wanted."""
        if self._span is None:
            bounds = self._bounds()
            self.outside(bounds[0], bounds[1], None)
        assert self._span is not None
        return self._span[0].sum()

    def add_up(self, token: LogitGradient, labels: Tensor, factor: Tensor, out: Tensor) -> Tensor | None:
        """See `rows.RowPair.add_up`."""
        from mgsr.losses.row_kernels import row_gradient

        count = len(out)
        scales, bounds, chosen = out.new_zeros(2, len(self._factor)), self._bounds(), None
        scales[:, :count] = token.q_scale
        for part in token.parts:
            if part.edge is not None and part.ids is not None:
                scales[0, :count], chosen = part.edge.q_scale, (part.ids.contiguous(), part.values)
                bounds[0, :count], bounds[1, :count] = part.edge.last, part.edge.apart
        if not self._wanted:
            self._factor.zero_()
        elif self._span is not None:
            shared = self._factor * self._span[1]
            scales -= shared
            scales[:, 1:] -= shared[:-1]
        halo = row_gradient(self._models, self._factor, scales, bounds, labels, factor, out, chosen)
        for part in token.parts:
            if part.ids is None:
                part.add_to(out)
        return halo
