"""What is alive between the stages of a run: optimisers and their state, modules, gradients, sharded weights."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from torch.distributed.tensor import DTensor

import mgsr.training.build
import mgsr.training.module
import mgsr.training.sft
import mgsr.training.train
from mgsr.training.placement import Placement

KINDS = {
    "modules": L.LightningModule,
    "trainers": L.Trainer,
    "data modules": L.LightningDataModule,
    "optimisers": torch.optim.Optimizer,
    "placements": Placement,
    "sharded weights": DTensor,
}


class Watch:
    """Looks when the student's fine-tuning, the main job and the test sets begin.

    Attributes:
        seen: when -> how many of what were alive.
        trained: numbers of the optimiser's state that there have been in all; rows: cached rows of the teacher.
    """

    def __init__(self) -> None:
        self.seen: dict[str, dict[str, int]] = {}
        self._states: dict[int, weakref.ref[torch.Tensor]] = {}
        self._rows: list[weakref.ref[torch.Tensor]] = []

    @property
    def trained(self) -> int:
        return len(self._states)

    @property
    def rows(self) -> int:
        return len(self._rows)

    def install(self, replace: Callable[[Any, str, Any], None]) -> None:
        """Args: replace: as `setattr`. Circles that nobody collects stay: Python's own collector should be off."""
        building, caching = mgsr.training.module.build_optimizer, mgsr.training.build.cached_teacher

        def build_optimizer(*args: Any, **kwargs: Any) -> Any:
            optimizer, scheduler = building(*args, **kwargs)
            optimizer.register_step_post_hook(lambda own, *_: self._note(own))
            return optimizer, scheduler

        def cached_teacher(*args: Any, **kwargs: Any) -> Any:
            tops, report = caching(*args, **kwargs)
            self._rows += [weakref.ref(tensor) for top in tops.values() for tensor in top]
            return tops, report

        replace(mgsr.training.module, "build_optimizer", build_optimizer)
        replace(mgsr.training.build, "cached_teacher", cached_teacher)
        for place, name, when in (
            (mgsr.training.sft, "prepare_student", "before the student"),
            (mgsr.training.train, "build_job", "before the main job"),
            (mgsr.training.train, "evaluate_tests", "before the test sets"),
        ):
            replace(place, name, self._looking(getattr(place, name), when))

    def _note(self, optimizer: torch.optim.Optimizer) -> None:
        tensors = (value for state in optimizer.state.values() for value in state.values())
        self._states.update({id(tensor): weakref.ref(tensor) for tensor in tensors if torch.is_tensor(tensor)})

    def _looking(self, function: Callable[..., Any], when: str) -> Callable[..., Any]:
        def look_first(*args: Any, **kwargs: Any) -> Any:
            self.seen[when] = self._alive()
            return function(*args, **kwargs)

        return look_first

    def _alive(self) -> dict[str, int]:
        # by type: an instance check asks proxies what they stand for
        types = [type(one) for one in gc.get_objects()]
        found = {name: sum(issubclass(own, kind) for own in types) for name, kind in KINDS.items()}
        parameters = [one for one in gc.get_objects() if issubclass(type(one), torch.nn.Parameter)]
        found["gradients"] = sum(parameter.grad is not None for parameter in parameters)
        found["states"] = _living(self._states.values())
        found["cached rows"] = _living(self._rows)
        return {name: count for name, count in found.items() if count}


def _living(references: Iterable[weakref.ref[torch.Tensor]]) -> int:
    return sum(reference() is not None for reference in references)
