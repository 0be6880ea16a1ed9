"""Configurations and studies that come with mgsr, by their names, and what a word on a command line means.

In a checkout they are `configs/<name>.yaml` and `experiments/<name>/study.yaml`. A wheel carries them as package
data, in `mgsr/shipped` under the same names (`pyproject.toml` maps them).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

import yaml

from mgsr.runtime.errors import ConfigError, did_you_mean

Kind = Literal["config", "study"]

_PACKAGE = Path(__file__).resolve().parents[1]
_PLACES = {"config": "configs/*.yaml", "study": "experiments/*/study.yaml"}


def shipped(kind: Kind) -> dict[str, Path]:
    """Name -> file of all that come with mgsr."""
    packed = _packed()
    found = sorted((packed if packed.is_dir() else _PACKAGE.parent).glob(_PLACES[kind]))
    return {path.parent.name if kind == "study" else path.stem: path for path in found}


def is_packed(path: Path) -> bool:
    """Whether a file is part of an installed package: nothing is written beside it."""
    return _packed() in path.resolve().parents


def located(word: str | Path, kind: Kind, folder: Path | None = None) -> Path:
    """The file that is meant by a path, or by the name of what is shipped; of a study by its folder too.

    A file of that name comes before what is shipped.

    Args:
        folder: where relative paths start (default: the working folder).

    Returns:
        The file; or a folder, which whoever reads it refuses.

    Raises:
        ConfigError: there is no such file, and none of that name is shipped.
    """
    path, known = Path(word) if folder is None else folder / word, shipped(kind)
    if kind == "study" and (path / "study.yaml").is_file():
        return path / "study.yaml"
    there = path.exists()
    if str(word) in known and (not there or path.is_dir()):
        return known[str(word)]
    if not there:
        what = {"config": "config file", "study": "study"}[kind]
        raise ConfigError(f"{path}: no such {what}{_near(path, kind)}")
    return path


def as_typed(path: str | Path, kind: Kind, folder: str | Path = ".") -> str:
    """What a reader in a folder types for a file: the name of a shipped one, otherwise the way to it."""
    for name, there in shipped(kind).items():
        if there.resolve() == Path(path).resolve():
            return name
    return Path(os.path.relpath(path, folder)).as_posix()


def listed(kind: Kind) -> dict[str, str]:
    """Name -> a sentence on it: a study's question, or what the comments on top of a file say."""
    return {name: _sentence(path.read_text(encoding="utf-8")) for name, path in shipped(kind).items()}


def _packed() -> Path:
    return _PACKAGE / "shipped"


def _near(path: Path, kind: Kind) -> str:
    """A hint at what somebody meant; without one, where the names stand."""
    known = shipped(kind)
    name = path.parent.name if path.name == "study.yaml" else path.stem
    if name in known:
        return f"; `{name}` alone is a {kind} that comes with mgsr"
    beside = [str(found) for found in path.parent.glob("*.yaml")]
    near = did_you_mean(str(path), [*beside, *known])
    return near or f"; mgsr config --list names every {kind} that comes with mgsr"


def _sentence(text: str) -> str:
    """
    >>> _sentence("# make demo\\n# Small models. Minutes.\\nexperiment: demo")
    'Small models.'
    """
    comments = re.match(r"(#.*\n)*", text)
    lines = [line.lstrip("# ") for line in (comments[0] if comments else "").splitlines()]
    # commands, which stand there too, begin with a small letter
    begin = next((number for number, line in enumerate(lines) if line[:1].isupper()), len(lines))
    said = yaml.safe_load(text).get("question") or " ".join(lines[begin:])
    return re.split(r"(?<=[.?]) ", said)[0]
