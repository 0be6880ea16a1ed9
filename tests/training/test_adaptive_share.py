"""DistiLLM's share of student text: up when the dev loss worsens, and the next round with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mgsr.config.schema import ExperimentConfig
from mgsr.training.callbacks import Mixture
from mgsr.training.datamodule import DistillationDataModule
from tests.training.epochs import END, MadeUpText, data_module, made_up_rows, planned_steps

Make = Callable[..., ExperimentConfig]
ADAPTIVE = (
    "scrg.passes=0",
    "mixture.kind=adaptive",
    "mixture.student_fraction_start=0.25",
    "mixture.adaptive_step=0.5",
    "mixture.adaptive_eps=0.5",
    "train.epochs=6",
    "train.batch_size=8",
)


def look(data: DistillationDataModule, loss: float) -> float:
    """The share of student text after a look at the dev set, as Lightning reports it."""
    trainer = SimpleNamespace(callback_metrics={"val/loss": loss}, datamodule=data)
    Mixture().on_validation_end(trainer, None)  # type: ignore[arg-type]
    return data.mixture.adaptive_fraction


def test_the_share_rises_only_when_dev_loss_worsens_by_more_than_eps(make_config: Make, tmp_path: Path) -> None:
    data = data_module(make_config(*ADAPTIVE), made_up_rows(40), tmp_path)
    assert data.mixture.adaptive_fraction == 0.25
    # (dev loss, share): the first look has nothing to compare with
    looks = [(9.0, 0.25), (2.0, 0.25), (2.0, 0.25), (2.5, 0.25), (3.0, 0.25), (3.625, 0.75)]
    # after a rise as before: the look before counts, not the best one; the share ends at 1
    looks += [(3.75, 0.75), (1.0, 0.75), (1.625, 1.0), (9.0, 1.0)]
    for loss, share in looks:
        assert look(data, loss) == share, loss


@pytest.mark.parametrize("every", [1, 2])
def test_the_next_round_follows_the_share(every: int, make_config: Make, tmp_path: Path) -> None:
    config = make_config(*ADAPTIVE, f"scrg.every_n_epochs={every}")
    truth = made_up_rows(40)
    own = {(row.example_id, row.response_ids) for row in truth}
    data = data_module(config, truth, tmp_path)
    text = data.rounds.writer if data.rounds else None
    assert isinstance(text, MadeUpText)
    written = []
    for epoch, loss in enumerate([2.0, 2.5, 3.25, 3.0, 4.0]):
        steps = planned_steps(data, epoch)
        written.append([sum((row.example_id, row.response_ids) not in own for row in rows) for rows in steps])
        assert all(row.response_ids[-1] == END for rows in steps for row in rows)
        look(data, loss)
    # five steps of eight rows: a quarter, then, from the epoch after the rise of 0.75, three quarters
    assert written == [[2] * 5, [2] * 5, [2] * 5, [6] * 5, [6] * 5]
    mixture = data.mixture
    assert mixture.adaptive_fraction == 1.0
    assert mixture.epoch_fractions == {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.75, 4: 0.75}
    # a round of several epochs answers every prompt, since any may be asked for when the share rises within it
    assert text.sizes == ({0: 10, 1: 10, 2: 10, 3: 30, 4: 30} if every == 1 else {0: 40, 1: 40, 2: 40})
    assert [len(step.student) for step in mixture.selection(5)] == [8] * 5
    assert [len(step.student) for step in mixture.selection(2)] == [2] * 5, "an epoch keeps its share"
