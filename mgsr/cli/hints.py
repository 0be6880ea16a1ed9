"""What somebody meant who gave a command what belongs to another one, or typed as other programs take it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mgsr.config.shipped import Kind, as_typed, located
from mgsr.runtime.errors import UserError, did_you_mean
from mgsr.runtime.files import read_regular
from mgsr.runtime.wording import plural

# hyphens, dashes and minus signs that editors and web pages put in the place of `-`
_LONG_DASH = re.compile("[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]")
_QUOTES = frozenset("\u2018\u2019\u201c\u201d\u00ab\u00bb")
# a key as `mgsr config` lists it: dotted name, type, value, help
Described = tuple[str, str, Any, str]
_NUMBER = re.compile(r"-?[\d.]+([eE]-?\d+)?")


def hint_at_word(word: str, following: str, options: Iterable[str], overrides: bool) -> str | None:
    """What is wrong with a word of a command line and what to type; None where nothing is known to be.

    Args:
        following: the next word, or nothing.
        options: of the command, as `--seeds`.
        overrides: whether the command takes `key=value`.

    >>> hint_at_word("--train.lr", "1e-3", ["--resume"], True)
    '`--train.lr`: an override has no dashes before it; type train.lr=1e-3'
    """
    straight = _LONG_DASH.sub("-", word)
    name, equals, value = straight.partition("=")
    if not word.strip():
        return "a word of the command is empty: is a variable of the shell not set?"
    if word[0] in _QUOTES or value[:1] in _QUOTES:
        return f"`{word}`: has curly quotes, as editors make them; type straight ones (')"
    dash, bare = name.startswith("-") and not re.match(r"-\d", name), name.lstrip("-")
    key = bare.replace("-", "_")
    known = any(option.startswith(f"--{bare}") for option in options)
    if dash and overrides and key in _keys() and not known:
        given = value if equals else following if following and not following.startswith("-") else "VALUE"
        return f"`{word}`: an override has no dashes before it; type {key}={given}"
    if straight != word and (name.startswith("-") or _NUMBER.fullmatch(value)):
        typed = f"--{bare}{equals}{value}" if dash else straight
        return f"`{word}`: has a long dash, as editors make them; type {typed}"
    if dash and bare and not known and name not in options:
        return f"`{word}`: no such option{did_you_mean(name, [*options, *(_keys() if overrides else ())])}"
    return None


def hint_at_rest(words: Sequence[str], overrides: bool, command: str) -> str:
    """What to do about words that a command has no place for."""
    if command == "ablate" and (words[0].endswith((".yaml", ".yml")) or is_config(words[0])):
        return f"a configuration goes behind --config: type --config {words[0]}"
    key = words[0].rstrip(":=")
    if overrides and key in _keys():
        values = [word for word in words[1:] if word not in ("=", ":")]
        return f"an override is written without spaces: type {key}={values[0] if values else 'VALUE'}"
    return "overrides are written key=value" if overrides else "this command takes no overrides"


def _keys() -> list[str]:
    from mgsr.config.keys import describe
    from mgsr.config.schema import ExperimentConfig

    return [str(name) for name, *_ in describe(ExperimentConfig())]


def keys_below(name: str, keys: Sequence[Described]) -> list[Described]:
    """A key of this name, or the keys of a section of this name; of neither: none."""
    return [key for key in keys if key[0] == name or key[0].startswith(f"{name}.")]


def is_config(word: str) -> bool:
    """Whether there is a file of this name, or a configuration that comes with mgsr."""
    from mgsr.config.shipped import shipped

    return Path(word).exists() or word in shipped("config")


def refuse_unknown(word: str, keys: Sequence[Described]) -> None:
    """See that a word without the look of a file is the name of something.

    Raises:
        UserError: it is none; the nearest name.
    """
    from mgsr.config.shipped import shipped

    if is_config(word) or "/" in word or word.endswith((".yaml", ".yml")):
        return
    parts = [name.split(".") for name, *_ in keys]
    names = dict.fromkeys(".".join(part[:end]) for part in parts for end in range(1, len(part) + 1))
    near = did_you_mean(word, [*names, *shipped("config")]) or "; mgsr config [--list] names all there are"
    raise UserError(f"{word}: no file, config, section or key of this name{near}")


def check_config(path: str, command: str) -> None:
    """See that `path` is no run, study, model or file of data, where `mgsr COMMAND` takes a configuration.

    Raises:
        UserError: it is, with what to type; or it is neither a file nor the name of a shipped configuration.
    """
    place = _meant(path, "config", "study")
    kind, tree = _kind(place)
    if kind == "run":
        ways = {"train": f"train --resume {path}"}
        raise UserError(f"{path}: is a run folder; type mgsr {ways.get(command, f'{command} {path}/config.yaml')}")
    if kind == "study":
        ways = {"train": f"ablate {path}"}
        way = ways.get(command, f"{command} {_base_of(place, tree)}")
        raise UserError(f"{path}: is a study, not a config; type mgsr {way}")
    if kind == "model":
        raise UserError(f"{path}: is a model folder; name it in a config, or by student.source={path}")
    if kind == "rows":
        raise UserError(f"{path}: is a file of rows; name it in a config, or by data.train={path}")
    _refuse_folder(path, kind, "*.yaml")


def check_study(path: str, command: str) -> None:
    """As `check_config`, where a study is taken."""
    kind, tree = _kind(_meant(path, "study", "config"))
    if kind in ("run", "model"):
        raise UserError(f"{path}: is a {kind} folder; name a study, such as scrg")
    if kind == "config" and not {"study", "base"} & set(tree):
        ways = {"ablate": f"type mgsr train {path}"}
        raise UserError(f"{path}: is a config, not a study; {ways.get(command, 'name a study.yaml')}")
    if kind == "folder":
        _refuse_folder_of_runs(Path(path), command)
    _refuse_folder(path, kind, "study.yaml")


def _refuse_folder_of_runs(place: Path, command: str) -> None:
    """A run root, or a folder below it: name the studies there, or say that these runs are of none."""
    below, beside = (sorted(found.glob("*/study.yaml")) for found in (place, place.resolve().parent))
    runs = any(any(place.glob(f"{depth}seed=*/config.yaml")) for depth in ("", "*/", "*/*/"))
    if below:
        raise UserError(f"{place}: is a folder of studies; type mgsr {command} {below[0].parent}")
    if runs:
        other = f"; of a study there type mgsr {command} {place.parent / beside[0].parent.name}" if beside else ""
        raise UserError(f"{place}: holds runs of mgsr train, and no study.yaml as mgsr ablate writes it{other}")


def _meant(word: str, wanted: Kind, other: Kind) -> Path:
    """The file that a word stands for where one kind is wanted, and the other may have been meant."""
    try:
        return located(word, wanted)
    except UserError:
        try:
            return located(word, other)
        except UserError:
            pass
        raise


def _base_of(place: Path, tree: Mapping[Any, Any]) -> str:
    try:
        return as_typed(located(tree["base"], "config", place.parent), "config")
    except (UserError, KeyError, TypeError):
        return "CONFIG"


def check_run(path: str) -> None:
    """As `check_config`, where a run folder is taken."""
    place = Path(path)
    if place.is_file():
        folder = place.parent
        hint = f"type {folder}" if _kind(folder)[0] == "run" else "as <run_root>/<experiment>/<arm>/seed=<n>"
        raise UserError(f"{path}: is a file; name a run folder, {hint}")
    if _kind(place)[0] == "folder":
        # a run root, an experiment or an arm: no deeper, as `place` may be the root of a disk
        below = sorted(found for depth in ("", "*/", "*/*/") for found in place.glob(f"{depth}seed=*/config.yaml"))
        if below:
            raise UserError(f"{path}: holds {plural(len(below), 'run')}; name one, such as {below[0].parent}")


def check_model(path: str, option: str) -> None:
    """As `check_config`, where an option takes a model folder."""
    if _kind(Path(path))[0] == "run":
        raise UserError(f"{path}: is a run folder; type mgsr export {path} OUT, then {option} OUT")


def _refuse_folder(path: str, kind: str, pattern: str) -> None:
    if kind == "folder":
        inside = sorted(Path(path).glob(pattern))
        hint = f", such as {inside[0]}" if inside else ""
        raise UserError(f"{path}: is a folder; name a YAML file{hint}")


def _kind(path: Path) -> tuple[str, dict[Any, Any]]:
    """run, model, folder, rows, study or config, and what a YAML file holds; nothing for whatever cannot be read.

    What is wrong with a file that is none of these its reader says better.
    """
    import yaml

    try:
        if path.is_dir():
            names = {"run": "config.yaml", "model": "config.json"}
            return next((kind for kind, name in names.items() if (path / name).exists()), "folder"), {}
        if path.suffix in (".jsonl", ".json"):
            return "rows", {}
        tree = yaml.safe_load(read_regular(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return "", {}
    if not isinstance(tree, dict):
        return "", {}
    return "study" if "arms" in tree else "config", tree
