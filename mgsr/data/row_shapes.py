"""What a parsed object says as a row: a conversation, or question and answer under the names that people use.

A name that the configuration gives (`data.fields`) wins over those that are recognised. A list of turns counts as
a conversation wherever it stands: under `messages`, or as `prompt` and `completion`. So does a question with a
system text beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from mgsr.config.schema import FieldsConfig
from mgsr.data.rows import Message, Row
from mgsr.runtime.errors import DataError, did_you_mean
from mgsr.runtime.wording import plural

# of several that a row has, the first one that is not null; exact names come before those in other letters
_KNOWN = {
    "instruction": ("instruction", "prompt", "question", "query", "problem"),
    "input": ("input", "context"),
    "output": ("output", "completion", "response", "answer", "answers", "solution"),
    "messages": ("messages", "conversations", "conversation"),
    "category": ("category",),
    "system": ("system", "system_prompt"),
}
_ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "model", "bot", "ai"),
}
_ROLE_OF = {alias: role for role, aliases in _ROLES.items() for alias in aliases}
_TURN = "an object with role and content"
_SHOWN, _LONGEST = 8, 40
MISSING: Any = object()


class Cells(dict[str, Any]):
    """A row of a table: each value is text, so a list stands as JSON, or `MISSING` where the row is too short."""


def row_of(value: Any, fields: FieldsConfig, number: int, where: str) -> Row:
    """The row that an object holds.

    Args:
        fields: names that the user gives; an empty one is recognised.
        number: the row's place in its source; where: `file:line`, for messages.

    Raises:
        DataError: it holds none: what is wrong, and what to do.
    """
    if not isinstance(value, Mapping):
        raise wrong_kind(value, "an object", where)
    category = _category(value, fields, where)
    name, turns = _messages(value, fields, where)
    system = _system(value, fields, where)
    if name is not None:
        return _conversation(_turns(turns, name, where), system, name, number, where, category)
    name, asked = _needed(value, "instruction", fields, where)
    answer_name, answer = _needed(value, "output", fields, where)
    if _is_turns(asked) or _is_turns(answer):
        both = [*_as_turns(asked, "user", name, where), *_as_turns(answer, "assistant", answer_name, where)]
        return _conversation(both, system, answer_name, number, where, category)
    answers = _held(answer) if isinstance(value, Cells) else answer
    answers = answers if isinstance(answers, list | tuple) else [answers]
    if not answers:
        raise DataError(f"{where}: `{answer_name}` is an empty list; give at least one reference")
    references = tuple(_text(_shown(each), answer_name, where) for each in answers)
    input_name, further = _found(value, "input", fields)
    text = _text(asked, name, where)
    behind = "" if further in (None, MISSING) else _string(further, input_name, where)
    if not system:
        return Row(number, text, behind, references, category, where)
    text = f"{text}\n\n{behind}" if behind.strip() else text
    return Row(number, text, "", references, category, where, (*system, Message("user", text)))


def field(value: Any, name: str) -> Any:
    """What stands under a name, `MISSING` if nothing does; `a.b` is `b` of `a` where no field is called so itself.

    >>> field({"answers": {"text": ["yes"]}}, "answers.text.0")
    'yes'
    """
    if isinstance(value, Mapping) and name in value:
        return value[name]
    head, dot, rest = name.partition(".")
    if isinstance(value, list | tuple) and head.isdecimal() and int(head) < len(value):
        found = value[int(head)]
    elif isinstance(value, Mapping) and dot:
        found = value.get(head, MISSING)
    else:
        return MISSING
    return field(found, rest) if dot else found


def wrong_kind(value: Any, wanted: str, where: str) -> DataError:
    return DataError(f"{where}: {_kind(value)}, not {wanted}; give {wanted}")


def _found(value: Mapping[str, Any], what: str, fields: FieldsConfig) -> tuple[str, Any]:
    """Name and content of a part of a row, the content `MISSING` where it has none."""
    named = getattr(fields, what)
    if named:
        return named, field(value, named)
    present = _present(value, what)
    name = next((name for name in present if value[name] not in (None, MISSING)), (present or _KNOWN[what])[0])
    return name, value.get(name, MISSING)


def _present(value: Mapping[str, Any], what: str) -> list[str]:
    exact = [name for name in _KNOWN[what] if name in value]
    return exact + [key for name in _KNOWN[what] for key in value if key not in exact and str(key).lower() == name]


def _needed(value: Mapping[str, Any], what: str, fields: FieldsConfig, where: str) -> tuple[str, Any]:
    name, content = _found(value, what, fields)
    if content is not MISSING:
        return name, content
    if isinstance(value, Cells) and name in value:
        count = sum(cell is not MISSING for cell in value.values())
        raise DataError(
            f"{where}: {plural(count, 'cell')} in a table of {plural(len(value), 'column')}; write the missing "
            f"`{name[:_LONGEST]}`, or remove the row"
        )
    names = [key for key in value if isinstance(key, str)]
    if not names:
        raise DataError(f"{where}: field `{name}` is missing, and all others; fill the row in or remove it")
    key = f"data.fields.{what}"
    hint = did_you_mean(name, names)
    if not hint:
        shown = ", ".join(f"`{known[:_LONGEST]}`" for known in names[:_SHOWN])
        hint = f"; the row has {shown}{', ...' if len(names) > _SHOWN else ''}:"
    mend = (
        f"set {key} to the right one"
        if getattr(fields, what)
        else f"rename it, or name it in the configuration, {key}=NAME"
    )
    raise DataError(f"{where}: field `{name}` is missing{hint} {mend}")


def _category(value: Mapping[str, Any], fields: FieldsConfig, where: str) -> str:
    name, content = _found(value, "category", fields)
    content = json.dumps(content) if isinstance(content, bool) else _shown(content)
    # beside what is asked, something else may go by this name
    skipped = content in (None, MISSING) or not (isinstance(content, str) or fields.category)
    return "" if skipped else _string(content, name, where)


def _system(value: Mapping[str, Any], fields: FieldsConfig, where: str) -> list[Message]:
    """The system's turn where a field of its own holds it, and the configuration takes it for nothing else."""
    texts = {name: value[name] for name in _present(value, "system") if name not in astuple(fields)}
    said = (name for name, text in texts.items() if isinstance(text, str) and text.strip())
    return [Message("system", _string(texts[name], name, where)) for name in said][:1]


