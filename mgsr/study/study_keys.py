"""What the keys of a study take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mgsr.runtime.errors import ConfigError, did_you_mean

TYPED = ("study", "base", "folder", "config")


def read_asked(path: str | Path, value: Any, arms: Mapping[str, Any]) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{path}: `asked` takes a list of arms, as in [removed]")
    for arm in map(str, value):
        if arm not in arms:
            raise ConfigError(f"{path}: `asked` names {arm}, which is no arm{did_you_mean(arm, arms)}")
    return tuple(map(str, value))


def read_seeds(path: str | Path, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(str(seed).isdecimal() for seed in value):
        raise ConfigError(f"{path}: `seeds` takes a list of training seeds, as in [0, 1, 2]")
    found = tuple(int(seed) for seed in value)
    if len(set(found)) < len(found):
        raise ConfigError(f"{path}: `seeds` names a seed twice; leave one out")
    return found


def read_margin(path: str | Path, value: Any) -> float:
    try:
        margin = float(value)
    except (TypeError, ValueError):
        margin = -1.0
    if not 0 < margin <= 100:
        raise ConfigError(f"{path}: `margin` takes a difference in ROUGE-L, such as 0.5")
    return margin


def read_settings(path: str | Path, value: Any) -> dict[str, tuple[str, str]]:
    named = isinstance(value, Mapping) and all(
        isinstance(word, str) and word.count("/") == 1 for word in value.values()
    )
    if not named:
        raise ConfigError(f"{path}: `settings` maps words to study/arm, as in {{real text: real_text/no_scrg}}")
    pairs = {str(name): word.split("/") for name, word in value.items()}
    return {name: (study, arm) for name, (study, arm) in pairs.items()}


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
