"""What a tile is worked on with: memory that is used again, chosen classes, softmaxes, records of its terms.

On a CPU a fresh buffer of a few megabytes costs more than the arithmetic that fills it: the kernel hands it out
page by page, zeroed, and takes it back when it is freed. Every pass over `[R, V]` counts there as well, so no
log-probabilities of a whole tile are kept.

Shapes: R rows, V classes, r chosen rows, K chosen classes of each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mgsr.losses.clip_bounds import PairSummary
from mgsr.losses.ranking import top_classes

RARE = 1e-8
"""A probability that log-probabilities are not measured from."""


class Workspace:
    """Named buffers of one dtype on one device. What `take` returned is valid until the name is taken again.

    >>> room = Workspace(torch.device("cpu"), torch.float32)
    >>> first = room.take("logits", 2, 5).fill_(1.0)
    >>> second = room.take("logits", 2, 3)
    >>> first.data_ptr() == second.data_ptr(), tuple(second.shape)
    (True, (2, 3))
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, width: int) -> Tensor:
        """An uninitialised, contiguous `[rows, width]`; grows what the name holds where that is too small."""
        size = rows * width
        held = self._held.get(name)
        if held is None or held.numel() < size:
            # Each growth leaves a hole in the heap. So there is room for a halo row from the start, and whoever
            # needs more again gets plenty; the old buffer goes first.
            size = size + width if held is None else max(size, 2 * held.numel())
            self._held.pop(name, None)
            held = self._held[name] = torch.empty(size, device=self.device, dtype=self.dtype)
        return held[: rows * width].view(rows, width)

    def rows_of(self, name: str, source_RV: Tensor, rows: Tensor) -> Tensor:
        """A copy of some rows."""
        return torch.index_select(source_RV, 0, rows, out=self.take(name, rows.numel(), source_RV.shape[1]))


def places_of(rows_r: Tensor | None, ids_rK: Tensor, width: int) -> Tensor:
    """Flat positions `[r, K]` in a contiguous `[R, width]`. rows None: the first r."""
    if rows_r is None:
        rows_r = torch.arange(ids_rK.shape[0], device=ids_rK.device)
    return ids_rK + (rows_r * width).unsqueeze(1)


def gather_classes(values_RV: Tensor, rows_r: Tensor | None, ids_rK: Tensor) -> Tensor:
    """A copy `[r, K]` of the entries.

    >>> gather_classes(torch.arange(6).view(2, 3), torch.tensor([1]), torch.tensor([[2, 0]]))
    tensor([[5, 3]])
    """
    if rows_r is None:
        return values_RV[: ids_rK.shape[0]].gather(1, ids_rK)
    return torch.take(values_RV, places_of(rows_r, ids_rK, values_RV.shape[1]))


def scatter_classes(target_RV: Tensor, rows_r: Tensor | None, ids_rK: Tensor, values_rK: Tensor) -> None:
    """Write the entries of a contiguous tensor; the classes of a row must differ.

    >>> target = torch.zeros(2, 3)
    >>> scatter_classes(target, None, torch.tensor([[2, 0]]), torch.tensor([[7.0, 8.0]]))
    >>> target
    tensor([[8., 0., 7.],
            [0., 0., 0.]])
    """
    target_RV.put_(places_of(rows_r, ids_rK, target_RV.shape[1]), values_rK)


