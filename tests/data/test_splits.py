"""Which rows a run reads: of files, cut from one file, and under the names of `data.fields`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgsr.config.load import load_config
from mgsr.config.schema import DataConfig, EvaluationConfig
from mgsr.data.rows import Message, Row
from mgsr.data.splits import encode, encode_answered, read_split, rows_fingerprint, say_of_cut
from mgsr.data.synthetic import generate_rows
from mgsr.data.tokenizer import train_tokenizer
from mgsr.runtime.errors import DataError

Parts = dict[str, list[Row]]


def file(path: Path, count: int, word: str = "Say", **names: str) -> str:
    ask, answer = names.get("ask", "prompt"), names.get("answer", "completion")
    path.write_text("".join(json.dumps({ask: f"{word} {n}.", answer: f"{n}"}) + "\n" for n in range(count)))
    return str(path)


def data(*words: str) -> DataConfig:
    return load_config(None, [*words, "student.source=a/b", "teacher.source=a/b"]).data


def parts(*words: str) -> Parts:
    return {split: read_split(data(*words), split) for split in ("train", "dev", "test")}


def ids(found: Parts) -> dict[str, list[int]]:
    return {name: [row.id for row in rows] for name, rows in found.items()}


def test_one_file_is_cut_by_a_fixed_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = file(tmp_path / "all.jsonl", 60)
    found = parts(f"data.train={one}")
    places = ids(found)
    assert {name: len(part) for name, part in places.items()} == {"train": 48, "dev": 6, "test": 6}
    assert sorted(row for part in places.values() for row in part) == list(range(60))
    # frozen: a change here would move rows between the splits of somebody's run
    assert places["dev"] == [1, 9, 12, 19, 41, 44] and places["test"] == [7, 23, 26, 27, 46, 58]
    assert places == ids(parts(f"data.train={one}", f"data.dev={tmp_path}/../{tmp_path.name}/all.jsonl"))
    assert read_split(data(f"data.train={one}"), "teacher") == found["train"]
    say_of_cut(found)
    assert capsys.readouterr().out == (
        f"{one}: no dev and test rows are given, so 6 dev and 6 test rows are cut from it by a fixed rule "
        "(data.split) and 48 are trained on\n"
    )


def test_sizes_are_those_configured_or_a_tenth(tmp_path: Path) -> None:
    one = f"data.train={file(tmp_path / 'all.jsonl', 60)}"
    for words, sizes in (
        (("data.split.dev=20",), (34, 20, 6)),
        (("data.split.dev=21", "data.split.test=1"), (53, 6, 1)),
        (("data.split.dev=3", "data.split.test=4", "data.train_limit=5"), (5, 3, 4)),
    ):
        assert tuple(len(part) for part in parts(one, *words).values()) == sizes
    assert ids(parts(one)) != ids(parts(one, "data.split.seed=1"))
    three = file(tmp_path / "three.jsonl", 3)
    assert [len(part) for part in parts(f"data.train={three}").values()] == [1, 1, 1]
    with pytest.raises(
        DataError,
        match=r"two\.jsonl: 2 rows are too few for 1 dev row, 1 test row and one row.*data\.dev=FILE",
    ):
        parts(f"data.train={file(tmp_path / 'two.jsonl', 2)}")
    one = file(tmp_path / "one.jsonl", 1)
    same = r"data\.test=FILE \(other than data\.train: data\.dev and data\.test named the same file\)$"
    with pytest.raises(DataError, match=same):
        parts(*(f"data.{name}={one}" for name in ("train", "dev", "test")))


def test_what_is_given_is_not_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = file(tmp_path / "all.jsonl", 60), file(tmp_path / "other.jsonl", 4, "Ask")
    only_dev, only_test = (parts(f"data.train={one}", f"data.{name}={other}") for name in ("dev", "test"))
    assert [len(part) for part in only_dev.values()] == [54, 4, 6]
    assert [len(part) for part in only_test.values()] == [54, 6, 4]
    say_of_cut(only_dev)
    assert "no test rows are given, so 6 test rows are cut" in capsys.readouterr().out
    both = parts(f"data.train={one}", f"data.dev={other}", f"data.test={other}")
    say_of_cut(both)
    say_of_cut(parts("data.train=synthetic"))
    assert [len(part) for part in both.values()] == [60, 4, 4] and capsys.readouterr().out == ""


def test_named_fields_hold_for_training_rows_and_others_may_differ(tmp_path: Path) -> None:
    own = file(tmp_path / "own.jsonl", 30, ask="q", answer="a")
    other, third = file(tmp_path / "other.jsonl", 4), file(tmp_path / "third.jsonl", 5, ask="q", answer="a")
    words = ("data.fields.instruction=q", "data.fields.output=a", f"data.test_sets={{third: {third}}}")
    found = parts(f"data.train={own}", f"data.test={other}", *words)
    assert [len(part) for part in found.values()] == [27, 3, 4]
    assert len(read_split(data(f"data.train={own}", *words), "third")) == 5
    with pytest.raises(DataError, match="field `q` is missing"):
        parts(f"data.train={other}", *words)


def test_the_default_of_dev_rows_stays() -> None:
    assert DataConfig().split.dev == 1000, "hashes of older runs know this default"


def test_a_fingerprint_is_of_what_is_asked_and_answered() -> None:
    row = Row(0, "Say it.", "loud", ("It!", "It."), "say", "a:1")
    # frozen: run folders and recorded results hold it
    assert rows_fingerprint([row]) == FROZEN
    assert rows_fingerprint([Row(5, "Say it.", "loud", ("It!", "It."))]) == FROZEN
    turns = (Message("user", "Say it."),)
    assert rows_fingerprint([Row(0, "Say it.", "loud", ("It!", "It."), messages=turns)]) != FROZEN


FROZEN = "b7b5d052923bcbaf"


def test_rows_that_are_answered_have_a_prompt_limit_of_their_own() -> None:
    rows = generate_rows("test", 22)
    tokenizer = train_tokenizer([row.instruction for row in rows], vocab_size=400)
    short = DataConfig(template="plain", max_prompt_length=30, max_length=60)
    plain = encode(rows, tokenizer, short, "rows").examples
    assert encode_answered(rows, tokenizer, short, EvaluationConfig(), "rows") == list(plain)
    found = encode_answered(rows, tokenizer, short, EvaluationConfig(max_prompt_length=500), "rows")
    assert not any(example.prompt_truncated for example in found)
    # what training would cut lies outside
    cut = [example.prompt_truncated or example.response_truncated for example in plain]
    assert [not example.within for example in found] == cut and len(set(cut)) == 2
