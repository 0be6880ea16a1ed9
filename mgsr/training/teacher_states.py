"""Scoring as a phase of its own: the teacher reads an epoch's text before the epoch, then leaves the device.

What is kept are its last hidden states of the response positions, exact, in a file that is mapped into memory:
width x bytes per number for every response token. Training then needs the teacher's output layer alone.

Shapes: T response tokens of a text, H the teacher's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgsr.data.collate import TextKey, TrainingSequence
from mgsr.models.output_layer import output_head
from mgsr.training.placement import Placement

Score = Callable[[Sequence[TrainingSequence], Path], "TeacherStates"]


class TeacherStates(Mapping[TextKey, Tensor]):
    """Text -> the teacher's states `[T, H]` that predict its response tokens.

    Args:
        path: of the file. Its name goes at once, its content with the last reader, so that nothing is left over.
        rows: the texts it will hold; each once, however often it is trained on.
    """

    def __init__(self, path: Path, rows: Sequence[TrainingSequence], width: int, dtype: torch.dtype) -> None:
        self._places: dict[TextKey, tuple[int, int]] = {}
        tokens = 0
        for row in rows:
            if row.key not in self._places:
                self._places[row.key] = (tokens, len(row.response_ids))
                tokens += len(row.response_ids)
        if not tokens:
            self._states = torch.empty(0, width, dtype=dtype)
            return
        path.unlink(missing_ok=True)
        numbers = torch.from_file(str(path), shared=True, size=tokens * width, dtype=dtype)
        path.unlink()
        self._states = numbers.view(tokens, width)

    def __setitem__(self, key: TextKey, states: Tensor) -> None:
        start, count = self._places[key]
        self._states[start : start + count] = states

    def __getitem__(self, key: TextKey) -> Tensor:
        start, count = self._places[key]
        return self._states[start : start + count]

    def __iter__(self) -> Iterator[TextKey]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def build_score(
    placement: Placement,
    read: Callable[[Any, Sequence[TrainingSequence]], Iterator[Tensor]],
    device: torch.device,
) -> Score:
    """Scores texts with the teacher, which is on `device` for as long as that takes and the student is not.

    Args:
        read: (teacher, texts) -> the states `[T, H]` of every text.
    """

    def score(rows: Sequence[TrainingSequence], path: Path) -> TeacherStates:
        weight = output_head(placement.teacher).weight
        states = TeacherStates(path, rows, weight.shape[1], weight.dtype)
        different = sorted({row.key: row for row in rows}.values(), key=len)
        with placement.scoring(device):
            for row, found in zip(different, read(placement.teacher, different), strict=True):
                states[row.key] = found.cpu()
        return states

    return score