def _held(cell: Any) -> Any:
    """The list of strings that a cell holds as JSON, any other cell as it is."""
    try:
        held = json.loads(cell) if cell.lstrip().startswith("[") else []
    except (ValueError, RecursionError):
        return cell
    return held if held and all(isinstance(each, str) for each in held) else cell


def _shown(value: Any) -> Any:
    """A finite number as its text, anything else as it is."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return json.dumps(value) if is_whole or (isinstance(value, float) and math.isfinite(value)) else value


def _messages(value: Mapping[str, Any], fields: FieldsConfig, where: str) -> tuple[str | None, Any]:
    """Name and turns of a conversation; no name where the row is none."""
    name, content = _found(value, "messages", fields)
    if fields.messages:
        return _needed(value, "messages", fields, where)
    if content in (None, MISSING) or fields.instruction or fields.output:
        return None, None
    # the column of a table whose row is filled in elsewhere
    other = _found(value, "instruction", fields)[1]
    plain = not _is_turns(content) and not (isinstance(content, str) and content.lstrip().startswith("["))
    return (None, None) if plain and other not in (None, MISSING) else (name, content)


def _is_turns(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(turn, Mapping) for turn in value)


def _as_turns(value: Any, role: str, name: str, where: str) -> list[Message]:
    return _turns(value, name, where) if _is_turns(value) else [Message(role, _text(value, name, where))]


def _turns(value: Any, name: str, where: str) -> list[Message]:
    if isinstance(value, str):
        # a cell of a table, which holds a list as text
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError(f"{where}: `{name}` is a string, not a list of turns; write it as JSON") from None
    if not isinstance(value, list | tuple) or not value:
        what = "an empty list" if value == [] else _kind(value)
        raise DataError(f"{where}: `{name}` is {what}, not a list of turns; give each turn as {_TURN}")
    turns = [_turn(turn, f"turn {number} of `{name}`", where) for number, turn in enumerate(value, 1)]
    # an empty system turn says that there is none
    return [turn for turn in turns if turn.role != "system" or turn.content.strip()]


def _turn(turn: Any, place: str, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where}: {place} is {_kind(turn)}, not {_TURN}; give each turn so")
    role, content = _either(turn, "role", "from"), _either(turn, "content", "value")
    if not isinstance(role, str):
        raise DataError(f"{where}: {place} has no role; give it one of system, user and assistant")
    known = _ROLE_OF.get(role.lower())
    if known is None:
        raise DataError(
            f"{where}: {place} has the role `{role[:_LONGEST]}`; roles are system, user and assistant: rename "
            "it, or remove the row"
        )
    if any(turn.get(name) for name in ("tool_calls", "function_call")):
        raise DataError(f"{where}: {place} calls tools, and only text is trained on; remove the row")
    if _is_turns(content):
        content = "".join(_part(part, place, where) for part in content)
    if known == "system" and content is None:
        content = ""
    text = f"the content of {place}"
    return Message(known, _string(content, text, where) if known == "system" else _text(content, text, where))


def _either(turn: Mapping[str, Any], name: str, other: str) -> Any:
    return turn.get(other) if turn.get(name) is None else turn[name]


def _part(part: Mapping[str, Any], place: str, where: str) -> str:
    if part.get("type") != "text":
        kind = str(part.get("type"))[:_LONGEST]
        raise DataError(
            f"{where}: {place} has a part of the type `{kind}`, and only text is trained on; remove the row"
        )
    return _string(part.get("text"), f"the text of {place}", where)


def _conversation(
    turns: Sequence[Message], system: Sequence[Message], name: str, number: int, where: str, category: str
) -> Row:
    """The last turn is the answer, all before it the prompt; `system` begins it where no turn does."""
    if not turns or turns[-1].role != "assistant":
        last = f"a turn of the {turns[-1].role}" if turns else "no turn"
        raise DataError(
            f"{where}: `{name}` ends with {last}, and the answer is the assistant's last turn; take away what "
            "follows it, or remove the row"
        )
    asked = next((turn.content for turn in reversed(turns[:-1]) if turn.role == "user"), None)
    if asked is None:
        raise DataError(f"{where}: `{name}` has no turn of the user before the answer; add it or remove the row")
    begin = () if turns[0].role == "system" else system
    return Row(number, asked, "", (turns[-1].content,), category, where, (*begin, *turns[:-1]))


def _text(value: Any, name: str, where: str) -> str:
    text = _string(value, name, where)
    if not text.strip():
        raise DataError(f"{where}: {_quoted(name)} is empty; fill it in or remove the row")
    return text


def _string(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        mend = "fill it in or remove the row" if value is None else "write it as a string"
        if isinstance(value, Mapping) and value and "`" not in name:
            mend = f"name the text in it by data.fields, as in {name}.{str(next(iter(value)))[:_LONGEST]}"
        raise DataError(f"{where}: {_quoted(name)} is {_kind(value)}, not a string; {mend}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: {_quoted(name)} holds half a surrogate pair; write the character whole"
        ) from None
    return value


def _quoted(name: str) -> str:
    """A field in quotes; a place that is told in words has its own."""
    return name if "`" in name else f"`{name}`"


def _kind(value: Any) -> str:
    kinds: list[tuple[type | tuple[type, ...], str]] = [
        (Mapping, "an object"),
        ((list, tuple), "a list"),
        (str, "a string"),
        (bytes, "binary data"),
        (bool, "a boolean"),
        ((int, float), "a number"),
    ]
    other = "null" if value is None else f"of the type {type(value).__name__}"
    return next((name for kind, name in kinds if isinstance(value, kind)), other)
