"""What the keys of a study take: looks, arguments, contrasts and the answer that its report begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mgsr.runtime.errors import ConfigError, did_you_mean

ANSWER_KEYS = ("part", "arm", "where", "also", "elsewhere")
MOST_LOOKS = 100
TYPED = ("study", "base", "folder", "config")


def read_looks(path: str | Path, value: Any) -> int:
    if not isinstance(value, str) or not value.isdecimal() or not 1 <= int(value[:9]) <= MOST_LOOKS:
        raise ConfigError(f"{path}: `looks` takes a number of looks at the verdicts, from 1 to {MOST_LOOKS}")
    return int(value)


def read_arguments(path: str | Path, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(said, str) and "=" in said for said in value):
        raise ConfigError(f"{path}: `arguments` takes a list of key=value, as in [data.train=TRAIN.jsonl]")
    return tuple(value)


def read_typed(path: str | Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not set(value) <= set(TYPED) or not all(map(_is_word, value.values())):
        raise ConfigError(f"{path}: `typed` takes {', '.join(TYPED)}, as `mgsr ablate` writes them")
    return value


def _is_word(value: Any) -> bool:
    return isinstance(value, str)


def refuse_unknown_arm(path: str | Path, asked: Sequence[str], arms: Mapping[str, Any]) -> None:
    """See that a study has the arms that are asked for.

    Raises:
        ConfigError: one is unknown, with the way to type what may be meant.
    """
    unknown = next((arm for arm in asked if arm not in arms), None)
    if unknown is None:
        return
    parts = [part.strip() for part in unknown.split(",") if part.strip()]
    if "," in unknown and all(part in arms for part in parts):
        raise ConfigError(f"`{unknown}`: arms are separated by spaces; type --arms {' '.join(parts)}")
    if unknown.endswith((".yaml", ".yml")):
        raise ConfigError(f"`{unknown}`: is no arm; a configuration goes behind --config: --config {unknown}")
    raise ConfigError(f"{path}: no arm `{unknown}`{did_you_mean(unknown, arms)}; it has {', '.join(arms)}")


def read_contrasts(path: str | Path, tree: Any, arms: Mapping[str, Any]) -> dict[str, tuple[list[str], list[str]]]:
    found = {}
    for name, sides in tree.items() if isinstance(tree, Mapping) else [("contrasts", tree)]:
        named = isinstance(sides, Mapping) and set(sides) == {"with", "without"}
        if not named or not all(isinstance(side, list) and side for side in sides.values()):
            raise ConfigError(f"{path}: contrast `{name}` must name its arms, as in {{with: [a], without: [b]}}")
        for arm in map(str, (*sides["with"], *sides["without"])):
            if arm not in arms:
                raise ConfigError(
                    f"{path}: contrast `{name}` names {arm}, which is no arm{did_you_mean(arm, arms)}"
                )
        found[str(name)] = (list(map(str, sides["with"])), list(map(str, sides["without"])))
    return found


def read_answer(path: str | Path, tree: Any, arms: Mapping[str, Any]) -> dict[str, Any]:
    if not tree:
        return {}
    known = isinstance(tree, Mapping) and set(tree) <= set(ANSWER_KEYS) and {"part", "arm", "where"} <= set(tree)
    if not known:
        raise ConfigError(f"{path}: `answer` takes part, arm, where and perhaps also and elsewhere")
    also = tree.get("also") or {}
    if not isinstance(also, Mapping):
        raise ConfigError(f"{path}: `answer.also` maps words to arms")
    for arm in map(str, (tree["arm"], *also.values())):
        if arm not in arms:
            raise ConfigError(f"{path}: `answer` names {arm}, which is no arm{did_you_mean(arm, arms)}")
    others = tree.get("elsewhere") or []
    others = [others] if isinstance(others, Mapping) else others
    if not isinstance(others, list) or not all(map(_is_elsewhere, others)):
        raise ConfigError(f"{path}: `answer.elsewhere` takes study, arm and sets, or a list of them")
    return {**tree, "elsewhere": others}


def _is_elsewhere(other: Any) -> bool:
    named = isinstance(other, Mapping) and set(other) == {"study", "arm", "sets"}
    if not named or not isinstance(other["sets"], Mapping):
        return False
    return all(isinstance(word, str) for word in (other["study"], other["arm"], *other["sets"].values()))