class Softmax(NamedTuple):
    """Logits over the temperature and their softmax, `[R, V]`; one class's logit and log-probability, `[R]`.

    log p_k = (z_k - base) + log_base: the difference first, so that large logits lose nothing.
    """

    logits: Tensor
    probs: Tensor
    base: Tensor
    log_base: Tensor

    @staticmethod
    def of(logits_RV: Tensor, probable_R1: Tensor | None = None, *, out: Tensor | None = None) -> Softmax:
        """Of logits over the temperature.

        Args:
            probable_R1: a class of every row that is likely not to be rare; saves looking for the largest.
            out: takes the probabilities.
        """
        probs_RV = torch.softmax(logits_RV, dim=-1, out=out)
        if probable_R1 is not None:
            base, prob = (tensor.gather(1, probable_R1).squeeze(1) for tensor in (logits_RV, probs_RV))
            # further down the difference of logits, and below the smallest normal number p itself, round away
            rare = (~(prob > RARE)).nonzero().squeeze(1)
            for values, own in ((logits_RV, base), (probs_RV, prob)):
                if rare.numel():
                    own[rare] = values[rare].amax(dim=-1)
            return Softmax(logits_RV, probs_RV, base, prob.log())
        if logits_RV.numel() == 0:
            empty_R = logits_RV.new_zeros(logits_RV.shape[0])
            return Softmax(logits_RV, probs_RV, empty_R, empty_R)
        return Softmax(logits_RV, probs_RV, logits_RV.amax(dim=-1), probs_RV.amax(dim=-1).log())

    def first(self, count: int) -> Softmax:
        """The first `count` rows."""
        return Softmax(*(tensor[:count] for tensor in self))

    def rows(self, rows: Tensor | None) -> Softmax:
        """Some rows, copied; None: all of them, as they are."""
        return self if rows is None else Softmax(*(tensor[rows] for tensor in self))

    def log_probs(self, ids_RK: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """Log-probabilities of some classes (None: all) of some rows (None: all)."""
        logits, base, log_base = self.logits, self.base, self.log_base
        if rows is not None:
            base, log_base = base[rows], log_base[rows]
        if ids_RK is not None:
            logits = gather_classes(logits, rows, ids_RK)
        elif rows is not None:
            logits = logits[rows]
        return (logits - base.unsqueeze(1)).add_(log_base.unsqueeze(1))

    def entropy(self) -> Tensor:
        """Entropy of every row in nats; classes of probability 0 contribute 0."""
        shifted = self.logits - self.base.unsqueeze(1)
        expected = torch.linalg.vecdot(self.probs, shifted)
        if bool(torch.isnan(expected).any()):
            # 0 * -inf
            lowest = torch.finfo(shifted.dtype).min
            expected = torch.linalg.vecdot(self.probs, shifted.clamp_min_(lowest))
        return -(expected + self.log_base)


class Ranking(NamedTuple):
    """The K most probable classes of every row, descending: log-probabilities and ids `[R, K]`."""

    values: Tensor
    ids: Tensor


class Tile(NamedTuple):
    """One tile's rows as both models see them, and memory to work in.

    Attributes:
        teacher, student: of the tile's own rows, at the temperature.
        plain: the student at temperature 1, where cross-entropy always is.
        labels: `[R]`.
        log_p, log_q: `[R]`, of the labels at temperature 1; `log_p` where it was asked for.
        ranking: the teacher's most probable classes, where they were asked for.
        summary: what a clip network is told of them, likewise.
        p, q: `[R + halo, V]`, teacher and student of a halo row too.
    """

    teacher: Softmax
    student: Softmax
    plain: Softmax
    labels: Tensor
    log_p: Tensor | None
    log_q: Tensor
    ranking: Ranking | None
    summary: PairSummary | None
    p: Tensor
    q: Tensor
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
    ) -> Tile:
        """Of logits `[R + halo, V]`; without a teacher the student stands in its place.

        Args:
            depth: how many of the teacher's classes are ranked (all of a small vocabulary); 0: none.
            features: classes in the summary; 0: there is none.
            collect: whether `log_p` is wanted.
        """
        count, column, best = labels.numel(), labels.unsqueeze(1), None
        taught, own = teacher_logits, student_logits
        if temperature != 1.0:
            taught, own = None if taught is None else taught / temperature, own / temperature
        if depth and taught is not None:
            # all rows, the halo too: its most probable class is then known
            ids = top_classes(taught, depth)[1]
            best = ids[:, :1]
        student = Softmax.of(own, best, out=room.take("student probabilities", *own.shape))
        teacher = student
        if taught is not None:
            teacher = Softmax.of(taught, best, out=room.take("teacher probabilities", *taught.shape))
        p, q = teacher.probs, student.probs
        teacher, student = teacher.first(count), student.first(count)
        plain = student if temperature == 1.0 else Softmax.of(student_logits, best).first(count)
        log_p = None
        if collect and teacher_logits is not None:
            whole = teacher if temperature == 1.0 else Softmax.of(teacher_logits[:count])
            log_p = whole.log_probs(column).squeeze(1)
        log_q = plain.log_probs(column).squeeze(1)
        ranking = summary = None
        if best is not None:
            ranking = Ranking(teacher.log_probs(ids[:count]), ids[:count])
            if features:
                told = student.log_probs(ids[:count, :features])
                summary = PairSummary(ranking.values[:, :features], told, teacher.entropy(), student.entropy())
        return Tile(teacher, student, plain, labels, log_p, log_q, ranking, summary, p, q, room)


