"""Rows as people have them: each common shape is recognised, named fields win, and what cannot be used is told."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from mgsr.config.keys import walk
from mgsr.config.schema import DataConfig, FieldsConfig
from mgsr.data.chat import turns_of
from mgsr.data.row_files import RECOGNISED, rows_from_objects
from mgsr.data.row_shapes import row_of
from mgsr.data.rows import Message, Row
from mgsr.runtime.errors import DataError, UserError


def read(value: Any, **fields: str) -> Row:
    return row_of(value, FieldsConfig(**fields), 0, "rows.jsonl:1")


def parts(row: Row) -> tuple[str, str, tuple[str, ...]]:
    return row.instruction, row.input, row.references


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "value",
    [
        {"instruction": "Q", "input": "", "output": "A"},
        {"instruction": "Q", "input": None, "output": ["A"], "history": [], "score": 0.5},
        {"instruction": "Q", "context": "", "response": "A", "category": "open_qa"},
        {"instruction": "Q", "output": None, "response": "A"},
        {"prompt": "Q", "completion": "A"},
        {"prompt": "Q", "response": "A"},
        {"question": "Q", "answer": "A", "id": 7},
        {"question": "Q", "answers": ["A"]},
        {"query": "Q", "response": "A"},
        {"problem": "Q", "solution": "A"},
        {"Question": "Q", "ANSWER": "A"},
        {"Instruction": "R", "instruction": "Q", "Prompt": "R", "output": None, "Output": "A", "System": " "},
        {"prompt": "Q", "completion": "A", "system": None, "system_prompt": ""},
        {"prompt": "Q", "completion": "A", "system": {"fan": 1}, "category": ["a"]},
        {"prompt": "Q", "completion": "A", "category": float("nan")},
        {"messages": None, "conversations": [], "prompt": "Q", "completion": "A"},
        {"messages": 2, "prompt": "Q", "completion": "A"},
    ],
)
def test_a_question_and_its_answer(value: Any) -> None:
    row = read(value)
    assert parts(row) == ("Q", "", ("A",)) and row.messages == ()


def test_further_context_and_several_references() -> None:
    assert parts(read({"question": "Q", "context": "C", "answers": ["A", "B"]})) == ("Q", "C", ("A", "B"))
    assert parts(read({"instruction": "Q", "input": None, "context": "C", "output": "A"})) == ("Q", "C", ("A",))


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [user("Q"), assistant("A")], "prompt": "Q"},
        {"messages": [{**user("Q"), "tool_calls": None, "from": None}, {**assistant("A"), "weight": 1}]},
        {"messages": [{"role": "system", "content": ""}, user("Q"), assistant("A")]},
        {"messages": [{"role": "system", "content": None}, user("Q"), assistant("A")]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, assistant("A")]},
        {"messages": '[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]', "n": "2"},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {"conversation": [{"role": "User", "content": "Q"}, {"role": "model", "content": "A"}]},
        {"prompt": [user("Q")], "completion": [assistant("A")]},
        {"prompt": "Q", "completion": [assistant("A")]},
        {"prompt": [user("Q")], "completion": "A"},
    ],
)
def test_a_conversation_of_one_turn(value: Any) -> None:
    row = read(value)
    assert parts(row) == ("Q", "", ("A",)) and row.messages == (Message("user", "Q"),)
    assert row.asked == read({"prompt": "Q", "completion": "B"}).asked


def test_the_last_turn_of_the_assistant_is_the_answer() -> None:
    before = [{"role": "system", "content": "Be kind."}, user("Q"), assistant("A"), user("R")]
    system, others = Message("system", "Be kind."), tuple(Message(**turn) for turn in before[1:])
    sharegpt = [{"from": "human" if turn.role == "user" else "gpt", "value": turn.content} for turn in others]
    for value in (
        {"messages": [*before, assistant("B")]},
        {"prompt": before, "completion": [assistant("B")]},
        {"conversations": [*sharegpt, {"from": "gpt", "value": "B"}], "system": "Be kind."},
    ):
        row = read(value)
        assert parts(row) == ("R", "", ("B",)) and row.messages == (system, *others)
    parted = [{"type": "text", "text": "Q"}, {"type": "text", "text": " R"}]
    assert read({"messages": [{"role": "user", "content": parted}, assistant("A")]}).instruction == "Q R"


@pytest.mark.parametrize("name", ["system", "system_prompt", "System"])
def test_a_system_text_beside_the_question_is_its_first_turn(name: str) -> None:
    value = {name: "Be kind.", "question": "Q", "input": "", "answers": ["A", "B"], "category": "c"}
    system = Message("system", "Be kind.")
    row = read(value)
    assert (*parts(row), row.category) == ("Q", "", ("A", "B"), "c")
    assert row.messages == (system, Message("user", "Q"))
    joined = read({**value, "input": "C"})
    assert (joined.instruction, joined.input) == ("Q\n\nC", "")
    assert joined.messages == (system, *turns_of(Row(0, "Q", "C", ("A",))))
    for turned in (
        {"prompt": [user("Q")], "completion": "A", name: "Be kind."},
        {"messages": [user("Q"), assistant("A")], name: "Be kind."},
    ):
        assert read(turned).messages == (system, Message("user", "Q"))
    own = {"messages": [{"role": "system", "content": "Own"}, user("Q"), assistant("A")], name: "Be kind."}
    assert read(own).messages == (Message("system", "Own"), Message("user", "Q"))
    # where the configuration takes it for something else, it is that
    assert read({**value, "input": ""}, input=name) == Row(0, "Q", "Be kind.", ("A", "B"), "c", "rows.jsonl:1")
    blank = read({**value, name: "\n"})
    assert blank == read({key: text for key, text in value.items() if key != name}) and blank.messages == ()


def test_numbers_are_their_text() -> None:
    for number, text in ((4, "4"), (-2.5, "-2.5"), (0, "0"), (10**400, f"{10**400}")):
        row = read({"question": "Q", "answer": number, "category": number})
        assert (row.references, row.category) == ((text,), text)
    assert read({"question": "Q", "answers": ["four", 4]}).references == ("four", "4")
    assert read({"question": "Q", "answer": "A", "category": True}).category == "true"
    assert read({"question": "Q", "answer": "A", "kind": False}, category="kind").category == "false"
    with pytest.raises(DataError, match="`kind` is a list, not a string"):
        read({"question": "Q", "answer": "A", "kind": ["a"]}, category="kind")


def test_a_name_that_is_given_wins() -> None:
    value = {"instruction": "I", "output": "O", "messages": [user("M"), assistant("N")], "own": {"text": ["A"]}}
    assert parts(read(value)) == ("M", "", ("N",))
    assert parts(read(value, output="own.text")) == ("I", "", ("A",))
    assert parts(read(value, output="own.text.0")) == ("I", "", ("A",))
    assert parts(read(value, instruction="output", output="instruction")) == ("O", "", ("I",))
    assert parts(read({**value, "chat": [user("C"), assistant("D")]}, messages="chat")) == ("C", "", ("D",))
    assert read({"a.b": "Q", "a": {"b": "R"}, "output": "A"}, instruction="a.b").instruction == "Q"
    assert read({**value, "kind": "k"}, category="kind").category == "k"
    assert read({"q": "Q", "p": "P", "output": "A"}, instruction="q", input="p").input == "P"
    assert read({"q": "Q", "p": None, "output": "A"}, instruction="q", input="p").input == ""


BAD = [
    ({}, "field `instruction` is missing, and all others; fill the row in or remove it"),
    (
        {"text": "Q", "label": "A"},
        "field `instruction` is missing; the row has `text`, `label`: rename it, or name it in",
    ),
    (
        {"prompt": "Q", "reply": "A"},
        "field `output` is missing; the row has `prompt`, `reply`: rename it, or name it in",
    ),
    (
        {"instructon": "Q", "input": "C", "output": "A"},
        "field `instruction` is missing; did you mean `instructon`?",
    ),
    (
        {"instruction": "Q", "answers": {"text": ["A"]}},
        "`answers` is an object, not a string; name the text in it by",
    ),
    ({"question": 4, "answer": "A"}, "`question` is a number, not a string; write it as a string"),
    ({"question": "Q", "answer": b"4"}, "`answer` is binary data, not a string"),
    ({"question": "Q", "answer": date(2024, 1, 2)}, "`answer` is of the type date, not a string"),
    ({"messages": []}, "`messages` is an empty list, not a list of turns"),
    ({"messages": "Hello"}, "`messages` is a string, not a list of turns"),
    ({"messages": {"role": "user"}}, "`messages` is an object, not a list of turns"),
    ({"messages": ["Hello"]}, "turn 1 of `messages` is a string, not an object with role and content"),
    ({"messages": [user("Q")]}, "`messages` ends with a turn of the user, and the answer is the assistant's last"),
    ({"messages": [assistant("A")]}, "`messages` has no turn of the user before the answer"),
    ({"messages": [{"role": "system", "content": " "}]}, "`messages` ends with no turn"),
    ({"messages": [{"content": "Q"}]}, "turn 1 of `messages` has no role"),
    (
        {"messages": [user("Q"), {"role": "tool", "content": "4"}]},
        "turn 2 of `messages` has the role `tool`; roles",
    ),
    ({"messages": [user("Q"), {**assistant("A"), "tool_calls": [{}]}]}, "turn 2 of `messages` calls tools"),
    ({"messages": [user(" "), assistant("A")]}, "the content of turn 1 of `messages` is empty"),
    (
        {"messages": [user("Q"), {"role": "assistant", "content": None}]},
        "the content of turn 2 of `messages` is null",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "has a part of the type `image`, and only"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "the text of turn 1 of `messages` is null"),
    ({"prompt": [user("Q")], "completion": [user("A")]}, "`completion` ends with a turn of the user"),
    ({"prompt": [user("Q")]}, "field `output` is missing"),
    ({"messages": [user("\ud83d"), assistant("A")]}, "the content of turn 1 of `messages` holds half a surrogate"),
]


@pytest.mark.parametrize(("value", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_what_cannot_be_used_is_told(value: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(value)
    said = str(caught.value)
    assert (
        said.startswith("rows.jsonl:1: ")
        and message in said
        and "\n" not in said
        and ("; " in said or "? " in said)
    )


def test_every_message_promises_a_key_that_there_is() -> None:
    keys = {f"data.{name}" for name, _, _ in walk(DataConfig())}
    for value, _ in BAD:
        with pytest.raises(DataError) as caught:
            read(value)
        for word in str(caught.value).replace("=", " ").replace(",", " ").split():
            if word.startswith("data."):
                assert word in keys or word == "data.fields", word


def test_a_name_that_no_row_has_is_no_name() -> None:
    rows = [(1, {"question": "Q", "answer": "A"}), (2, {"question": "Q", "answer": "A", "passage": "P"})]
    with pytest.raises(
        DataError, match=r"field `anser` is missing; did you mean `answer`\? set data\.fields\.output"
    ):
        rows_from_objects(rows, source="a.jsonl", fields=FieldsConfig(output="anser"))
    with pytest.raises(DataError, match=r"^a\.jsonl: no row has the field `pasage`; set data\.fields\.input"):
        rows_from_objects(rows, source="a.jsonl", fields=FieldsConfig(input="pasage"))
    read = rows_from_objects(rows, source="a.jsonl", fields=FieldsConfig(input="passage"))
    assert [row.input for row in read] == ["", "P"]


def test_another_source_may_have_another_shape() -> None:
    rows = [(1, {"question": "Q", "answer": "A"}), (2, {"q": "R", "answer": "B", "question": "no"})]
    fields = FieldsConfig(instruction="q", input="further")
    read = rows_from_objects(rows, source="a.jsonl", fields=fields, strict=False)
    assert [row.instruction for row in read] == ["Q", "R"]
    with pytest.raises(UserError, match="field `q` is missing"):
        rows_from_objects(rows, source="a.jsonl", fields=fields)
    assert rows_from_objects(rows[:1], source="a.jsonl") == rows_from_objects(
        rows[:1], source="a.jsonl", fields=RECOGNISED, strict=False
    )
