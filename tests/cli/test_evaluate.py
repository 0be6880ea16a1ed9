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
from tests.models.small import tiny_model, tiny_tokenizer
from tests.models.test_folder_checks import an_encoder

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


def test_rows_that_rouge_does_not_see_are_told_with_the_way(data: Path, capsys: Capture) -> None:
    (data / "short.jsonl").write_text(3 * (json.dumps({"instruction": "ab", "output": "да"}) + "\n"))
    model(data, max_position_embeddings=128)
    words = ("--limit", "2", "--temperature", "0")
    assert evaluated(data, *words) == 0
    told = f"of 2 of 2 rows of {data / 'short.jsonl'}: their figures say little; type --rouge-tokenizer unicode"
    assert told in capsys.readouterr().out
    assert evaluated(data, *words, "--rouge-tokenizer", "unicode") == 0
    assert "ROUGE sees" not in capsys.readouterr().out


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


def test_the_fields_of_a_run_hold_and_other_shapes_are_recognised(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = data / "run"
    run.mkdir()
    fields = "data: {train: synthetic, template: plain, fields: {instruction: q, output: a.text}}\n"
    (run / "config.yaml").write_text(fields + "teacher: {source: init}\nstudent: {source: init}\n")
    (data / "own.csv").write_text("q,a.text\nab,12\n")
    turns = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "12"}]
    (data / "chat.json").write_text(json.dumps([{"messages": turns}]))
    monkeypatch.setattr(module, "load_run", lambda _: (tiny_model(max_position_embeddings=128), tiny_tokenizer()))
    files = [str(data / name) for name in ("own.csv", "chat.json", "short.jsonl")]
    words = ("--max-new-tokens", "8", "--seeds", "1", "--device", "cpu", "--out", str(data / "out.json"))
    assert main(["evaluate", str(run), "--data", *files, *words]) == 0
    figures = json.loads((data / "out.json").read_text())
    assert list(figures) == files and all(each["examples"] == 1 for each in figures.values())
    # of a model folder nobody has named any
    model(data, max_position_embeddings=128)
    assert main(["evaluate", str(data / "model"), "--data", files[0], *words[:-1], str(data / "other.json")]) == 2
