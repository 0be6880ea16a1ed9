"""A study: a YAML file of arms, each a small override of one base configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mgsr.config.load import config_from_tree, flat_tree, keep_inside, read_yaml
from mgsr.config.schema import ExperimentConfig
from mgsr.runtime.errors import ConfigError, did_you_mean

STUDY_KEYS = ("study", "base", "arms", "baseline", "contrasts", "question", "answer", "looks", "arguments")
ANSWER_KEYS = ("part", "arm", "where", "also", "elsewhere")
FIXED = ("experiment", "arm", "seed")
MOST_LOOKS = 100
RESERVED = ("study", "seeds", "teacher", "sft_start", "scrg", "paired_difference", "results", "layout")
"""Names that a summary or a folder of a study has use for."""


@dataclass(frozen=True)
class Study:
    """Arms of one base configuration.

    Attributes:
        arms: name -> flat overrides.
        baseline: the arm that the others are compared with.
        contrasts: name -> (arms with, arms without): a factor's effect is the difference of the two means.
        question: what the study is to answer, in words.
        answer: how its report begins: `part` that `arm` removes, `where` (the data, in words), and perhaps
            `also` (what another arm does, in words -> that arm) and `elsewhere` (a list of `study`, `arm` and
            `sets`): the same in other studies.
        looks: how often verdicts were looked at with the seeds of then, open ones being given more: every p is
            multiplied by it.
        arguments: what a command line has to say besides, such as files that the base leaves to the user; a
            report prints it with its commands, so that file names are stand-ins (`TRAIN.jsonl`).
        path: of its YAML file; results are recorded beside it.
    """

    name: str
    base: str
    arms: dict[str, dict[str, Any]]
    baseline: str
    contrasts: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict)
    question: str = ""
    answer: dict[str, Any] = field(default_factory=dict)
    path: Path = Path("study.yaml")
    looks: int = 1
    arguments: tuple[str, ...] = ()

    @property
    def results(self) -> Path:
        """Where small result files are recorded: `results/<arm>/seed=<n>.json` beside the study's file."""
        return self.path.parent / "results"

    def config(
        self, arm: str, seed: int, overrides: Sequence[str] = (), results: Path | None = None
    ) -> ExperimentConfig:
        """The configuration of one run: base, then the command line, then the arm.

        `{seed}` and `{results}` in an arm's values stand for the seed and for the folder of the result files.

        Raises:
            ConfigError: an override of experiment, arm or seed, which the study sets itself; any other mistake.
        """
        tree = self._tree()
        keep_inside({**tree, **self.arms[arm]}, overrides, self.base)
        tree.update(arm=arm, seed=seed)
        places = {"{seed}": str(seed), "{results}": str(results or self.results)}
        arm_overrides = [f"{name}={json.dumps(_filled(value, places))}" for name, value in self.arms[arm].items()]
        self._refuse_fixed(overrides)
        try:
            return config_from_tree(tree, [*overrides, *arm_overrides], source=self.base)
        except ConfigError as error:
            raise ConfigError(f"{self.path}: arm `{arm}`: {error}") from None

    def base_config(self, overrides: Sequence[str] = ()) -> ExperimentConfig:
        """What all arms have in common: base and command line."""
        self._refuse_fixed(overrides)
        tree = self._tree()
        keep_inside(tree, overrides, self.base)
        return config_from_tree(tree, overrides, source=self.base)

    def said_in_base(self, name: str) -> Any:
        """What the base configuration's file says of a key; None where it is silent, or isn't there.

        A report reads results where the rest of the configuration came from a command line.
        """
        return self._base_file.get(name)

    @cached_property
    def _base_file(self) -> dict[str, Any]:
        # a report asks several times per run
        return flat_tree(read_yaml(self.base)) if Path(self.base).exists() else {}

    def _tree(self) -> dict[str, Any]:
        return {**flat_tree(read_yaml(self.base)), "experiment": self.name}

    @staticmethod
    def _refuse_fixed(overrides: Sequence[str]) -> None:
        fixed = [o for o in overrides if o.partition("=")[0] in FIXED]
        if fixed:
            raise ConfigError(f"`{fixed[0]}`: a study sets experiment, arm and seed itself")


