"""Instruction rows: read from a file or a hub, checked once, and split by a fixed rule."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mgsr.runtime.errors import DataError, RowsError, UserError, did_you_mean
from mgsr.runtime.files import read_regular

ALL = "all"
"""The kind of rows whose source names none."""


class Message(NamedTuple):
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One instruction with its right answers, exactly as they stand in the source.

    Attributes:
        id: place of the row in its source, counted from 0; keys the random draws of the row.
        instruction: what is asked; never blank.
        input: further context; may be empty.
        references: right answers, at least one; the first is the one to train on.
        category: kind of task, empty where the source names none.
        where: ``file:line``, for messages.
        messages: all turns before the answer where the source is a conversation; `instruction` is then the text
            of the last user's turn, and `input` is empty.
    """

    id: int
    instruction: str
    input: str
    references: tuple[str, ...]
    category: str = ""
    where: str = ""
    messages: tuple[Message, ...] = ()

    @property
    def output(self) -> str:
        """The answer to train on: the first reference."""
        return self.references[0]


@dataclass(frozen=True)
class FieldNames:
    """The names a source gives its fields.

    A name that is absent is looked for under the one that databricks-dolly-15k uses: `context` for the
    input, `response` for the output.
    """

    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    category: str = "category"


DEFAULT_FIELDS = FieldNames()
_INPUT_ALIAS, _OUTPUT_ALIAS = "context", "response"


def read_rows(path: str | Path, *, fields: FieldNames = DEFAULT_FIELDS) -> list[Row]:
    """Read a ``.jsonl`` file (an object a line, blank lines skipped) or a ``.json`` file (a list of objects).

    Every object has an instruction and an output (a string, or a list of equally right references); the
    input and the category may be missing, null or empty.

    Raises:
        DataError: naming the first bad line as ``file:line``, what is wrong, what to do, and how many
            lines more are bad.
    """
    path = Path(path)
    try:
        content = read_regular(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); pass a readable file") from None
    reader = {".jsonl": _jsonl_objects, ".json": _json_objects}.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: not a .jsonl or .json file; convert it, one object with `instruction` a line")
    return rows_from_objects(reader(content, str(path)), source=str(path), fields=fields)


def rows_from_objects(
    numbered: Iterable[tuple[int, Any]], *, source: str, fields: FieldNames = DEFAULT_FIELDS
) -> list[Row]:
    """Check parsed objects, given with their line numbers, and number them from 0.

    An object that could not be parsed is given as the DataError that says why.

    Raises:
        RowsError: the first bad object, and how many more there are.
        DataError: no object at all.
    """
    rows: list[Row] = []
    bad: list[str] = []
    for line, value in numbered:
        try:
            if isinstance(value, DataError):
                raise value
            rows.append(_row(value, fields, len(rows), f"{source}:{line}"))
        except DataError as error:
            bad.append(str(error))
    if bad:
        raise RowsError(bad)
    if not rows:
        raise DataError(f"{source}:1: holds no rows; give it at least one object with `{fields.instruction}`")
    return rows


def split_rows(rows: Sequence[Row], *, dev: int = 1000, test: int = 500, seed: int = 0) -> dict[str, list[Row]]:
    """Split by a seeded shuffle into ``train``, ``dev`` and ``test``; nothing else decides who goes where.

    The rows keep their ids and, within a split, their order in the source. The draw uses
    `random.Random.random` alone, whose stream Python keeps from version to version.

    Raises:
        ValueError: a negative size.
        DataError: no row would be left to train on.

    >>> rows = [Row(i, "Say it.", "", ("It.",)) for i in range(6)]
    >>> {name: [row.id for row in part] for name, part in split_rows(rows, dev=2, test=1).items()}
    {'train': [0, 1, 4], 'dev': [3, 5], 'test': [2]}
    """
    if dev < 0 or test < 0:
        raise ValueError(f"split sizes must not be negative: dev={dev}, test={test}")
    if dev + test >= len(rows):
        raise DataError(
            f"{len(rows)} rows cannot give {dev} dev and {test} test rows and still one to train on; "
            "lower the two sizes"
        )
    generator = random.Random(seed)
    keys = [generator.random() for _ in rows]
    order = sorted(range(len(rows)), key=lambda index: (keys[index], index))
    places = {"dev": order[:dev], "test": order[dev : dev + test], "train": order[dev + test :]}
    return {name: [rows[index] for index in sorted(places[name])] for name in ("train", "dev", "test")}


