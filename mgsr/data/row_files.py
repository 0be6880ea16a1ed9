"""Files of rows: JSON, JSON lines, CSV, TSV and Parquet, each object with its place, and checked once."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mgsr.config.schema import FieldsConfig
from mgsr.data.row_shapes import MISSING, Cells, field, row_of, wrong_kind
from mgsr.data.rows import Row
from mgsr.runtime.errors import DataError, RowsError, did_you_mean
from mgsr.runtime.files import read_regular
from mgsr.runtime.wording import plural

RECOGNISED = FieldsConfig()
"""No field is named: each is found by what people call it."""
Objects = Iterator[tuple[int, Any]]
_MARK = b"\xef\xbb\xbf"
# of a text in a cell; the default of 128 KiB is less than some conversations have
_LONGEST_CELL = 2**31 - 1
_MARKS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "`|`", "^": "`^`", "~": "`~`"}
_SHOWN, _LONGEST = 8, 40


def read_rows(path: str | Path, *, fields: FieldsConfig = RECOGNISED, strict: bool = True) -> list[Row]:
    """Read a file of rows: ``.jsonl``, ``.json``, ``.csv``, ``.tsv``, each also with ``.gz``, or ``.parquet``.

    Every object has a question and an answer (a string, or a list of equally right references), or a list of turns
    that ends with the assistant's; see `mgsr.data.row_shapes`. Other fields may be missing, null or empty.

    Args:
        fields: names that the user gives.
        strict: every row has them; otherwise a row that has none of them is recognised.

    Raises:
        DataError: naming the first bad line as ``file:line`` (of Parquet, the row), what is wrong, what to do,
            and how many lines more are bad.
    """
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    reader = _READERS.get("".join(suffixes[-2:-1] if packed else suffixes[-1:]))
    try:
        content = read_regular(path)
    except FileNotFoundError:
        from_here = "" if path.is_absolute() else f" (it starts from the working folder, {Path.cwd()})"
        raise DataError(f"{path}: no such file; check the path{from_here}{near_files(path)}") from None
    except IsADirectoryError:
        inside = next(_row_files(path), None)
        example = f", such as {inside}" if inside else ""
        raise DataError(f"{path}: cannot be read (it is a directory); name a file in it{example}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); pass a readable file") from None
    if reader is None:
        *most, last = _READERS
        raise DataError(f"{path}: rows are read from {', '.join(most)} and {last}; convert it, or rename it")
    if packed:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: cannot be unpacked ({error}); make it anew with gzip") from None
    return rows_from_objects(reader(content, str(path)), source=str(path), fields=fields, strict=strict)


def rows_from_objects(
    numbered: Iterable[tuple[int, Any]], *, source: str, fields: FieldsConfig = RECOGNISED, strict: bool = True
) -> list[Row]:
    """Check parsed objects, given with their line numbers, and number them from 0.

    An object that could not be parsed is given as the DataError that says why.

    Args:
        fields, strict: as in `read_rows`.

    Raises:
        RowsError: the first bad object, and how many more there are.
        DataError: no object at all, or none that has a field which may be missing and was named.
    """
    rows: list[Row] = []
    bad: list[str] = []
    named = [name for name in (fields.instruction, fields.output, fields.messages) if name]
    unseen = {key: name for key in ("input", "category") if (name := getattr(fields, key)) and strict}
    for line, value in numbered:
        try:
            if isinstance(value, DataError):
                raise value
            unseen = {key: name for key, name in unseen.items() if field(value, name) is MISSING}
            known = strict or not named or any(field(value, name) is not MISSING for name in named)
            rows.append(row_of(value, fields if known else RECOGNISED, len(rows), f"{source}:{line}"))
        except DataError as error:
            bad.append(str(error))
    if bad:
        raise RowsError(bad)
    if not rows:
        raise DataError(f"{source}:1: holds no rows; give it at least one object with `instruction` and `output`")
    for key, name in unseen.items():
        raise DataError(f"{source}: no row has the field `{name}`; set data.fields.{key} to one that is there")
    return rows


def near_files(path: Path) -> str:
    """A hint at the file of nearly that name which lies beside it."""
    try:
        beside = [str(each) for each in _row_files(path.parent)]
    except (OSError, ValueError):
        return ""
    return did_you_mean(str(path), beside)


def _row_files(folder: Path) -> Iterator[Path]:
    """Files in a folder whose names say that they hold rows."""
    return (each for each in sorted(folder.iterdir()) if each.suffix.lower() in (*_READERS, ".gz"))


def _json_lines(content: bytes, source: str) -> Objects:
    content = content.removeprefix(_MARK)
    if content.lstrip()[:1] == b"[" and isinstance(_parse(content, source, 1), list):
        # a list that was given the other name
        yield from _json_list(content, source)
        return
    # Only b"\n" ends a line: str.splitlines would also split at U+2028 within a text.
    lines = [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    if lines and lines[0][1].strip() == b"{":
        where = f"{source}:{lines[0][0]}"
        yield (
            lines[0][0],
            DataError(
                f"{where}: one object stands on several lines; write one a line, or a list of them as .json"
            ),
        )
        return
    for number, line in lines:
        yield number, _parse(line, source, number)


def _json_list(content: bytes, source: str) -> Objects:
    content = content.removeprefix(_MARK)
    first, _, rest = content.strip().partition(b"\n")
    if rest and isinstance(_parse(first, source, 1), dict):
        # lines under the other name
        yield from _json_lines(content, source)
        return
    parsed = _parse(content, source, 1)
    if not isinstance(parsed, list):
        yield 1, parsed if isinstance(parsed, DataError) else _no_list(parsed, source)
        return
    text = content.decode()
    decoder = json.JSONDecoder()
    line, counted, position = 1, 0, text.index("[") + 1
    for _ in parsed:  # the text is known to be sound: walk it only to learn each object's line
        while text[position] in " \t\r\n,":
            position += 1
        line, counted = line + text.count("\n", counted, position), position
        value, position = decoder.raw_decode(text, position)
        yield line, value


def _no_list(parsed: Any, source: str) -> DataError:
    """Why this is no list of objects; where there is one inside, that it is wanted."""
    held = parsed if isinstance(parsed, dict) else {}
    lists = {name: value for name, value in held.items() if value and isinstance(value, list)}
    inside = [name for name, value in lists.items() if all(isinstance(each, dict) for each in value)]
    if not inside:
        return wrong_kind(parsed, "a list of objects", f"{source}:1")
    names = ", ".join(f"`{name[:_LONGEST]}`" for name in [*held][:_SHOWN])
    return DataError(
        f"{source}:1: an object with {names}{', ...' if len(held) > _SHOWN else ''}, not a list of objects; give "
        f"the list under `{inside[0][:_LONGEST]}` itself"
    )


def _parse(content: bytes, source: str, line: int) -> Any:
    """The parsed value, or the DataError that says why there is none."""
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError as error:
        return _not_utf8(error, source, line)
    except json.JSONDecodeError as error:
        where = f"{source}:{line + error.lineno - 1}"
        return DataError(f"{where}: broken JSON at column {error.colno} ({error.msg}); repair or remove it")
    except ValueError as error:
        # a number of thousands of digits
        return DataError(f"{source}:{line}: JSON that cannot be read ({error}); repair or remove it")
    except RecursionError:
        return DataError(f"{source}:{line}: JSON nested too deeply; give flat objects")


def _not_utf8(error: UnicodeDecodeError, source: str, line: int = 1) -> DataError:
    line += error.object.count(b"\n", 0, error.start)
    return DataError(f"{source}:{line}: not UTF-8 (byte {error.object[error.start]:#04x}); save it as UTF-8")


def _comma_separated(content: bytes, source: str) -> Objects:
    # spreadsheets of many countries put semicolons
    first = content.partition(b"\n")[0]
    yield from _table(content, source, max(",;\t", key=lambda mark: first.count(mark.encode())))


def _tab_separated(content: bytes, source: str) -> Objects:
    yield from _table(content, source, "\t")


def _table(content: bytes, source: str, delimiter: str) -> Objects:
    """Rows under their header; a cell in quotes may hold line breaks, so a row is where its first line is."""
    try:
        text = content.removeprefix(_MARK).decode()
    except UnicodeDecodeError as error:
        yield 1, _not_utf8(error, source)
        return
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    line = 1
    try:
        for cells in reader:
            if cells and not names:
                names = [name.strip() for name in cells]
                mark = max(_MARKS, key=cells[0].count)
                if len(names) == 1 and mark in cells[0]:
                    yield (
                        line,
                        DataError(
                            f"{source}:{line}: the cells seem to be separated by a {_MARKS[mark]}; save them with "
                            "commas, semicolons or tabs as .csv, or with tabs as .tsv"
                        ),
                    )
                    return
                twice = next((name for name in names if name and names.count(name) > 1), None)
                if twice is not None:
                    yield line, DataError(f"{source}:{line}: two columns are called `{twice}`; rename one")
                    return
            elif len(cells) > len(names):
                yield (
                    line,
                    DataError(
                        f"{source}:{line}: {plural(len(cells), 'cell')} in a table of "
                        f"{plural(len(names), 'column')}; put a cell that holds the delimiter in double quotes"
                    ),
                )
            elif cells:
                yield line, Cells(zip_longest(names, cells, fillvalue=MISSING))
            line = reader.line_num + 1
    except csv.Error as error:
        yield line, DataError(f"{source}:{line}: a broken row ({error}); double the quotes within a quoted cell")


def _parquet(content: bytes, source: str) -> Objects:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        batches = parquet.ParquetFile(pyarrow.BufferReader(content)).iter_batches()
        for number, value in enumerate((value for batch in batches for value in batch.to_pylist()), 1):
            yield number, value
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        yield number + 1, DataError(f"{source}:{number + 1}: broken Parquet ({reason}); write it anew")


_READERS: Mapping[str, Callable[[bytes, str], Objects]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_list,
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
    ".parquet": _parquet,
}
SUFFIXES = (*_READERS, ".gz")
