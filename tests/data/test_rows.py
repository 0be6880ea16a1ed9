"""Rows are read exactly, and every way a file can be wrong is named as file:line."""

from __future__ import annotations

import json
import random
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsr.data.rows import FieldNames, Row, load_hub_rows, read_rows, split_rows
from mgsr.runtime.errors import DataError, UserError

GOOD = '{"instruction": "Say it.", "output": "It."}'


def write(folder: Path, content: str | bytes, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(count: int) -> list[Row]:
    return [Row(index, f"Say {index}.", "", (f"{index}",)) for index in range(count)]


def test_reads_fields_references_and_places(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"instruction": "Say it.", "input": "loud", "output": "It!", "category": "say", "extra": 3}\n'
        "\r\n"
        '{"instruction": "Ask\\u2028it.", "input": null, "output": ["It?", "Is it?"]}\r\n',
    )
    assert read_rows(path) == [
        Row(0, "Say it.", "loud", ("It!",), "say", f"{path}:1"),
        Row(1, "Ask\u2028it.", "", ("It?", "Is it?"), "", f"{path}:3"),
    ]
    assert read_rows(str(path))[1].output == "It?"


def test_a_raw_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    text = "one\u2028two\u0085three"
    path = write(tmp_path, json.dumps({"instruction": text, "output": "x"}, ensure_ascii=False))
    assert [row.instruction for row in read_rows(path)] == [text]


def test_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    assert len(read_rows(write(tmp_path, b"\xef\xbb\xbf" + GOOD.encode()))) == 1
    assert len(read_rows(write(tmp_path, b"\xef\xbb\xbf[" + GOOD.encode() + b"]", "rows.json"))) == 1


def test_json_list_gives_the_line_of_each_object(tmp_path: Path) -> None:
    path = write(tmp_path, f'[\n  {GOOD},\n  {{"instruction": "[,",\n   "output": "x"}}, {GOOD}\n]', "rows.json")
    assert [row.where for row in read_rows(path)] == [f"{path}:2", f"{path}:3", f"{path}:4"]
    assert [row.id for row in read_rows(path)] == [0, 1, 2]


def test_hub_names_are_aliases_but_named_fields_come_first(tmp_path: Path) -> None:
    both = {"instruction": "Q", "context": "c", "response": "r", "input": "i", "output": "o"}
    dolly = {"instruction": "Q", "context": "c", "response": "r", "category": "open_qa"}
    own = {"question": "Q", "passage": "c", "answers": ["r", "s"], "kind": "k"}
    assert [(row.input, row.output) for row in read_rows(write(tmp_path, json.dumps(both)))] == [("i", "o")]
    (row,) = read_rows(write(tmp_path, json.dumps(dolly)))
    assert (row.input, row.references, row.category) == ("c", ("r",), "open_qa")
    names = FieldNames(instruction="question", input="passage", output="answers", category="kind")
    (row,) = read_rows(write(tmp_path, json.dumps(own)), fields=names)
    assert (row.instruction, row.input, row.references, row.category) == ("Q", "c", ("r", "s"), "k")


BAD_LINES = {
    '{"instruction": "Say it.", "output": ': "broken JSON at column",
    '["Say it.", "It."]': "a list, not an object",
    "3": "a number, not an object",
    '{"instruction": "Say it."}': "field `output` is missing",
    '{"instructon": "Say it.", "output": "It."}': "field `instruction` is missing; did you mean `instructon`",
    '{"instruction": 5, "output": "It."}': "`instruction` is a number, not a string",
    '{"instruction": "Say it.", "output": true}': "`output` is a boolean, not a string",
    '{"instruction": "Say it.", "output": null}': "`output` is null, not a string",
    '{"instruction": "Say it.", "output": [["It."]]}': "`output` is a list, not a string",
    '{"instruction": "Say it.", "input": {}, "output": "It."}': "`input` is an object, not a string",
    '{"instruction": "Say it.", "output": "It.", "category": 1}': "`category` is a number, not a string",
    '{"instruction": " \\n", "output": "It."}': "`instruction` is empty",
    '{"instruction": "Say it.", "output": ""}': "`output` is empty",
    '{"instruction": "Say it.", "response": " "}': "`response` is empty",
    '{"instruction": "Say it.", "output": ["It.", " "]}': "`output` is empty",
    '{"instruction": "Say it.", "output": []}': "`output` is an empty list",
    '{"instruction": "Say it.", "output": "\\ud83d"}': "`output` holds half a surrogate pair",
    "[" * 100_000: "JSON nested too deeply",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=[f"{message[:30]}" for message in BAD_LINES.values()])
