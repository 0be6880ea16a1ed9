"""What a step waits for a GPU for: nothing per micro-batch, and one look at its numbers before the optimiser."""

from __future__ import annotations

from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mgsr.rounds.store import AFTER, FOLDER_NAME
from mgsr.training.module import DistillationModule
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train
from tests.conftest import Make
from tests.host_reads import HostReads, as_on_a_gpu

RARELY = [f"trainer.{what}_every_n_steps=1000" for what in ("log", "grad_norm", "histogram")]
ARMS: dict[str, tuple[str, ...]] = {
    "mgsr": (),
    "minillm": ("objective.kind=minillm", "objective.w_span=0", "scrg.text=mixed"),
    "teacher_cache": ("objective.teacher_top_k=8",),
    "teacher_on_cpu": ("teacher.placement=cpu",),
}


class Watched:
    """The reads of every micro-batch, and optimiser step of the distillation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.micro_batches: list[list[str]] = []
        self.steps: list[list[str]] = []
        self._reads = HostReads()
        for owner, name, kept in (
            (DistillationModule, "training_step", self.micro_batches),
            (DistillationModule, "on_before_optimizer_step", self.steps),
        ):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name), kept))

    def _counted(self, function: Any, kept: list[list[str]]) -> Any:
        def counted(module: DistillationModule, *args: Any) -> Any:
            if module.teacher is None:
                return function(module, *args)
            self._reads.found = []
            with self._reads:
                result = function(module, *args)
            kept.append(self._reads.found)
            return result

        return counted


@pytest.mark.parametrize("arm", ARMS)
def test_a_micro_batch_reads_nothing_and_a_step_once(
    arm: str, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    as_on_a_gpu(monkeypatch)
    # the price of a clip network that is steered is read after all else, when nothing is waited for
    train(
        make_config(
            "train.max_steps=3",
            "train.micro_batch_size=2",
            "clip.objective=priced",
            "clip.mass_price=1.0",
            *RARELY,
            *ARMS[arm],
        )
    )
    # the norms of the terms are read before the first step; which rows have a cached teacher is read in every call
    looks = ([], ["tolist"]) if arm == "teacher_cache" else ([],)
    assert set(watched.micro_batches[0]) <= {"tolist"} and all(
        reads in looks for reads in watched.micro_batches[1:]
    )
    # the first step is logged
    assert watched.steps[1:] == [["tolist"]] * 2


def test_read_at_once_or_one_by_one_the_numbers_are_the_same(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [
        make_config(f"arm={arm}", "train.max_steps=5", "train.micro_batch_size=2", "clip.objective=priced")
        for arm in ("cpu", "gpu")
    ]
    train(configs[0])
    as_on_a_gpu(monkeypatch)
    train(configs[1])
    curves = []
    for folder in map(run_folder, configs):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        names = [
            name for name in events.Tags()["scalars"] if "second" not in name and not name.startswith("time/")
        ]
        curves.append({name: [(e.step, e.value) for e in events.Scalars(name)] for name in names})
    # where nothing may be looked at the objective sums in another order
    assert curves[0].keys() == curves[1].keys()
    for name, curve in curves[0].items():
        assert curves[1][name] == [(step, pytest.approx(value, rel=1e-4, abs=1e-6)) for step, value in curve], name
    assert {"train/grad_norm_clip", "dac/price", "grad_norm/span"} <= set(curves[0])
    after = [(run_folder(config) / FOLDER_NAME.format(0) / AFTER).read_text() for config in configs]
    assert after[0] == after[1] and after[0]