def load_hub_rows(
    dataset_id: str, *, dev: int = 1000, test: int = 500, seed: int = 0, fields: FieldNames = DEFAULT_FIELDS
) -> dict[str, list[Row]]:
    """Rows of a Hugging Face dataset as ``train``, ``dev`` and ``test``.

    The hub's own ``validation`` (or ``dev``) and ``test`` splits are used where they exist; what is missing
    is cut from its ``train`` split by `split_rows` (databricks-dolly-15k has ``train`` alone).

    Raises:
        UserError: the hub cannot be reached, knows no such dataset, or has no ``train`` split.
        DataError: a row that cannot be used, named as ``dataset_id[split]:row``.
    """
    from datasets import load_dataset

    try:
        hub = load_dataset(dataset_id)
    except Exception as error:  # the hub's client raises errors of several libraries
        reason = str(error).strip().splitlines() or [""]
        raise UserError(
            f"dataset {dataset_id!r} cannot be loaded from the hub ({type(error).__name__}: {reason[0]}); "
            "check its name and the network, or pass the path of a local .jsonl file"
        ) from error
    found = {
        name: rows_from_objects(enumerate(hub[split], 1), source=f"{dataset_id}[{split}]", fields=fields)
        for name, split in (("train", "train"), ("dev", "validation"), ("dev", "dev"), ("test", "test"))
        if split in hub
    }
    if "train" not in found:
        raise UserError(
            f"dataset {dataset_id!r} has no `train` split, only {', '.join(sorted(hub))}; "
            "pass another dataset or the paths of local .jsonl files"
        )
    cut = split_rows(
        found["train"], dev=0 if "dev" in found else dev, test=0 if "test" in found else test, seed=seed
    )
    return {name: cut["train"] if name == "train" else found.get(name, cut[name]) for name in cut}


def _jsonl_objects(content: bytes, source: str) -> Iterator[tuple[int, Any]]:
    # Only b"\n" ends a line: str.splitlines would also split at U+2028 within a text.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            yield number, _parse(line, source, number)


def _json_objects(content: bytes, source: str) -> Iterator[tuple[int, Any]]:
    parsed = _parse(content.removeprefix(b"\xef\xbb\xbf"), source, 1)
    if not isinstance(parsed, list):
        what = parsed if isinstance(parsed, DataError) else _not(parsed, "a list of objects", f"{source}:1")
        yield 1, what
        return
    text = content.removeprefix(b"\xef\xbb\xbf").decode()
    decoder = json.JSONDecoder()
    line, counted, position = 1, 0, text.index("[") + 1
    for _ in parsed:  # the text is known to be sound: walk it only to learn each object's line
        while text[position] in " \t\r\n,":
            position += 1
        line, counted = line + text.count("\n", counted, position), position
        value, position = decoder.raw_decode(text, position)
        yield line, value


def _parse(content: bytes, source: str, line: int) -> Any:
    """The parsed value, or the DataError that says why there is none."""
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        return DataError(f"{source}:{line}: not UTF-8 (byte {error.object[error.start]:#04x}); save it as UTF-8")
    except json.JSONDecodeError as error:
        where = f"{source}:{line + error.lineno - 1}"
        return DataError(f"{where}: broken JSON at column {error.colno} ({error.msg}); repair or remove it")
    except ValueError as error:
        # a number of thousands of digits
        return DataError(f"{source}:{line}: JSON that cannot be read ({error}); repair or remove it")
    except RecursionError:
        return DataError(f"{source}:{line}: JSON nested too deeply; give flat objects")


def _row(value: Any, fields: FieldNames, number: int, where: str) -> Row:
    if not isinstance(value, Mapping):
        raise _not(value, "an object", where)
    instruction = _text(_field(value, fields.instruction, where), fields.instruction, where)
    output_name = _present(value, fields.output, _OUTPUT_ALIAS)
    output = _field(value, output_name, where)
    if not isinstance(output, list | tuple):
        output = [output]
    if not output:
        raise DataError(f"{where}: `{output_name}` is an empty list; give at least one reference")
    return Row(
        id=number,
        instruction=instruction,
        input=_optional(value, _present(value, fields.input, _INPUT_ALIAS), where),
        references=tuple(_text(reference, output_name, where) for reference in output),
        category=_optional(value, fields.category, where),
        where=where,
    )


def _present(value: Mapping[str, Any], name: str, alias: str) -> str:
    return alias if name not in value and alias in value else name


def _field(value: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in value:
        hint = did_you_mean(name, (key for key in value if isinstance(key, str)))
        raise DataError(f"{where}: field `{name}` is missing{hint or '; add it, or name the field that holds it'}")
    return value[name]


def _text(value: Any, name: str, where: str) -> str:
    text = _string(value, name, where)
    if not text.strip():
        raise DataError(f"{where}: `{name}` is empty; fill it in or remove the row")
    return text


def _optional(value: Mapping[str, Any], name: str, where: str) -> str:
    found = value.get(name)
    return "" if found is None else _string(found, name, where)


def _string(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: `{name}` is {_kind(value)}, not a string; put it in quotes")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: `{name}` holds half a surrogate pair; write the character whole") from None
    return value


def _not(value: Any, wanted: str, where: str) -> DataError:
    return DataError(f"{where}: {_kind(value)}, not {wanted}; give {wanted}")


def _kind(value: Any) -> str:
    names: dict[Callable[..., Any], str] = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
    }
    return "null" if value is None else names.get(type(value), "a number")
