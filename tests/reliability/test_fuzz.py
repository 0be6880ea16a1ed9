"""Readers of files from strangers: whatever they are given, they answer or refuse it in one line.

`make fuzz` gives every reader 10,000 inputs, `make test-all` 120, `make test` 20.
"""

from __future__ import annotations

import gzip
import json
import math
import os
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from mgsr.config.keys import walk
from mgsr.config.load import config_from_tree, dump, load_config
from mgsr.config.schema import ExperimentConfig, FieldsConfig
from mgsr.data.row_files import RECOGNISED, read_rows
from mgsr.rounds.store import SHARD_NAME, RoundEntry, finish_round, read_round, write_shard
from mgsr.runtime.errors import ConfigError, DataError, UserError
from mgsr.runtime.files import write_checked
from mgsr.scrg import RevisedSequence
from mgsr.training.checkpoint import read_checkpoint, resume_path

COUNT = int(os.environ.get("MGSR_FUZZ", "20"))
fuzz = settings(
    max_examples=COUNT,
    deadline=None,
    # the tests of a change must not fail by luck; `make fuzz` looks at new inputs each time
    derandomize=COUNT < 1000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
KEYS = ("instruction", "input", "output", "context", "response", "category", "prompt", "completion", "answers")
turn = st.fixed_dictionaries(
    {
        "role": st.sampled_from(("system", "user", "assistant", "tool")) | plain,
        "content": st.text(max_size=5) | plain,
    }
)
turns = st.lists(turn | plain, max_size=3)
row_like = st.dictionaries(
    st.sampled_from((*KEYS, "messages", "conversations", "system")) | st.text(max_size=5),
    plain | turns,
    max_size=5,
)
line = (
    row_like.map(lambda row: json.dumps(row).encode()) | plain.map(lambda v: json.dumps(v).encode()) | st.binary()
)
FIELD_NAMES = st.builds(
    FieldsConfig, *[st.sampled_from(("", "a", "output", "a.b", "messages.0.content", ".", "answers.text"))] * 5
)


def reads_or_refuses(path: Path, fields: FieldsConfig = RECOGNISED) -> None:
    for strict in (True, False):
        try:
            rows = read_rows(path, fields=fields, strict=strict)
        except DataError as error:
            assert "\n" not in str(error) and str(error).startswith(str(path)) and len(str(error)) < 1000
            continue
        for number, row in enumerate(rows):
            assert row.id == number and row.instruction.strip() and row.output.strip() and row.where and row.asked
            assert all(turn.role in ("system", "user", "assistant") for turn in row.messages)
            texts = (row.instruction, row.input, row.category, *row.references, *(t.content for t in row.messages))
            assert all(type(text) is str and text.encode() is not None for text in texts)


@fuzz
@given(
    st.lists(line, max_size=5).map(b"\n".join)
    | st.lists(row_like, max_size=4).map(lambda v: json.dumps(v).encode()),
    st.sampled_from([".jsonl", ".json"]),
    st.booleans(),
    FIELD_NAMES,
)
@example(b"[" * 100_000, ".json", False, FieldsConfig())
@example(b'{"instruction": ' * 3_000, ".jsonl", False, FieldsConfig())
@example(b'{"instruction": "a", "output": "\\ud800"}', ".jsonl", False, FieldsConfig())
@example(b'{"messages": "' + b"[" * 100_000 + b'"}', ".jsonl", False, FieldsConfig())
def test_fuzz_rows(tmp_path: Path, content: bytes, suffix: str, packed: bool, fields: FieldsConfig) -> None:
    path = tmp_path / f"rows{suffix}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content) if packed else content)
    reads_or_refuses(path, fields)


CELLS = st.text(st.sampled_from('aé,;\t\r\n" []{}\0\ufeff\u2028'), max_size=12) | st.sampled_from(KEYS)


@fuzz
@given(
    st.lists(st.lists(CELLS, max_size=4).map(",".join), max_size=5).map("\n".join).map(str.encode) | st.binary(),
    st.sampled_from((".csv", ".tsv", ".csv.gz", ".parquet")),
)
@example(b"instruction,output\n" + b'"a",b\n' * 3, ".csv")
@example(b'instruction,output\na,"' + b"b" * 200_000 + b'"', ".csv")
@example(b"PAR1\x00\x00\x00\x00PAR1", ".parquet")
def test_fuzz_tables(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    reads_or_refuses(path)


@fuzz
@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=3), st.data())
def test_fuzz_parquet(tmp_path: Path, drawn: list[tuple[str, str]], data: st.DataObject) -> None:
    """Whole files, and files of which a byte was changed or whose end is missing."""
    path = tmp_path / "rows.parquet"
    rows = [
        {"instruction": ask, "messages": [{"role": "user", "content": ask}], "output": {"text": [right]}}
        for ask, right in drawn
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    reads_or_refuses(path, FieldsConfig(output="output.text", instruction="instruction"))


TOP = ("experiment", "data", "teacher", "student", "objective", "clip", "scrg", "train", "trainer", "run_root")
tree_like = st.dictionaries(
    st.sampled_from(TOP) | st.text(max_size=6),
    plain | st.dictionaries(st.sampled_from(("lr", "epochs", "source", "sft", "passes", "betas")), plain),
    max_size=4,
)


@fuzz
@given(tree_like.map(lambda tree: yaml.safe_dump(tree, allow_unicode=True).encode()) | st.binary(max_size=60))
@example(b"a: &a [*a]")
@example(b"arm: ${arm}")
@example(b"arm: ???")
@example(b"[" * 5_000)
@example(b"train: {lr: 1e999}")
@example(b"seed: 0x" + b"f" * 400)
@example(b"? {a: 1}\n: 2")
@example(b"2024-13-45: x")
def test_fuzz_config(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    try:
        config = load_config(path)
    except UserError:
        return
    assert isinstance(config, ExperimentConfig)


LEAVES = {name: meta for name, _, meta in walk(ExperimentConfig())}
MODELS = ("teacher.source=init", "student.source=init", "data.train=synthetic")


@st.composite
def told(draw: st.DrawFn) -> tuple[str, str]:
    """A key and what somebody might write for it: at its bounds and beside them, its choices, or anything."""
    name = draw(st.sampled_from(sorted(LEAVES)))
    low, high, choices = (LEAVES[name][which] for which in ("low", "high", "choices"))
    anything = st.sampled_from(
        ("", "null", "on", "010", "1:30", ".nan", ".inf", "[1]", "{a: 1}", "~", "*a", "'", "1e400")
    )
    anything = anything | st.text(max_size=6) | st.integers().map(str) | st.floats().map(repr)
    if low is not None:
        beside = [
            low,
            high,
            low + 1,
            high - 1,
            low - 1,
            high + 1,
            math.nextafter(low, high),
            math.nextafter(high, low),
        ]
        beside += [math.nextafter(low, -math.inf), math.nextafter(high, math.inf), (low + high) / 2]
        anything = anything | st.sampled_from(beside).map(str)
    if choices:
        anything = anything | st.sampled_from(choices) | st.sampled_from(choices).map(lambda word: word[:-1])
    text = draw(anything)
    return name, f"[{text}]" if draw(st.booleans()) else text


@fuzz
@given(st.lists(told(), min_size=1, max_size=2))
@example([("seed", "0x" + "f" * 400)])
@example([("data.test_sets", "[a.jsonl]")])
@example([("arm", "a\ud800")])
def test_fuzz_values(pairs: list[tuple[str, str]]) -> None:
    try:
        config = load_config(None, [*MODELS, *(f"{name}={text}" for name, text in pairs)])
    except ConfigError as error:
        said = str(error)
        assert "\n" not in said and said.startswith("command line") and len(said) < 600
        # a contradiction names another key too
        assert any(name.rpartition(".")[2] in said for name, _ in pairs)
    else:
        for name, value, meta in walk(config):
            for each in value if isinstance(value, list) else [value]:
                assert not meta["choices"] or each in meta["choices"], name
                assert not isinstance(each, float) or meta["low"] <= each <= meta["high"], name
        assert config_from_tree(yaml.safe_load(dump(config))) == config


@fuzz
@given(st.text(max_size=20), plain)
def test_fuzz_overrides(name: str, value: Any) -> None:
    try:
        config = config_from_tree({}, [f"{name}={json.dumps(value)}"])
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert isinstance(config, ExperimentConfig)


def _good_line() -> dict[str, Any]:
    revised = RevisedSequence(0, (2, 3), (4, 1), (4, 1), (), "no_disagreement", 0, 2)
    return RoundEntry(revised, (-1, -1), "a", "b").to_dict()


FIELDS = tuple(_good_line())
record_like = st.dictionaries(st.sampled_from(FIELDS), plain, min_size=1, max_size=3).map(
    lambda changed: json.dumps({**_good_line(), **changed}).encode()
)


@fuzz
@given(st.lists(record_like | line, max_size=3).map(b"\n".join), plain)
@example(b"[" * 100_000, None)
@example(json.dumps({**_good_line(), "response_ids": [True, 1]}).encode(), None)
@example(json.dumps({**_good_line(), "span_ids": [0.5, 1]}).encode(), None)
def test_fuzz_shards(tmp_path: Path, content: bytes, manifest: Any) -> None:
    """With a manifest that vouches for whatever the shard holds, and with one that holds anything."""
    folder = tmp_path / "round=0"
    path = folder / SHARD_NAME.format(0, 0)
    write_shard(path, "k", [])
    path.write_bytes(content)
    try:
        finish_round(folder, "k", [path.name])
        read = read_round(folder, "k")
        entries = None if read is None else read.entries
        assert entries is not None
        for entry in entries:
            sequence = entry.training_sequence()
            assert all(type(i) is int for i in (*sequence.prompt_ids, *sequence.response_ids, *sequence.span_ids))
    except DataError as error:
        assert "\n" not in str(error)
    (folder / "manifest.json").write_text(json.dumps({"key": "k", "shards": manifest}))
    try:
        read_round(folder, "k")
    except DataError as error:
        assert "\n" not in str(error)


@fuzz
@given(st.binary(max_size=300))
def test_fuzz_checkpoints(tmp_path: Path, content: bytes) -> None:
    path = resume_path(tmp_path, 1)
    write_checked(path, lambda file: file.write(content))
    with pytest.raises(DataError):
        read_checkpoint(path)
