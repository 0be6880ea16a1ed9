"""Small JSON files, read in one way: what is broken, or not of the shape asked for, is one line and never empty.

A shape is plain data: a type, `None`, a tuple of alternatives, a mapping of fields (others are left alone), or one
of `Each`, `ListOf`, `Between` and `Maybe`. Numbers are finite, and no larger than anything a run can count. A
`Real` may be infinite or NaN.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from mgsr.runtime.errors import DataError
from mgsr.runtime.files import refused

LARGEST = 1e15
"""No figure or count of a run comes near it; a larger one is a mistake, and overflows sums."""


class Each(NamedTuple):
    """A mapping whose values all have one shape, whatever their names."""

    shape: Any
    fewest: int = 0


class ListOf(NamedTuple):
    """A list whose members all have one shape."""

    shape: Any
    fewest: int = 0


class Between(NamedTuple):
    """A number within two bounds, both included."""

    low: float
    high: float


class Maybe(NamedTuple):
    """A field that may be missing."""

    shape: Any


_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    Real: "a number",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
}


def read_json(
    path: Path, shape: Mapping[str, Any] | Each, remedy: str, *, missing: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A small file's content, of the shape asked for.

    Args:
        remedy: what the user can do where it is not; the end of the message.
        missing: what stands for a file that is not there; None: it has to be.

    Raises:
        DataError: it is not there, is no JSON, or a field is not what it should be.
        UserError: the system refuses to read it.
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: is no file; {remedy}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise DataError(f"{path}: is not there; {remedy}") from None
    except OSError as error:
        raise refused(path, error, "read") from error
    except UnicodeDecodeError:
        raise DataError(f"{path}: is no text (not UTF-8); {remedy}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: broken JSON at line {error.lineno} ({error.msg}); {remedy}") from None
    except (ValueError, RecursionError) as error:
        # a number of thousands of digits, or brackets within brackets
        raise DataError(f"{path}: JSON that cannot be read ({str(error)[:80]}); {remedy}") from None
    wrong = misshapen(content, shape)
    if wrong:
        raise DataError(f"{path}: {wrong}; {remedy}")
    return content


def misshapen(content: Any, shape: Any) -> str:
    """What of the content is not as the shape says; empty where all is.

    >>> misshapen({"steps": "3"}, {"steps": int})
    "`steps` is '3', not a whole number"
    """
    return next(_faults(content, shape, ""), "")


def _faults(value: Any, shape: Any, where: str) -> Iterator[str]:
    if isinstance(shape, (Each, Mapping)):
        if not isinstance(value, dict):
            yield _is_not(value, "a mapping", where)
        elif isinstance(shape, Each):
            if len(value) < shape.fewest:
                yield _is_not(value, f"a mapping of {shape.fewest} or more", where)
            for name, inner in value.items():
                yield from _faults(inner, shape.shape, _below(where, name))
        else:
            yield from _faults_of_fields(value, shape, where)
    elif isinstance(shape, ListOf):
        if not isinstance(value, list) or len(value) < shape.fewest:
            yield _is_not(value, f"a list of {shape.fewest} or more" if shape.fewest else "a list", where)
        else:
            for number, inner in enumerate(value):
                yield from _faults(inner, shape.shape, _below(where, str(number)))
    elif isinstance(shape, Between):
        if not _is(value, float) or not shape.low <= value <= shape.high:
            yield _is_not(value, f"a number of {shape.low:g} to {shape.high:g}", where)
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        if not any(_is(value, kind) for kind in kinds):
            yield _is_not(value, " or ".join("null" if k is None else _WORDS[k] for k in kinds), where)


def _faults_of_fields(value: Mapping[str, Any], shape: Mapping[str, Any], where: str) -> Iterator[str]:
    for name, inner in shape.items():
        place = _below(where, name)
        if name in value:
            yield from _faults(value[name], inner.shape if isinstance(inner, Maybe) else inner, place)
        elif not isinstance(inner, Maybe):
            yield f"`{place}` is missing"


def _is(value: Any, kind: Any) -> bool:
    if kind is None:
        return value is None
    if kind is Real:
        return isinstance(value, float) or _is(value, int)
    if kind in (int, float):
        numbers = (int, float) if kind is float else int
        # compared without becoming a float: an integer may be of any size, and NaN compares to nothing
        return isinstance(value, numbers) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST
    return isinstance(value, kind)


def _below(where: str, name: str) -> str:
    return f"{where}.{name[:40]}" if where else name[:40]


def _is_not(value: Any, wanted: str, where: str) -> str:
    if isinstance(value, int) and abs(value) > LARGEST:
        shown = "too large a number"
    else:
        shown = repr(value) if isinstance(value, (int, float)) else repr(value)[:40]
    return f"{f'`{where}`' if where else 'its content'} is {shown}, not {wanted}"
