"""Every row of an epoch is trained on, however a step is cut into micro-batches and over ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mgsr.training.checkpoint
from mgsr.config.schema import ExperimentConfig
from mgsr.data.collate import StepCounts, collate
from mgsr.losses import MiniLLMObjective, Objective
from mgsr.models.output_layer import OutputLayer
from mgsr.runtime.errors import RunInterruptedError
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train
from tests.reading import weights
from tests.training.epochs import data_module, made_up_rows

Make = Callable[..., ExperimentConfig]
# eleven rows in steps of four: the last one has three
UNEVEN = ("data.synthetic.train_rows=11", "train.batch_size=4", "train.epochs=2")
# in float64 the order of a sum leaves 1e-15, of which AdamW makes more where a gradient is nearly 0
EXACT = ("teacher.dtype=float64", "student.dtype=float64", "trainer.precision=64-true", "train.lr=0.001")
CLOSE = {"rtol": 0.0, "atol": 1e-9}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("micro", "world"), [(4, 1), (1, 1), (3, 1), (1, 2), (1, 4), (2, 3)])
def test_the_ranks_of_an_epoch_train_on_every_row_once(
    micro: int, world: int, share: float, make_config: Make, tmp_path: Path
) -> None:
    words = (f"train.micro_batch_size={micro}", f"mixture.student_fraction={share}", "scrg.passes=0")
    config = make_config("train.batch_size=4", "train.epochs=1", f"trainer.devices={world}", *words)
    data = data_module(config, made_up_rows(9), tmp_path, world)
    assert data.trainer is not None and data.length.steps_per_epoch == 3
    # one process writes the round, so that the ranks need not wait for each other
    data.trainer.world_size = 1  # type: ignore[misc]
    data.plan_epoch(0)
    data.trainer.world_size = world  # type: ignore[misc]
    planned = []
    for rank in range(world):
        data.trainer.global_rank = rank  # type: ignore[misc]
        planned.append(data.plan_epoch(0))
    forwards = {len(items) for items in planned}
    assert forwards == {3 * data.length.micro_batches}, "every rank makes as many forwards"
    rows = [row for items in planned for item in items for row in item.rows]
    assert Counter(row.example_id for row in rows) == Counter(range(1000, 1009))
    # the denominators are those of all the rows that the ranks together see in a step
    for start in range(0, forwards.pop(), data.length.micro_batches):
        parts = [item for items in planned for item in items[start : start + data.length.micro_batches]]
        assert {item.counts for item in parts} == {StepCounts.of([row for item in parts for row in item.rows])}


def test_small_micro_batches_train_the_same_student(make_config: Make) -> None:
    trained = {}
    for micro in (4, 3, 1):
        config = make_config(*EXACT, *UNEVEN, f"arm=micro_{micro}", f"train.micro_batch_size={micro}")
        assert train(config)["steps"] == 6
        trained[micro] = weights(run_folder(config))
    for micro in (3, 1):
        for name, value in trained[4].items():
            torch.testing.assert_close(trained[micro][name], value, **CLOSE, msg=f"{micro} {name}")


@pytest.mark.parametrize(
    "change", [("train.micro_batch_size=1",), ("train.gradient_checkpointing=true", "train.micro_batch_size=2")]
)
def test_a_run_goes_on_in_other_micro_batches(
    change: tuple[str, ...], make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From within an epoch, whose round it keeps, to the same student."""
    words = (*EXACT, *UNEVEN, "train.micro_batch_size=4")
    whole = make_config(*words, "arm=whole")
    train(whole)
    original = mgsr.training.checkpoint.ResumePoint.on_train_batch_end

    def stop(self: Any, trainer: Any, module: Any, *args: Any) -> None:
        if trainer.global_step == 4 and module.objective.needs_teacher:
            self.stop.asked = 15
        original(self, trainer, module, *args)

    with monkeypatch.context() as patch:
        patch.setattr(mgsr.training.checkpoint.ResumePoint, "on_train_batch_end", stop)
        with pytest.raises(RunInterruptedError):
            train(make_config(*words, "arm=stopped"))
    resumed = make_config(*words, "arm=stopped", *change)
    assert train(resumed, resume=True)["steps"] == 6
    for name, value in weights(run_folder(whole)).items():
        torch.testing.assert_close(weights(run_folder(resumed))[name], value, **CLOSE, msg=name)


@pytest.mark.parametrize(
    "objective",
    [
        Objective((1.0, 1.0, 1.0), (0.0, 0.95), {}),
        Objective((1.0, 1.0, 0.0), None, {"divergence": "jensen_shannon"}),
        Objective((1.0, 0.0, 0.0), (0.0, 1.0), {}),
        MiniLLMObjective((1.0, 1.0, 0.0), None, {}),
    ],
)
def test_a_micro_batch_without_rows_adds_nothing(objective: Objective) -> None:
    batch = collate([], StepCounts(7, 9, 3), 5)
    assert (batch.tokens, batch.slots, batch.counts) == (0, 0, (7, 9, 3)) and batch.to("cpu").stands_in
    hidden = torch.randn(*batch.input_ids.shape, 4, requires_grad=True)
    weight = torch.randn(11, 4, requires_grad=True)
    taught = torch.randn(*batch.input_ids.shape, 3), OutputLayer(torch.randn(11, 3))
    terms = objective(batch.targets, hidden, OutputLayer(weight), *taught)
    assert [float(value.detach()) for value in terms[:4]] == [0.0] * 4
    gradients = torch.autograd.grad(terms.total, (hidden, weight))
    assert not any(gradient.any() for gradient in gradients)