def test_a_bad_line_is_named_in_one_line(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(DataError) as caught:
        read_rows(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: {BAD_LINES[line]}")
    assert ";" in message and "\n" not in message and "more)" not in message


def test_the_first_bad_line_is_named_and_the_others_counted(tmp_path: Path) -> None:
    path = write(tmp_path, f"{GOOD}\n{{}}\n{GOOD}\nnot json\n[]\n")
    with pytest.raises(DataError, match=r":2: field `instruction` is missing.*\(and 2 more\)$"):
        read_rows(path)


def test_bytes_that_are_not_utf8_are_named_by_their_line(tmp_path: Path) -> None:
    line = b'{"instruction": "caf\xe9", "output": "x"}'
    with pytest.raises(DataError, match=r"rows\.jsonl:2: not UTF-8 \(byte 0xe9\)"):
        read_rows(write(tmp_path, GOOD.encode() + b"\n" + line))
    with pytest.raises(DataError, match=r"rows\.json:3: not UTF-8 \(byte 0xe9\)"):
        read_rows(write(tmp_path, b"[\n" + GOOD.encode() + b",\n" + line + b"]", "rows.json"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", "", ":1: holds no rows"),
        ("rows.jsonl", "\n \n", ":1: holds no rows"),
        ("rows.json", "[]", ":1: holds no rows"),
        ("rows.json", GOOD, ":1: an object, not a list of objects"),
        ("rows.json", f"[{GOOD},\n\n{GOOD}", ":3: broken JSON at column"),
        ("rows.json", f"[{GOOD},\n 7]", ":2: a number, not an object"),
        ("rows.csv", "a,b", "rows.csv: not a .jsonl or .json file"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(write(tmp_path, content, name))
    assert message in str(caught.value) and ";" in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        read_rows(tmp_path / "none.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=r"folder\.jsonl: cannot be read"):
        read_rows(tmp_path / "folder.jsonl")


TEXT = st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(TEXT, st.text(st.characters(exclude_categories=["Cs"])), st.lists(TEXT, min_size=1)),
        min_size=1,
    )
)
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, drawn: list) -> None:
    folder = tmp_path_factory.mktemp("rows")
    objects = [{"instruction": ask, "input": given, "output": right} for ask, given, right in drawn]
    lines = "\n".join(json.dumps(value, ensure_ascii=False) for value in objects)
    for path in (write(folder, lines), write(folder, json.dumps(objects, indent=1), "rows.json")):
        read = [(row.instruction, row.input, list(row.references)) for row in read_rows(path)]
        assert read == drawn


def test_split_sizes_order_and_seed() -> None:
    parts = split_rows(rows(100), dev=20, test=10, seed=3)
    ids = {name: [row.id for row in part] for name, part in parts.items()}
    assert {name: len(part) for name, part in ids.items()} == {"train": 70, "dev": 20, "test": 10}
    assert sorted(ids["train"] + ids["dev"] + ids["test"]) == list(range(100))
    assert all(part == sorted(part) for part in ids.values())
    assert parts == split_rows(rows(100), dev=20, test=10, seed=3)
    assert ids["test"] != [row.id for row in split_rows(rows(100), dev=20, test=10, seed=4)["test"]]
    # Frozen: a change here would move rows between the splits of a published run.
    assert split_rows(rows(12), dev=2, test=1, seed=0)["dev"] == [rows(12)[3], rows(12)[7]]


def test_split_is_not_touched_by_the_global_generator() -> None:
    random.seed(1)
    first = split_rows(rows(50), dev=5, test=5)
    random.seed(2)
    assert split_rows(rows(50), dev=5, test=5) == first


def test_split_refuses_to_leave_nothing_to_train_on() -> None:
    assert len(split_rows(rows(4), dev=2, test=1)["train"]) == 1
    with pytest.raises(DataError, match="4 rows cannot give 2 dev and 2 test rows"):
        split_rows(rows(4), dev=2, test=2)
    with pytest.raises(ValueError, match="dev=-1"):
        split_rows(rows(4), dev=-1, test=1)


def hub(**sizes: int) -> dict[str, list[dict[str, str]]]:
    return {
        name: [{"instruction": f"{name} {index}", "context": "", "response": "r"} for index in range(size)]
        for name, size in sizes.items()
    }


def test_hub_with_train_alone_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda name: hub(train=30))
    parts = load_hub_rows("some/set", dev=10, test=5, seed=1)
    assert {name: len(part) for name, part in parts.items()} == {"train": 15, "dev": 10, "test": 5}
    assert parts["dev"][0].where == f"some/set[train]:{parts['dev'][0].id + 1}"


def test_hub_splits_are_used_where_they_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda name: hub(train=9, validation=4, test=3))
    parts = load_hub_rows("some/set", dev=1000, test=500)
    assert {name: len(part) for name, part in parts.items()} == {"train": 9, "dev": 4, "test": 3}
    assert {row.instruction.split()[0] for row in parts["dev"]} == {"validation"}
    monkeypatch.setattr(datasets, "load_dataset", lambda name: hub(train=9, test=3))
    parts = load_hub_rows("some/set", dev=2, test=500)
    assert {name: len(part) for name, part in parts.items()} == {"train": 7, "dev": 2, "test": 3}
    assert {row.instruction.split()[0] for row in parts["dev"]} == {"train"}


def test_hub_failures_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"'some/set'.*ConnectionError: no route\).*local \.jsonl") as caught:
        load_hub_rows("some/set")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: hub(test=3))
    with pytest.raises(UserError, match="no `train` split, only test"):
        load_hub_rows("some/set")
    broken = {"train": [{"instruction": "Q", "response": "r"}, {"instruction": "Q"}]}
    monkeypatch.setattr(datasets, "load_dataset", lambda name: broken)
    with pytest.raises(DataError, match=r"some/set\[train\]:2: field `output` is missing"):
        load_hub_rows("some/set")
