"""A round of several epochs: its text is read from the disk once, and again by whoever resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mgsr.config.schema import ExperimentConfig
from mgsr.rounds import round
from mgsr.rounds.store import AFTER, round_folder
from mgsr.runtime.errors import DataError
from tests.training.epochs import data_module, made_up_rows, planned_steps

Make = Callable[..., ExperimentConfig]
OVERRIDES = ("scrg.every_n_epochs=2", "train.epochs=4", "train.batch_size=8")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the round folders that were read."""
    names: list[str] = []

    def reading(folder: Path, key: str) -> object:
        names.append(folder.name)
        return whole(folder, key)

    whole = round.read_round
    monkeypatch.setattr(round, "read_round", reading)
    return names


def test_later_epochs_train_on_the_text_as_it_was_read(make_config: Make, tmp_path: Path, read: list[str]) -> None:
    config, rows = make_config(*OVERRIDES), made_up_rows(40)
    data = data_module(config, rows, tmp_path)
    first = planned_steps(data, 0)
    begun = len(read)
    shard = next(round_folder(tmp_path, 0).glob("*.jsonl"))
    content = shard.read_text()
    shard.write_text(content[: len(content) // 2])
    second = planned_steps(data, 1)
    assert len(read) == begun and set(read) == {"round=0"}
    with pytest.raises(DataError, match="cannot write it again"):
        planned_steps(data_module(config, rows, tmp_path), 1)
    shard.write_text(content)
    assert planned_steps(data_module(config, rows, tmp_path), 1) == second != first
    planned_steps(data, 2)
    assert read[-1] == "round=1" and data.round == 1


def test_likelihoods_of_text_that_is_known_are_not_written_again(make_config: Make, tmp_path: Path) -> None:
    data = data_module(make_config(*OVERRIDES), made_up_rows(40), tmp_path)
    planned_steps(data, 0)
    assert data.rounds is not None
    path = round_folder(tmp_path, 0) / AFTER
    data.rounds.note_likelihoods(0, {1: -1.0, 2: -2.0})
    written = path.stat().st_mtime_ns, path.read_text()
    data.rounds.note_likelihoods(0, {2: -9.0})
    assert (path.stat().st_mtime_ns, path.read_text()) == written
    data.rounds.note_likelihoods(0, {2: -9.0, 3: -3.0})
    assert round.read_after(round_folder(tmp_path, 0)) == {1: -1.0, 2: -2.0, 3: -3.0}
