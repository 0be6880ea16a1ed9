"""The end of a command: what `train` shows, and what is said of a run that was stopped."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from mgsr.cli.console import FLOORS, run_table, show
from mgsr.cli.ending import show_ending
from mgsr.cli.main import main
from mgsr.runtime.errors import RunInterruptedError

Capture = pytest.CaptureFixture[str]


def cells(table: str) -> list[list[str]]:
    """Rows of a table in the terminal."""
    return [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if line.startswith("│")
    ]


def test_train_ends_with_figures_checkpoint_and_next_commands(two_set_run: Path, capsys: Capture) -> None:
    """Also of a run that is complete already, whose models were not even loaded."""
    metrics = json.loads((two_set_run / "metrics.json").read_text())
    assert main(["train", "--resume", str(two_set_run)]) == 0
    out = capsys.readouterr().out
    rows = cells(out)
    models = ["teacher", "start", *FLOORS.values(), "mgsr"]
    assert [row[:2] for row in rows] == [
        [name if number == 0 else "", model] for name in ("test", "mine") for number, model in enumerate(models)
    ]
    by_model = {row[1]: row[2:] for row in rows[: len(models)]}
    for name, model in (("teacher", "teacher"), ("sft_start", "start"), ("result", "mgsr")):
        figures = metrics[name]["test"]
        assert by_model[model] == [
            f"{figures['rouge_l']:.2f}",
            f"{figures['sampled']['rouge_l']:.2f}",
            f"{figures['accuracy']:.1f} %",
            f"{figures['sampled']['accuracy']:.1f} %",
            f"{figures['distinct_2']:.3f}",
        ]
    echo = metrics["floors"]["test"]["echo"]
    assert by_model["the prompt again"] == [
        *(f"{echo['rouge_l']:.2f}", "n/a", f"{echo['accuracy']:.1f} %", "n/a", "n/a")
    ]
    best = torch.load(two_set_run / "checkpoints/best.ckpt", weights_only=True)
    step, epoch, score = best["global_step"], best["epoch"] + 1, metrics["val"]["best_rouge_l"]
    assert f"best.ckpt: step {step} of 12, epoch {epoch}, dev ROUGE-L {score:.2f}, the best on the dev set" in out
    for command in ("mgsr texts", "mgsr evaluate", "mgsr export", "tensorboard --logdir"):
        (line,) = [line for line in out.splitlines() if command in line]
        assert str(two_set_run) in line, line


def test_the_end_of_a_run_without_teacher_rounds_and_checkpoints(
    two_set_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    metrics: dict[str, Any] = json.loads((two_set_run / "metrics.json").read_text())
    del metrics["teacher"], metrics["scrg"], metrics["result"]["mine"]
    folder = tmp_path / "a run"
    # damaged since: what it was is not worth an error at the end
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/best.ckpt").write_text("torn")
    show_ending(metrics, folder)
    out = capsys.readouterr().out
    assert [row[0] for row in cells(out)] == ["start", *FLOORS.values(), "mgsr"]
    assert "checkpoint " not in out and "mgsr texts" not in out
    # a name with a blank is one word of the shell
    assert f"mgsr export '{folder}' exported/" in out


def test_a_name_in_a_table_is_no_markup(two_set_run: Path, capsys: Capture) -> None:
    metrics = json.loads((two_set_run / "metrics.json").read_text()) | {"arm": "[red]x[/red]"}
    show(run_table(metrics))
    assert "[red]x[/red]" in capsys.readouterr().out


def stops(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> None:
    def stop(*words: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(name, stop)


def test_ctrl_c_outside_the_steps_is_no_error_and_says_how_to_go_on(
    two_set_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    stops(monkeypatch, "mgsr.training.train.train", KeyboardInterrupt())
    assert main(["train", "--resume", str(two_set_run)]) == 130
    assert capsys.readouterr().err == f"mgsr: stopped by Ctrl-C; go on with: mgsr train --resume {two_set_run}\n"


@pytest.mark.parametrize(
    ("stop", "code", "why"),
    [
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (
            RunInterruptedError("stopped by SIGTERM at step 3 of 9; go on with: X", signal.SIGTERM),
            143,
            "stopped by SIGTERM",
        ),
    ],
)
def test_a_study_that_is_stopped_says_how_all_its_runs_go_on(
    tiny_file: Path,
    tmp_path: Path,
    stop: BaseException,
    code: int,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(f"study: small\nbase: {tiny_file}\narms:\n  mgsr: {{}}\n")
    stops(monkeypatch, "mgsr.study.run.run_study", stop)
    words = ["ablate", str(study), "--seeds", "0", "1", "scrg.passes=2"]
    assert main(words) == code
    error = capsys.readouterr().err
    assert error.startswith(f"mgsr: {why}") and "error" not in error and error.count("\n") == 1
    assert error.endswith(f"all runs go on with: mgsr {' '.join(words)}\n")
