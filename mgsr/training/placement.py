"""Where teacher and student are, and how their hidden states are read there.

They move: for training, while text is written, for the dev set, and at the end.

Shapes: B sequences, L tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from mgsr.data.collate import Batch, UncachedRows
from mgsr.losses.projection import HiddenLogits
from mgsr.models.output_layer import OutputLayer, last_hidden, output_head
from mgsr.runtime.devices import Rest, move, placed, settle, working_type
from mgsr.training.fsdp import WholeCopy, is_sharded, phase_of, shard_student, shard_teacher, working


class Placement:
    """The two models of a stage, wherever they are.

    Args:
        student: trained; whole, or in parts after `shard`.
        teacher: frozen, or None. Held here and not in the module tree, so that it is neither checkpointed nor
            optimised.
        placement: of the teacher, see `teacher.placement`.
        compile: compile the forwards of training. Writing and the dev set keep the plain forward: their shapes
            change with every token.
        dtype: what the student computes in, see `computing_dtype`. The teacher always computes in its own type.

    Attributes:
        acting: what writes text and is looked at: the student, or within `whole` a copy of it, where it is sharded
            or its weights are wider than what it computes in.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        placement: str = "replicated",
        *,
        compile: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.student, self.teacher, self.placement, self.dtype = student, teacher, placement, dtype
        self.compiled = compile
        self._read: Callable[..., Tensor] = torch.compile(last_hidden, dynamic=True) if compile else last_hidden
        self.acting = student
        self._copy: WholeCopy | None = None
        self._head: OutputLayer | None = None
        # where a teacher in host memory lies on this node: it comes back there without a copy
        self._rest = Rest(teacher) if self.alternates else None

    @property
    def sharded(self) -> bool:
        return self._copy is not None

    def shard(self, root: nn.Module, mesh: DeviceMesh | None, forward: str) -> None:
        """Shard the student, and the teacher where that is its placement; a second call changes nothing.

        Args:
            mesh: None leaves both whole. In parts or not, the student's weights have their own type from here on.
        """
        if self.sharded or mesh is None:
            settle(self.student)
            return
        self._copy = WholeCopy(self.student)
        shard_student(root, self.student, mesh, forward, self.dtype)
        # only now: each rank casts its own part
        settle(self.student)
        if self.teacher is not None and self.placement == "sharded" and not is_sharded(self.teacher):
            shard_teacher(self.teacher, mesh)

    def to_device(self, device: torch.device) -> None:
        """Before training: the teacher to its device, or its output layer alone."""
        if self.teacher is None:
            return
        self.teacher.eval().requires_grad_(False)
        if self.placement == "cpu":
            head, kind = output_head(self.teacher).to(device), working_type(self.teacher)
            bias = None if head.bias is None else head.bias.to(kind)
            self._head = replace(head, weight=head.weight.to(kind), bias=bias)
        else:
            move(self.teacher, device)

    def student_states(self, batch: Batch, *, plain: bool = False) -> tuple[Tensor, OutputLayer]:
        """The student's last hidden states `[B, L, H]`, and its output layer.

        Args:
            plain: never compiled; of the student as one piece, within `whole`.
        """
        model, read = (self.acting, last_hidden) if plain else (self.student, self._read)
        with nullcontext() if model is self.student else _own_type(batch):
            return read(model, batch.input_ids), output_head(model)

    def teacher_states(self, batch: Batch) -> tuple[Tensor, OutputLayer]:
        """The teacher's last hidden states `[B, L, H]`, and its output layer.

        The states are 0 for sequences whose teacher distributions are cached.
        """
        if self._head is not None:
            # read in a phase of its own
            states = batch.teacher_states
            shape = (*batch.input_ids.shape, self._head.weight.shape[1])
            return (self._head.weight.new_zeros(shape) if states is None else states), self._head
        head = output_head(self.teacher)
        # no_grad and not inference_mode: backward refuses inference tensors
        with torch.no_grad(), _own_type(batch):
            if batch.uncached is None:
                return self._read(self.teacher, batch.input_ids), head
            return self._uncached_states(batch, batch.uncached, head), head

    def _uncached_states(self, batch: Batch, uncached: UncachedRows, head: OutputLayer) -> Tensor:
        size, length = batch.input_ids.shape
        unread, width, _ = uncached
        if not width:
            return head.weight.new_zeros(size, length, head.weight.shape[1])
        some = self._read(self.teacher, batch.input_ids[unread, :width])
        states = some.new_zeros(size, length, some.shape[-1])
        states[unread, :width] = some
        return states

    @contextmanager
    def whole(self) -> Iterator[Any]:
        """The student as one piece that computes in `dtype`, `acting`; every rank has to open this."""
        with ExitStack() as stack:
            if self._copy is None:
                self.acting = stack.enter_context(working(self.student, self.dtype))
            else:
                stack.callback(self._copy.empty)
                self.acting = self._copy.fill(self.student, self.dtype)
            try:
                yield self.acting
            finally:
                self.acting = self.student

    @contextmanager
    def scoring(self, device: torch.device) -> Iterator[None]:
        """The teacher on the device, and a whole student off it: one of them at a time."""
        with ExitStack() as stack:
            if not self.sharded and device.type != "cpu":
                stack.enter_context(placed(torch.device("cpu"), self.student))
            stack.enter_context(placed(device, self.teacher))
            yield

    @property
    def alternates(self) -> bool:
        """Whether one model makes room for the other while text is written and scored."""
        return self.teacher is not None and self.placement == "cpu"

    def turn(self, model: Any, device: torch.device) -> None:
        """Put `model` on the device, and the other one of student and teacher off it."""
        if not self.alternates:
            return
        if model is self.acting:
            assert self._rest is not None, "both take turns"
            self._rest.restore()
        else:
            self.acting.to("cpu")
        move(model, device)

    @contextmanager
    def writing(self, device: torch.device, *, together: bool) -> Iterator[None]:
        """Both models ready to write and score, each rank at its own pace; every rank has to open this.

        Args:
            together: both are needed at every token, so that neither can make room for the other.
        """
        with ExitStack() as stack:
            stack.enter_context(self.whole())
            if self.alternates and not self.sharded and self.acting is not self.student:
                # its copy stands in its place
                stack.enter_context(placed(torch.device("cpu"), self.student))
            if self.alternates and together:
                stack.enter_context(placed(device, self.teacher))
            elif self.alternates:
                stack.callback(lambda: self.turn(self.acting, device))
            if self.teacher is not None:
                stack.enter_context(phase_of(self.teacher, device))
            yield

    def in_turn(self, writer: Any, device: torch.device) -> Any:
        """A writer or scorer of one of the two models, which takes its turn before it works."""
        return InTurn(writer, lambda: self.turn(writer.model, device)) if self.alternates else writer

    def last(self, *, on_host: bool = False) -> Any:
        """After training: the student as one plain model, which stays; every rank has to call this.

        Args:
            on_host: of a sharded one, in the first rank's host memory alone.
        """
        if self._copy is not None:
            self.acting = self._copy.fill(self.student, on_host=on_host)
            self._copy = None
        return self.acting


def _own_type(batch: Batch) -> AbstractContextManager[Any]:
    """Without autocast: a model whose weights are what it computes in needs none."""
    return torch.autocast(batch.input_ids.device.type, enabled=False)


class InTurn:
    """A model that writes, continues and scores, and is on the device only while it does.

    What it scores stays readable when it has left: the output layer is held.
    """

    def __init__(self, writer: Any, turn: Callable[[], None]) -> None:
        self._writer, self._turn = writer, turn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def write(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        self._turn()
        return self._writer.write(*args, **kwargs)

    def continue_from(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        self._turn()
        return self._writer.continue_from(*args, **kwargs)

    def take_over(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        self._turn()
        return self._writer.take_over(*args, **kwargs)

    def score(self, *args: Any, **kwargs: Any) -> HiddenLogits:
        self._turn()
        scores = self._writer.score(*args, **kwargs)
        return HiddenLogits(scores.hidden_NH, scores.head.to(scores.hidden_NH.device), scores.vocab_size)
