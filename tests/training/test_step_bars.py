"""Bars of a run in a terminal: they begin where the run stands, and rounds and dev looks stand inside them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mgsr.runtime.errors import RunInterruptedError
from mgsr.runtime.progress import Tracker
from mgsr.training.callbacks import StepProgress
from mgsr.training.checkpoint import ResumePoint
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train
from tests.conftest import Make


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int, list[int]]]:
    """Every bar that is begun: name, where it begins, of how many, and where it is moved to."""
    begun: list[tuple[str, int, int, list[int]]] = []

    class Recorded(Tracker):
        def __init__(self, description: str, total: int, *, first: int = 0, **options: Any) -> None:
            super().__init__(description, total, first=first, **options)
            self.moves: list[int] = []
            begun.append((description, first, total, self.moves))

        def move(self, done: int, *figures: Any) -> None:
            super().move(done, *figures)
            self.moves.append(done)

    for place in ("mgsr.training.callbacks", "mgsr.runtime.progress"):
        monkeypatch.setattr(f"{place}.Tracker", Recorded)
    return begun


def test_the_bar_of_a_resumed_run_begins_at_its_step_and_lasts_over_all_epochs(
    make_config: Make, bars: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    with monkeypatch.context() as patch:
        # asked to stop behind the fifth of twelve steps
        whole = StepProgress.on_train_batch_end

        def stop(self: StepProgress, trainer: object, module: object, *rest: object) -> None:
            whole(self, trainer, module, *rest)  # type: ignore[arg-type]
            if trainer.global_step == 5 and self.total_steps == 12:  # type: ignore[attr-defined]
                point = next(c for c in trainer.callbacks if isinstance(c, ResumePoint))  # type: ignore[attr-defined]
                point.stop.asked = 2

        patch.setattr(StepProgress, "on_train_batch_end", stop)
        with pytest.raises(RunInterruptedError) as stopped:
            train(config)
    assert f"stopped by Ctrl-C at step 5 of 12; go on with: mgsr train --resume {run_folder(config)}" == str(
        stopped.value
    )
    bars.clear()
    train(config, resume=True)
    # the first one of the stage, and the only one of its name
    (number,) = [number for number, bar in enumerate(bars) if bar[0].endswith("/mgsr seed 0")]
    assert bars[number][1:3] == (5, 12)
    assert sorted({*bars[number][3]}) == [6, 7, 8, 9, 10, 11, 12]
    # of the second epoch the round is there already
    assert [bar[0] for bar in bars[number + 1 :]][:3] == ["dev set", "round 2", "dev set"]
    assert bars[number + 1][3][-1] == 6, "all of the dev set"


def test_a_pipe_gets_one_line_of_a_short_stage(make_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    train(make_config())
    lines = [line for line in capsys.readouterr().out.splitlines() if "/mgsr seed 0: " in line]
    assert len(lines) == 1
    assert re.search(
        r": 12/12 steps, [\d.]+ steps/\w+, took \d+ \w+, loss [\d.]+, dev loss .*, dev ROUGE-L", lines[0]
    )
