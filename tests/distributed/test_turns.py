"""A teacher in CPU memory and the student take turns on a device."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from mgsr.generation import HiddenLogits
from mgsr.models.output_layer import OutputLayer
from mgsr.training.placement import Placement


class Model(torch.nn.Module):
    """Knows where it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.there = "cpu"

    def to(self, device: object) -> Model:  # type: ignore[override]
        self.there = str(device)
        return self


def test_a_teacher_in_cpu_memory_and_the_student_take_turns_on_the_device(monkeypatch) -> None:
    monkeypatch.setattr("mgsr.training.placement.move", lambda model, device: model.to(device))
    # what lay in host memory comes back as it was
    rests = lambda model: SimpleNamespace(restore=lambda: model.to("cpu"))  # noqa: E731
    monkeypatch.setattr("mgsr.training.placement.Rest", rests)
    student, teacher, device = Model(), Model(), torch.device("meta")
    pair = Placement(student, teacher, "cpu")
    calls: list[tuple[str, str, str]] = []

    class Writer:
        def __init__(self, name: str, model: Model) -> None:
            self.name, self.model, self.batch_size = name, model, 3

        def write(self) -> list[list[int]]:
            calls.append((self.name, student.there, teacher.there))
            return []

        def score(self) -> HiddenLogits:
            calls.append((self.name, student.there, teacher.there))
            return HiddenLogits(torch.ones(1, 2), OutputLayer(torch.nn.Parameter(torch.ones(3, 2))), 2)

    own, other = (pair.in_turn(Writer(n, m), device) for n, m in (("student", student), ("teacher", teacher)))
    with pair.writing(device, together=False):
        own.write()
        scores = other.score()
        own.write()
    assert calls == [("student", "meta", "cpu"), ("teacher", "cpu", "meta"), ("student", "meta", "cpu")]
    assert (student.there, teacher.there) == ("meta", "cpu") and own.batch_size == 3
    # readable when the teacher has left
    assert scores[0:1].tolist() == [[2.0, 2.0]] and not scores.head.weight.requires_grad
    assert Placement(student, teacher).in_turn(own, device) is own
