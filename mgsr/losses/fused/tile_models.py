"""A tile's rows as both models see them.

Shapes: R rows, V classes, K most probable classes of each. The logits may hold one row more, the halo.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mgsr.losses.clip_bounds import PairSummary
from mgsr.losses.fused.workspace import Ranking, Softmax, Workspace
from mgsr.losses.ranking import top_classes
from mgsr.losses.teacher_topk import StoredRanking


class Tile(NamedTuple):
    """One tile's rows as both models see them, and memory to work in.

    Attributes:
        teacher, student: of the tile's own rows, at the temperature.
        plain: the student at temperature 1, where cross-entropy always is.
        labels: `[R]`.
        log_p, log_q: `[R]`, of the labels at temperature 1; `log_p` where it was asked for.
        ranking: the teacher's most probable classes, where they were asked for.
        stored: which rows of the teacher come from a cache; None: none.
        summary: what a clip network is told of them, likewise.
        p, q: `[R + halo, V]`, teacher and student of a halo row too; None where loops or kernels do without.
        pair: the same rows for those loops or kernels (`rows.RowPair`), or None.
    """

    teacher: Softmax
    student: Softmax
    plain: Softmax
    labels: Tensor
    log_p: Tensor | None
    log_q: Tensor
    ranking: Ranking | None
    stored: StoredRanking | None
    summary: PairSummary | None
    p: Tensor | None
    q: Tensor | None
    pair: Any
    room: Workspace

    @staticmethod
    def of(
        teacher_logits: Tensor | None,
        student_logits: Tensor,
        labels: Tensor,
        room: Workspace,
        *,
        temperature: float,
        depth: int,
        features: int,
        collect: bool,
        rows_by: ModuleType | None = None,
        is_pair: Tensor | None = None,
        span_scale: float | None = None,
        stored: StoredRanking | None = None,
    ) -> Tile:
        """Of logits `[R + halo, V]`; without a teacher the student stands in its place.

        Args:
            depth: how many of the teacher's classes are ranked (all of a small vocabulary); 0: none.
            features: classes in the summary; 0: there is none.
            collect: whether `log_p` is wanted.
            rows_by: what makes `pair`, see `rows.rows_by`; it needs a teacher.
            is_pair, span_scale: what it is told of the span, see `rows.RowPair`.
        """
        count, column, best = labels.numel(), labels.unsqueeze(1), None
        taught, own = teacher_logits, student_logits
        if temperature != 1.0:
            taught, own = None if taught is None else taught / temperature, own / temperature
        if depth and taught is not None:
            # all rows, the halo too: its most probable class is then known
            values, ids = _ranking(taught, depth, stored)
            best = ids[:, :1]
        p = q = pair = None
        if rows_by is not None and taught is not None and best is not None:
            pair = rows_by.RowPair(taught, own, (values, ids), is_pair, span_scale)
            teacher, student = pair.teacher, pair.student
        else:
            student = Softmax.of(own, best, out=room.take("student probabilities", *own.shape))
            teacher, q = student, student.probs
            if taught is not None:
                teacher = Softmax.of(taught, best, out=room.take("teacher probabilities", *taught.shape))
            p = teacher.probs
        teacher, student = teacher.first(count), student.first(count)
        plain = student if temperature == 1.0 else Softmax.of(student_logits, best).first(count)
        log_p = None
        if collect and teacher_logits is not None:
            whole = teacher if temperature == 1.0 else Softmax.of(teacher_logits[:count])
            log_p = whole.log_probs(column).squeeze(1)
        log_q = plain.log_probs(column).squeeze(1)
        ranking = summary = None
        if best is not None:
            ranking = teacher.ranked(values[:count], ids[:count])
            if features:
                told = student.log_probs(ids[:count, :features])
                summary = PairSummary(ranking.values[:, :features], told, teacher.entropy(), student.entropy())
        return Tile(teacher, student, plain, labels, log_p, log_q, ranking, stored, summary, p, q, pair, room)


def _ranking(taught: Tensor, depth: int, stored: StoredRanking | None) -> tuple[Tensor, Tensor]:
    """The most probable classes of all rows, values and ids: at least `depth`, and one more than a cache knows."""
    if stored is None:
        return top_classes(taught, depth)
    depth = min(taught.shape[1], max(depth, stored.ids.shape[1] + 1))
    ids = torch.empty(len(taught), depth, dtype=torch.int64, device=taught.device)
    ids[stored.rows] = stored.ids_to(depth)
    if len(stored.others):
        ids[stored.others] = top_classes(taught, depth, stored.others)[1]
    return taught.gather(1, ids), ids
