"""`mgsr evaluate` finds what is wrong before it writes a word, and loses no figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mgsr.cli import evaluate as module
from mgsr.cli.main import main
from mgsr.models import save_model_folder
from mgsr.runtime.errors import UserError
from tests.models.test_folder_checks import an_encoder
from tests.models.test_sources import tiny_model, tiny_tokenizer

Capture = pytest.CaptureFixture[str]
SHORT = {"instruction": "ab", "output": "12"}
LONG = {"instruction": "ab" * 40, "output": "12"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, row in (("short", SHORT), ("long", LONG)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


def model(data: Path, **changes: Any) -> Path:
    return save_model_folder(tiny_model(**changes), tiny_tokenizer(), data / "model")


def evaluated(data: Path, *words: str) -> int:
    files = ["--data", str(data / "short.jsonl"), str(data / "long.jsonl")]
    fixed = ["--template", "plain", "--max-new-tokens", "8", "--seeds", "1", "--device", "cpu"]
    return main(["evaluate", str(data / "model"), *files, *fixed, *words])


@pytest.mark.parametrize(
    ("changes", "words", "said"),
    [
        ({}, (), r"long.jsonl:1 takes \d+ tokens and its answer up to 8, and the model has 16 positions"),
        ({"vocab_size": 60}, (), "its embedding has 60 rows: take a tokenizer"),
        ({}, ("--out", "{data}/short.jsonl/x.json"), "cannot be written"),
        ({}, ("--out", "/proc/nowhere/x.json"), "cannot be written"),
        ({}, ("--out", "{data}/model"), "exists already"),
        (
            {"max_position_embeddings": 128},
            ("--teacher", "{data}/narrow"),
            "teacher: .* the model has 16 positions",
        ),
    ],
)
def test_nothing_is_written_before_all_is_known(
    data: Path, changes: Any, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("measured already")

    monkeypatch.setattr(module, "evaluate", never)
    model(data, **changes)
    save_model_folder(tiny_model(), tiny_tokenizer(), data / "narrow")
    capsys.readouterr()
    assert evaluated(data, *(word.format(data=data) for word in words)) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    with pytest.raises(UserError, match=said):
        raise UserError(line)


def test_an_encoder_is_not_measured(data: Path, capsys: Capture) -> None:
    an_encoder(model(data))
    assert evaluated(data) == 2
    assert "is an encoder (bert)" in capsys.readouterr().err


def test_a_typing_error_names_the_folder_beside(data: Path, capsys: Capture) -> None:
    model(data)
    assert main(["evaluate", str(data / "modle"), "--data", str(data / "short.jsonl")]) == 2
    assert f"did you mean `{data / 'model'}`?" in capsys.readouterr().err


def test_figures_outlive_a_disk_that_fills_meanwhile(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def full(path: Path, *_: Any) -> None:
        raise UserError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(module, "write_atomically", full)
    model(data, max_position_embeddings=128)
    assert evaluated(data, "--out", str(data / "out.json")) == 2
    out, err = capsys.readouterr()
    assert "short.jsonl" in out and "ROUGE-L" in out and "No space left" in err