def _filled(value: Any, places: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for place, content in places.items():
            value = value.replace(place, content)
    return value


def load_study(path: str | Path, base: str | None = None) -> Study:
    """Read a study.

    Args:
        base: another base configuration than the study names.

    Raises:
        ConfigError: unknown keys, no arms, an arm that is no mapping, two arms or two keys of one name.
    """
    tree = read_yaml(path)
    for name in tree:
        if name not in STUDY_KEYS:
            raise ConfigError(f"{path}: unknown key `{name}`{did_you_mean(str(name), STUDY_KEYS)}")
    arms = tree.get("arms")
    if not isinstance(arms, Mapping) or not arms:
        raise ConfigError(f"{path}: `arms` must map names to overrides, as in `removed: {{scrg.enabled: false}}`")
    for arm, overrides in arms.items():
        if overrides is not None and not isinstance(overrides, Mapping):
            raise ConfigError(f"{path}: arm `{arm}` must be a mapping of keys to values")
    if base is None and not tree.get("base"):
        raise ConfigError(f"{path}: `base` is missing; name the configuration that the arms override")
    flat = {str(arm): flat_tree(overrides or {}) for arm, overrides in arms.items()}
    known = flat_tree(asdict(ExperimentConfig()))
    for arm, overrides in flat.items():
        for name, value in overrides.items():
            # members of a mapping, as in data.test_sets.vicuna, are the user's to name
            if not any(name == key or name.startswith(f"{key}.") for key in known):
                raise ConfigError(f"{path}: arm `{arm}`: unknown key `{name}`{did_you_mean(name, known)}")
            if not _is_plain(value):
                raise ConfigError(
                    f"{path}: arm `{arm}`: `{name}` is a {type(value).__name__}; a value is a number, a word, "
                    "true, false, or a list or mapping of these"
                )
        taken = [name for name in FIXED if name in overrides]
        if taken or arm in RESERVED:
            what = f"sets `{taken[0]}`, which the study sets itself" if taken else "has a name with a meaning here"
            raise ConfigError(f"{path}: arm `{arm}` {what}; leave it out, or call the arm otherwise")
    baseline = str(tree.get("baseline") or next(iter(flat)))
    if baseline not in flat:
        raise ConfigError(f"{path}: `baseline` is {baseline}, which is no arm{did_you_mean(baseline, flat)}")
    for name in ("study", "question"):
        if not isinstance(tree.get(name, ""), str | None):
            raise ConfigError(f"{path}: `{name}` takes words, not a {type(tree[name]).__name__}")
    return Study(
        str(tree.get("study") or Path(path).stem),
        base or str(tree["base"]),
        flat,
        baseline,
        _contrasts(path, tree.get("contrasts") or {}, flat),
        str(tree.get("question") or ""),
        _answer(path, tree.get("answer") or {}, flat),
        Path(path),
        _looks(path, tree.get("looks", 1)),
        _arguments(path, tree.get("arguments") or []),
    )


def _looks(path: str | Path, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_LOOKS:
        raise ConfigError(f"{path}: `looks` takes a number of looks at the verdicts, from 1 to {MOST_LOOKS}")
    return value


def _arguments(path: str | Path, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(said, str) and "=" in said for said in value):
        raise ConfigError(f"{path}: `arguments` takes a list of key=value, as in [data.train=TRAIN.jsonl]")
    return tuple(value)


def _contrasts(path: str | Path, tree: Any, arms: Mapping[str, Any]) -> dict[str, tuple[list[str], list[str]]]:
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


def _answer(path: str | Path, tree: Any, arms: Mapping[str, Any]) -> dict[str, Any]:
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


def _is_plain(value: Any) -> bool:
    """What JSON can hold, and so a command line."""
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(inner) for name, inner in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
