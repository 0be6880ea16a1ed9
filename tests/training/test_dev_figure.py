"""The figure that a student is chosen by: exact whatever the precision, and ties go to the later student."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mgsr.training.build
from mgsr.config.schema import ExperimentConfig
from mgsr.runtime.errors import UserError
from mgsr.training.checkpoint import BEST, read_checkpoint
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train

Make = Callable[..., ExperimentConfig]


def scores_of(monkeypatch: pytest.MonkeyPatch, *looks: list[float]) -> None:
    """Have the dev set score so, look after look."""
    left = iter(looks)
    monkeypatch.setattr(mgsr.training.build, "Predictor", lambda *_, **__: lambda student: next(left))


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_the_dev_figure_is_the_mean_in_any_precision(
    precision: str, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a bfloat16 counts up to 256
    scores = [18.125] * 400 + [31.7] * 3
    scores_of(monkeypatch, scores)
    metrics = train(make_config("train.epochs=1", f"trainer.precision={precision}"))
    assert metrics["val"]["rouge_l"] == pytest.approx(sum(scores) / len(scores), rel=1e-6)
    assert metrics["val"]["best_rouge_l"] == metrics["val"]["rouge_l"]


@pytest.mark.parametrize(
    ("looks", "best"),
    [
        ([0.0, 0.0, 0.0], 3),
        ([7.0, 7.0, 3.0], 2),
        ([5.0, 7.0, 7.0], 3),
        ([7.0, 3.0, 5.0], 1),
        ([3.0, 5.0, 7.0], 3),
    ],
)
def test_ties_go_to_the_later_student(
    looks: list[float], best: int, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """METHOD: best by dev ROUGE-L, ties to the later one. Of a figure that says nothing that is the last one."""
    scores_of(monkeypatch, *([score] for score in looks))
    config = make_config("train.epochs=3")
    metrics = train(config)
    assert read_checkpoint(run_folder(config) / "checkpoints" / BEST)["global_step"] == 4 * best
    assert metrics["val"]["best_rouge_l"] == max(looks)


def cyrillic(path: Path, count: int) -> Path:
    rows = [{"instruction": f"Повтори слово {i}", "output": "да нет"} for i in range(count)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_script_that_rouge_does_not_see_is_said_once(
    make_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: cyrillic(tmp_path / f"{name}.jsonl", n) for name, n in (("dev", 5), ("test", 4))}
    words = ("train.epochs=1", *(f"data.{name}={path}" for name, path in files.items()))
    metrics = train(make_config("arm=published", *words))
    said = [line for line in capsys.readouterr().out.splitlines() if "ROUGE sees less than half" in line]
    assert len(said) == 1 and "5 of 5 rows of dev, 4 of 4 rows of test" in said[0]
    assert "evaluation.rouge_tokenizer=unicode" in said[0]
    assert metrics["result"]["test"]["rouge_l"] == 0.0
    train(make_config("arm=unicode", *words, "evaluation.rouge_tokenizer=unicode"))
    assert "ROUGE sees" not in capsys.readouterr().out


def test_an_unknown_tokenizer_is_refused(make_config: Make) -> None:
    with pytest.raises(UserError, match=r"published \| unicode"):
        make_config("evaluation.rouge_tokenizer=words")


def test_the_dev_loss_of_a_look_is_summed_in_float64(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = mgsr.training.module.DistillationModule.on_validation_epoch_end

    def watched(self: Any) -> None:
        seen.append(self._dev.dtype)
        original(self)

    monkeypatch.setattr(mgsr.training.module.DistillationModule, "on_validation_epoch_end", watched)
    scores_of(monkeypatch, [1.0])
    train(make_config("train.epochs=1", "trainer.precision=bf16-true"))
    assert seen == [torch.float64]