class Part(NamedTuple):
    """Of a - q * sum(a) what is no multiple of q in a whole row.

    Without `ids` the `values [r, V]` are added to `rows` (None: to all). With `ids [r, K]` the `values [r, K]` are
    what a - q * sum(a) is for these classes, and replace what stands there.
    """

    rows: Tensor | None
    ids: Tensor | None
    values: Tensor


class LogitGradient(NamedTuple):
    """A term's gradient to the logits over the temperature: q * `q_scale [R]`, then the parts, in their order."""

    q_scale: Tensor
    parts: list[Part]


class TokenTerm(NamedTuple):
    """The token-level divergence of a tile: `loss [R]`, its scaled gradient, and of DAC-KL what else was seen.

    `clipped [R]` is the mass of the rest bin. `bounds`: lower and upper `[R]`, with their graph. `bounds_grad
    [4, R]`: dloss / dlower, dloss / dupper, dclipped / dlower, dclipped / dupper. `limits [2, R]`: the clipped
    mass at two other pairs of bounds.
    """

    loss: Tensor
    gradient: LogitGradient
    clipped: Tensor
    bounds: tuple[Tensor, Tensor] | None = None
    bounds_grad: Tensor | None = None
    limits: Tensor | None = None


def add_up(q: Tensor, token: LogitGradient, span: LogitGradient | None, out: Tensor) -> Tensor | None:
    """Both terms' gradient to the logits over the temperature: the tile's rows to `out [R, V]`, a halo row's back.

    Args:
        q: of the tile's rows, and of the halo row behind them where there is one; it may lie in `out`.
        token: of the tile's rows.
        span: of all rows of `q`, with one part `[R + halo, V]`; the halo has this gradient alone.
    """
    scale, parts, count = token.q_scale, token.parts, out.shape[0]
    halo = None
    if span is None:
        torch.mul(q[:count], scale.unsqueeze(1), out=out)
    else:
        direction = span.parts[0].values
        # before `q` may be overwritten: a part that replaces must keep the span's share
        parts = [_with_span(part, q, direction, span.q_scale) for part in parts]
        torch.addcmul(direction[:count], q[:count], (scale + span.q_scale[:count]).unsqueeze(1), out=out)
        if q.shape[0] > count:
            halo = torch.addcmul(direction[count:], q[count:], span.q_scale[count:].unsqueeze(1))
    for rows, ids, values in parts:
        if ids is not None:
            scatter_classes(out, rows, ids, values)
        elif rows is None:
            out += values
        else:
            out.index_add_(0, rows, values)
    return halo


def _with_span(part: Part, q: Tensor, direction: Tensor, q_scale: Tensor) -> Part:
    """The part with the span's a - q * sum(a) added; one that is added to whole rows leaves it there anyway."""
    rows, ids, values = part
    if ids is None:
        return part
    scale = q_scale[: ids.shape[0]] if rows is None else q_scale[rows]
    span = gather_classes(direction, rows, ids).addcmul_(gather_classes(q, rows, ids), scale.unsqueeze(1))
    return Part(rows, ids, span.add_(values))
