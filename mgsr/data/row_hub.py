"""Rows of data sets on the hub, through `datasets`.

A source is ``owner/name``, or ``owner/name:config`` where a set has several configurations; a ``[split]`` may
follow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mgsr.config.schema import FieldsConfig
from mgsr.data.row_files import RECOGNISED, SUFFIXES, near_files, rows_from_objects
from mgsr.data.rows import Row
from mgsr.runtime.errors import UserError
from mgsr.runtime.network import SECONDS, is_reachable

Read = Callable[[], list[Row]]
_NAME = re.compile(r"(?P<id>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^:\[\]]+))?(?:\[(?P<split>[^\[\]]+)\])?")
# of a split: what other sets call it
_SPLITS = {"train": ("train",), "dev": ("validation", "dev", "valid", "val"), "test": ("test",)}
# no name of a data set on the hub ends so
_FILES = (*SUFFIXES, ".txt", ".arrow", ".xlsx", ".xls", ".yaml", ".yml", ".zip", ".zst")
_LETTERS = re.compile(r"\.[A-Za-z]\w{1,6}$")
_MOST = 300


def is_file(source: str) -> bool:
    """A local file rather than a hub id, whether or not it is there: what the hub is asked for costs seconds."""
    if not _NAME.fullmatch(source) or source.startswith(".") or source.lower().endswith(_FILES):
        return True
    path = Path(source)
    # `train.jsnl`, or `data/train.jsnl` where there is a folder `data`
    written_so = _LETTERS.search(source) and (path.parent == Path() or path.parent.is_dir())
    return path.exists() or bool(written_so)


def hub_id(source: str) -> str:
    """The data set's own name, without its configuration and split."""
    found = _NAME.fullmatch(source)
    return found["id"] if found else source


def hub_splits(
    source: str, role: str, *, fields: FieldsConfig = RECOGNISED, strict: bool = True
) -> dict[str, Read]:
    """Readers of the splits of a data set, as ``train``, ``dev`` and ``test``, as far as it has them.

    Args:
        role: what a split that `source` itself names is taken for; it is then the only one.
        fields, strict: as in `mgsr.data.row_files.read_rows`.

    Raises:
        UserError: the hub cannot be reached, or knows no such data set, configuration or split. A reader raises
            DataError for a row that cannot be used, named as ``source[split]:row``.
    """
    named = _NAME.fullmatch(source)
    assert named is not None, source
    bare = source.partition("[")[0]
    hub = _loaded(source, named["id"], named["config"])
    wanted: dict[str, tuple[str, ...]] = {role: (named["split"],)} if named["split"] else _SPLITS
    found = {name: next((each for each in options if each in hub), None) for name, options in wanted.items()}
    readers: dict[str, Read] = {
        name: partial(_rows, hub[split], source=f"{bare}[{split}]", fields=fields, strict=strict)
        for name, split in found.items()
        if split is not None
    }
    if not readers or (role not in readers and "train" not in readers):
        raise UserError(
            f"data set `{source}` has no split `{named['split'] or 'train'}`, only {', '.join(sorted(hub))}; name "
            f"one of them, data.{role}='{bare}[{min(hub)}]'"
        )
    return readers


def _loaded(source: str, name: str, config: str | None) -> Any:
    """All splits of a data set, by name."""
    import datasets

    try:
        with _offline(not is_reachable()):
            return datasets.load_dataset(name, *filter(None, [config]))
    except ConnectionError:
        reason = (
            f"the hub cannot be reached (no answer within {SECONDS} s), and neither a file nor its cache holds it"
        )
    except datasets.exceptions.DatasetNotFoundError:
        reason = "no file and no public data set of the hub has this name (private or gated? `hf auth login`)"
    except Exception as error:  # the hub's client raises errors of several libraries
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        several = re.search(r"available configs: \[(.*)\]", str(error))
        if several and config is None:
            configs = re.findall(r"'([^']+)'", several[1])
            reason = (
                f"it has several configurations, {', '.join(configs[:12])}: name one, as in {name}:{configs[0]}"
            )
        else:
            reason = f"{type(error).__name__}: {(lines or [''])[0]}"[:_MOST]
    raise UserError(f"data set `{source}` cannot be loaded: {reason}{near_files(Path(source))}") from None


@contextmanager
def _offline(on: bool) -> Iterator[None]:
    """Let `datasets` look into its cache alone, instead of asking a hub that does not answer for half a minute."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = on or before
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _rows(split: Any, **named: Any) -> list[Row]:
    return rows_from_objects(_objects(split), **named)


def _objects(split: Any) -> Iterator[tuple[int, Any]]:
    """As they are stored: pictures and sounds beside the text are not decoded."""
    tables = split.with_format("arrow").iter(batch_size=1000)
    return enumerate((value for table in tables for value in table.to_pylist()), 1)
