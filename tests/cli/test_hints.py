"""What belongs to another command, or is typed as other programs take it: one line that says what to type."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgsr.cli.main import main
from mgsr.cli.parsing import parse

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def places(tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with one of each: config, study, run, model, rows."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(tiny_file.read_text())
    Path("study.yaml").write_text("study: s\nbase: tiny.yaml\narms: {full: {}}\n")
    for folder, name in (("runs/s/full/seed=0", "config.yaml"), ("model", "config.json"), ("empty", None)):
        Path(folder).mkdir(parents=True)
        if name:
            (Path(folder) / name).write_text("{}")
    Path("runs/s/full/seed=0/checkpoints").mkdir()
    Path("runs/s/full/seed=0/checkpoints/best.ckpt").touch()
    Path("runs/t-my").mkdir()
    for study in ("t.yaml", "runs/t-my/study.yaml"):
        Path(study).write_text("study: t\nbase: demo\narms: {full: {}}\n")
    Path("rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    return tmp_path


def answer(capsys: Capture, words: str) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    try:
        code = main(words.split(" "))
    except SystemExit as end:
        code = end.code  # type: ignore[assignment]
    shown = capsys.readouterr()
    assert code == 2 and shown.err.startswith("mgsr: error: ") and shown.err.count("\n") == 1, shown.err
    assert "Traceback" not in shown.err and not shown.out
    return shown.err


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        ("train study.yaml", "type mgsr ablate study.yaml"),
        ("doctor study.yaml", "type mgsr doctor tiny.yaml"),
        ("train runs/s/full/seed=0", "type mgsr train --resume runs/s/full/seed=0"),
        ("plan runs/s/full/seed=0", "type mgsr plan runs/s/full/seed=0/config.yaml"),
        ("config model", "student.source=model"),
        ("train rows.jsonl", "data.train=rows.jsonl"),
        ("train runs", "name a YAML file"),
        ("train .", "such as study.yaml"),
        ("ablate tiny.yaml", "type mgsr train tiny.yaml"),
        ("report tiny.yaml", "is a config, not a study; name a study.yaml"),
        ("ablate study.yaml --config runs/s/full/seed=0", "is a run folder"),
        ("ablate runs/s/full/seed=0", "name a study"),
        ("export runs out", "such as runs/s/full/seed=0"),
        ("texts runs/s/full/seed=0/config.yaml", "type runs/s/full/seed=0"),
        ("evaluate tiny.yaml --data rows.jsonl", "name a run folder"),
        ("evaluate model --data rows.jsonl --teacher runs/s/full/seed=0", "then --teacher OUT"),
        ("plan tiny.yaml student.source=runs/s/full/seed=0", "type mgsr export runs/s/full/seed=0 OUT"),
        ("plan tiny.yaml teacher.source=runs/s/full/seed=0/checkpoints/best.ckpt", "type mgsr export runs/s/full"),
        ("train tiny.yaml data.train=rows.csv", "rows.csv: no such file"),
        ("train --resume tiny.yaml", "name a run folder"),
        ("tiny.yaml", "type mgsr train tiny.yaml"),
        ("trian tiny.yaml", "did you mean `train`"),
        ("train scrg", "scrg: is a study, not a config; type mgsr ablate scrg"),
        ("doctor scrg", "type mgsr doctor demo"),
        ("ablate gpt2", "gpt2: is a config, not a study; type mgsr train gpt2"),
        ("train dmo", "dmo: no such config file; did you mean `demo`?"),
        ("plan tinyy.yaml", "did you mean `tiny.yaml`?"),
        ("doctor configs/demo.yaml", "`demo` alone is a config that comes with mgsr"),
        ("report experiments/grid/study.yaml", "`grid` alone is a study that comes with mgsr"),
        ("ablate qqqqqq", "mgsr config --list"),
        ("ablate baselines --config tiny.yaml --record", "leave it out with --config"),
        ("ablate baselines tiny.yaml --arms sft", "a configuration goes behind --config: type --config tiny.yaml"),
        ("ablate baselines gpt2", "type --config gpt2"),
        ("ablate baselines --arms sft tiny.yaml", "a configuration goes behind --config: --config tiny.yaml"),
        ("ablate baselines --arms full,gkd", "arms are separated by spaces; type --arms full gkd"),
        ("ablate baselines --arms gdk", "no arm `gdk`; did you mean `gkd`?"),
        ("ablate --config tiny.yaml", "arguments are required: STUDY;"),
        ("report runs/s", "runs/s: holds runs of mgsr train, and no study.yaml as mgsr ablate writes it"),
        ("report runs/s", "of a study there type mgsr report runs/t-my"),
        ("report t.yaml", "nothing is recorded yet; run it first: mgsr ablate t.yaml --record"),
        ("report runs/t-my", "nothing is recorded yet; run it first: mgsr ablate"),
    ],
)
def test_what_belongs_to_another_command(words: str, typed: str, places: Path, capsys: Capture) -> None:
    assert typed in answer(capsys, words)


def test_runs_without_record_are_named(places: Path, capsys: Capture) -> None:
    Path("runs/t-my").rename("runs/t")
    assert "without it type mgsr report runs/t\n" in answer(capsys, "report t.yaml")
    assert "run it first" in answer(capsys, "report runs/t")


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        ("train tiny.yaml --train.lr=1", "type train.lr=1"),
        ("train tiny.yaml --train.lr 1", "type train.lr=1"),
        ("train tiny.yaml --train.batch-size 4", "type train.batch_size=4"),
        ("train tiny.yaml -train.lr --resume x", "type train.lr=VALUE"),
        ("train tiny.yaml train.batch-size=4", "did you mean `batch_size`"),
        ("train tiny.yaml train.lr = 1", "type train.lr=1"),
        ("train tiny.yaml train.lr: 1", "type train.lr=1"),
        ("train tiny.yaml —resume runs", "type --resume"),
        ("ablate study.yaml –seeds 1", "type --seeds"),
        ("ablate study.yaml –-seeds 1", "type --seeds"),
        ("ablate study.yaml --seeds −1", "type -1"),
        ("train tiny.yaml train.lr=1e−4", "type train.lr=1e-4"),
        ("train tiny.yaml —train.lr=1", "type train.lr=1"),
        ("train tiny.yaml “train.lr=1”", "curly quotes"),
        ("train tiny.yaml arm=‘x’", "curly quotes"),
        ("ablate study.yaml --sead 1", "did you mean `--seeds`"),
        ("train tiny.yaml --see 1", "did you mean `seed`"),
        ("evaluate model --data rows.jsonl seed=1", "takes no overrides"),
        ("export runs ", "is a variable of the shell not set"),
        ("evaluate model --data rows.jsonl --out ", "is a variable of the shell not set"),
    ],
)
def test_words_as_other_programs_take_them(words: str, typed: str, places: Path, capsys: Capture) -> None:
    assert typed in answer(capsys, words)


@pytest.mark.parametrize("words", ["config tiny.yaml arm=a—b", "config tiny.yaml arm=a”b“", "config --debug"])
def test_what_is_meant_so_is_taken(words: str, places: Path, capsys: Capture) -> None:
    assert main(words.split()) == 0 and capsys.readouterr().out


def test_seeds_are_of_64_bits_and_named_twice_are_one(capsys: Capture) -> None:
    for seed in ("-5", "99999999999999999999", "1.5"):
        for words in (["ablate", "s.yaml"], ["evaluate", "model", "--data", "rows.jsonl"]):
            assert "--seeds" in answer(capsys, " ".join([*words, "--seeds", seed]))
    arguments = parse(["ablate", "s.yaml", "--seeds", "3", "1", "3", "--arms", "b", "a", "b"])
    assert (arguments.seeds, arguments.arms) == ([3, 1], ["b", "a"])
