"""What the keys of a study take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mgsr.runtime.errors import ConfigError, did_you_mean

TYPED = ("study", "base", "folder", "config", "question")


def _is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(holds, value))


def _is_margin(value: Any) -> bool:
    try:
        return 0 < float(value) <= 100
    except (TypeError, ValueError):
        return False


def _is_pair(value: Any) -> bool:
    return isinstance(value, str) and value.count("/") == 1 and all(value.split("/"))


SHAPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "study": (lambda value: isinstance(value, str), "takes words"),
    "question": (lambda value: isinstance(value, str), "takes words"),
    "asked": (lambda value: isinstance(value, list), "takes a list of arms, as in [removed]"),
    "seeds": (
        lambda value: _is_list(value, lambda seed: str(seed).isdecimal()),
        "takes a list of training seeds, as in [0, 1, 2]",
    ),
    "margin": (_is_margin, "takes a difference in ROUGE-L, such as 0.5"),
    "settings": (
        lambda value: isinstance(value, Mapping) and all(value) and all(map(_is_pair, value.values())),
        "maps words to study/arm, as in {real text: real_text/no_scrg}",
    ),
    "arguments": (
        lambda value: _is_list(value, lambda said: isinstance(said, str) and "=" in said),
        "takes a list of key=value, as in [data.train=TRAIN.jsonl]",
    ),
    "typed": (
        lambda value: (
            isinstance(value, dict)
            and set(value) <= set(TYPED)
            and all(isinstance(v, str) for v in value.values())
        ),
        f"takes {', '.join(TYPED)}, as `mgsr ablate` writes them",
    ),
}
"""What a key has to hold, and the words for it."""


def refuse_wrong_shapes(path: str | Path, tree: Mapping[str, Any], arms: Mapping[str, Any]) -> None:
    """See that the keys of a study hold what they take.

    Raises:
        ConfigError: one does not, names an arm that is not there, or a seed twice.
    """
    for name, (holds, words) in SHAPES.items():
        if tree.get(name) is not None and not holds(tree[name]):
            raise ConfigError(f"{path}: `{name}` {words}")
    for arm in map(str, tree.get("asked") or ()):
        if arm not in arms:
            raise ConfigError(f"{path}: `asked` names {arm}, which is no arm{did_you_mean(arm, arms)}")
    seeds = [int(seed) for seed in tree.get("seeds") or ()]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{path}: `seeds` names a seed twice; leave one out")


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
