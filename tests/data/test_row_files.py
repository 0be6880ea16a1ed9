"""Files of rows are read exactly, and every way one can be wrong is named as file:line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsr.config.schema import FieldsConfig
from mgsr.data.row_files import read_rows
from mgsr.data.rows import Row
from mgsr.runtime.errors import DataError

GOOD = '{"instruction": "Say it.", "output": "It."}'


def write(folder: Path, content: str | bytes, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


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
    names = FieldsConfig(instruction="question", input="passage", output="answers", category="kind")
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
    '{"instruction": "Say it.", "output": NaN}': "`output` is a number, not a string",
    '{"instruction": "Say it.", "output": ["It.", 1, false]}': "`output` is a boolean, not a string",
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
        ("rows.json", '{"prompt": ["Q"], "completion": ["A"]}', ":1: an object, not a list of objects"),
        (
            "rows.json",
            f'{{"version": 1, "data": [{GOOD}]}}',
            ":1: an object with `version`, `data`, not a list of objects; give the list under `data` itself",
        ),
        ("rows.json", f'{{\n"rows": [{GOOD}]\n}}', ":1: an object with `rows`, not a list of objects; give the"),
        (
            "rows.jsonl",
            "\n" + json.dumps(json.loads(GOOD), indent=1),
            ":2: one object stands on several lines; write one a line, or a list of them as .json",
        ),
        ("rows.json", f"[{GOOD},\n\n{GOOD}", ":3: broken JSON at column"),
        ("rows.json", f"[{GOOD},\n 7]", ":2: a number, not an object"),
        ("rows.txt", "a,b", "rows.txt: rows are read from .jsonl, .ndjson, .json, .csv, .tsv and .parquet"),
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


COLUMNS = ("question", "context", "answer", "topic")
TABLE = [
    ("Say “it”, please.", "", 'He said: "It, now."', "a"),
    ("Two\nlines\r\nof it", " kept ", "Café;\tsemi", ""),
    ("Third", "c", "T" * 200_000, "b"),
]


def as_csv(delimiter: str = ",", end: str = "\n") -> str:
    cells = [COLUMNS, *TABLE]
    return end.join(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells) + end


def test_every_format_gives_equal_rows(tmp_path: Path) -> None:
    objects = [dict(zip(COLUMNS, row, strict=True)) for row in TABLE]
    lines = "\n".join(json.dumps(value) for value in objects).encode()
    crlf, mark = lines.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf"
    (tmp_path / "folder").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(objects), tmp_path / "rows.parquet")
    paths = [
        tmp_path / "rows.parquet",
        write(tmp_path, lines),
        write(tmp_path, mark + crlf, "crlf.jsonl"),
        write(tmp_path, lines, "rows.ndjson"),
        write(tmp_path, gzip.compress(lines, mtime=0), "rows.jsonl.gz"),
        write(tmp_path, json.dumps(objects, indent=2), "list.json"),
        write(tmp_path, json.dumps(objects), "list.JSONL"),
        write(tmp_path, mark + lines, "lines.json"),
        write(tmp_path, gzip.compress(json.dumps(objects).encode()), "rows.json.gz"),
        write(tmp_path, as_csv(), "rows.csv"),
        write(tmp_path, mark + as_csv(end="\r\n").encode(), "marked.csv"),
        write(tmp_path, as_csv(";"), "semicolons.csv"),
        write(tmp_path, as_csv("\t"), "rows.tsv"),
        write(tmp_path, gzip.compress(as_csv().encode()), "rows.csv.gz"),
    ]
    expected = [(ask, further, (right,)) for ask, further, right, _ in TABLE]
    for path in paths:
        rows = read_rows(path)
        assert [(row.instruction, row.input, row.references) for row in rows] == expected, path
        assert [row.id for row in rows] == [0, 1, 2]
    assert [row.where.rpartition(":")[2] for row in read_rows(tmp_path / "rows.csv")] == ["2", "3", "6"]
    assert [row.where.rpartition(":")[2] for row in read_rows(tmp_path / "lines.json")] == ["1", "2", "3"]
    assert [row.where.rpartition(":")[2] for row in read_rows(tmp_path / "rows.parquet")] == ["1", "2", "3"]


def test_parquet_holds_nested_fields_and_conversations(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Q", "tool_calls": None}, {"role": "assistant", "content": "A"}]
    nested = [{"messages": turns, "n": 2}, {"messages": [{"role": "system", "content": "S"}, *turns], "n": None}]
    path = tmp_path / "chat.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(nested), path)
    assert [len(row.messages) for row in read_rows(path)] == [1, 2]
    squad = [
        {"question": "Q", "context": "C", "answers": {"text": ["A", "B"], "answer_start": [3, 4]}, "at": None}
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(squad), path)
    (row,) = read_rows(path, fields=FieldsConfig(output="answers.text"))
    assert (row.instruction, row.input, row.references) == ("Q", "C", ("A", "B"))
    with pytest.raises(DataError, match=r"chat\.parquet:1: `answers` is an object.*as in answers\.text"):
        read_rows(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "", ":1: holds no rows"),
        ("rows.csv", "question,answer\n", ":1: holds no rows"),
        ("rows.csv", "question,answer\n\nQ,\n", ":3: `answer` is empty"),
        (
            "rows.csv",
            'question,answer\n"Q\nR",A\nQ\n',
            ":4: 1 cell in a table of 2 columns; write the missing `answer`, or remove the row",
        ),
        ("rows.csv", "question,answer\nQ,A, or B\n", ":2: 3 cells in a table of 2 columns; put a cell"),
        ("rows.csv", "messages\nQ,A\n", ":2: 2 cells in a table of 1 column; put a cell"),
        (
            "rows.csv",
            "question|answer\nQ|A\n",
            ":1: the cells seem to be separated by a `|`; save them with commas",
        ),
        ("rows.tsv", "question,answer\nQ,A\n", ":1: the cells seem to be separated by a comma; save them with"),
        ("rows.csv", " question,question \nQ,A\n", ":1: two columns are called `question`"),
        ("rows.csv", 'question,answer\nQ,A\n"Q" R,A\n', ":3: a broken row"),
        ("rows.csv", 'question,answer\nQ,A\n"Q,A\nQ,A\n', ":3: a broken row"),
        ("rows.csv", "question,question\nQ,A\n", ":1: two columns are called `question`"),
        ("rows.csv", b"question,answer\nQ,caf\xe9\n", ":2: not UTF-8 (byte 0xe9)"),
        ("rows.tsv", "question\tanswr\nQ\tA\n", ":2: field `output` is missing"),
        ("rows.jsonl.gz", GOOD, "rows.jsonl.gz: cannot be unpacked"),
        ("rows.jsonl.gz", gzip.compress(GOOD.encode(), mtime=0)[:-9], "rows.jsonl.gz: cannot be unpacked"),
        ("rows.txt.gz", GOOD, "rows.txt.gz: rows are read from"),
        ("rows.gz", GOOD, "rows.gz: rows are read from"),
        ("rows.parquet", GOOD, ":1: broken Parquet"),
    ],
)
def test_bad_tables_and_archives(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(write(tmp_path, content, name))
    said = str(caught.value)
    assert message in said and ";" in said and "\n" not in said and said.startswith(str(tmp_path))


def test_a_table_as_people_write_it(tmp_path: Path) -> None:
    def read(content: str, **named: str) -> list[tuple[str, str, tuple[str, ...]]]:
        rows = read_rows(write(tmp_path, content, "rows.csv"), fields=FieldsConfig(**named))
        return [(row.instruction, row.input, row.references) for row in rows]

    assert read("question, answer\nQ,A\n") == read("Question ,ANSWER\nQ,A\n") == [("Q", "", ("A",))]
    # what may be empty may be left away
    assert read("question,answer,context,category\nQ,A\nR,B,C\n") == [("Q", "", ("A",)), ("R", "C", ("B",))]
    with pytest.raises(DataError, match=":2: 1 cell in a table of 2 columns; write the missing `text`"):
        read("question,text\nQ\n", output="text")
    assert read('question,answers\nQ,"[""a"", ""b""]"\n') == [("Q", "", ("a", "b"))]
    for cell in ("[1, 2]", "[]", "[sic", "[" * 10_000, '"a"'):
        quoted = cell.replace('"', '""')
        assert read(f'question,answers\nQ,"{quoted}"\n') == [("Q", "", (cell,))]
    # of an object the text is the answer
    (row,) = read_rows(write(tmp_path, json.dumps({"question": "Q", "answers": '["a"]'})))
    assert row.references == ('["a"]',)


def test_a_mistyped_name_is_told_with_the_right_one(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "train.jsonl")
    with pytest.raises(DataError, match=r"no such file; check the path; did you mean `.*/train\.jsonl`"):
        read_rows(tmp_path / "tran.jsonl")
    with pytest.raises(DataError, match=r"it is a directory\); name a file in it, such as .*/train\.jsonl"):
        read_rows(tmp_path)
