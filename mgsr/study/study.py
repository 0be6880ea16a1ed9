"""A study: a YAML file of arms, each a small override of one base configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml

import mgsr
from mgsr.config.carried_over import refuse_carried_over
from mgsr.config.layers import LATER, layer_of, layer_of_tree, read_layer, read_words
from mgsr.config.load import config_of, keep_inside, merged
from mgsr.config.origin import COMMAND_LINE, Layer, Said
from mgsr.config.schema import ExperimentConfig
from mgsr.config.yaml_reader import YAML, line_of, nodes_of, pairs_of, read_yaml, text_of, words_of
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
        places: arm -> key -> where it is written.
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
    places: dict[str, dict[str, str]] = field(default_factory=dict)

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
        self._refuse_fixed(overrides)
        own = {"arm": Said(arm, str(self.path)), "seed": Said(seed, COMMAND_LINE)}
        filled = {"seed={seed}.json": result_path(Path(), "", seed).name, "{seed}": str(seed)}
        filled["{results}"] = str(results or self.results)
        base = self._base()
        layer = merged(base, own, *read_words(overrides), self._arm(arm, filled))
        keep_inside(layer)
        refuse_carried_over(base, layer)
        return config_of(layer)

    def _arm(self, arm: str, filled: Mapping[str, str]) -> Layer:
        values = layer_of_tree({name: _filled(value, filled) for name, value in self.arms[arm].items()})
        return {name: Said(said.value, self.places[arm][name]) for name, said in values.items()}

    def base_config(self, overrides: Sequence[str] = ()) -> ExperimentConfig:
        """What all arms have in common: base and command line."""
        self._refuse_fixed(overrides)
        base = self._base()
        layer = merged(base, *read_words(overrides))
        keep_inside(layer)
        refuse_carried_over(base, layer)
        return config_of(layer)

    def said_in_base(self, name: str) -> Any:
        """What the base configuration's file says of a key; None where it is silent, or isn't there.

        A report reads results where the rest of the configuration came from a command line.
        """
        said = self._base_file.get(name)
        return None if said is None else said.value

    @cached_property
    def _base_file(self) -> Layer:
        # a report asks several times per run
        return read_layer(self.base) if Path(self.base).exists() else {}

    def _base(self) -> Layer:
        return {**read_layer(self.base), "experiment": Said(self.name, str(self.path))}

    @staticmethod
    def _refuse_fixed(overrides: Sequence[str]) -> None:
        fixed = [o for o in overrides if o.partition("=")[0] in FIXED]
        if fixed:
            raise ConfigError(f"`{fixed[0]}`: a study sets experiment, arm and seed itself")


def result_path(folder: Path, arm: str, seed: int, numerics: int | None = None) -> Path:
    """Where a run is recorded; `numerics` is a version, None the code's."""
    version = mgsr.NUMERICS_VERSION if numerics is None else numerics
    return folder / arm / (f"seed={seed}.json" if version == 1 else f"seed={seed}.numerics={version}.json")


def seed_of(path: Path) -> int | None:
    """The seed in a result file's name, of any numerics version; None where there is none.

    >>> seed_of(Path("results/full/seed=3.numerics=2.json"))
    3
    """
    found = re.fullmatch(r"seed=(\d+)(\.numerics=\d+)?\.json", path.name)
    return None if found is None else int(found[1])


def _filled(value: Any, places: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for place, content in places.items():
            value = value.replace(place, content)
    if isinstance(value, Mapping):
        return {name: _filled(inner, places) for name, inner in value.items()}
    return value


def load_study(path: str | Path, base: str | None = None) -> Study:
    """Read a study.

    Args:
        base: another base configuration than the study names.

    Raises:
        ConfigError: unknown keys, no arms, an arm that is no mapping, two arms or two keys of one name.
    """
    top = {text_of(name, str(path)): (name, node) for name, node in pairs_of(read_yaml(path))}
    for name, (node, _) in top.items():
        if name not in STUDY_KEYS:
            raise ConfigError(f"{path}:{line_of(node)}: unknown key `{name}`{did_you_mean(name, STUDY_KEYS)}")
    layers = _arms(path, top.pop("arms", (None, None))[1])
    flat = {arm: {name: said.value for name, said in layer.items()} for arm, layer in layers.items()}
    tree = {name: words_of(node, f"{path}:{line_of(key)}") for name, (key, node) in top.items()}
    if base is None and not tree.get("base"):
        raise ConfigError(f"{path}: `base` is missing; name the configuration that the arms override")
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
        _looks(path, tree.get("looks", "1")),
        _arguments(path, tree.get("arguments") or []),
        {arm: {name: said.place for name, said in layer.items()} for arm, layer in layers.items()},
    )


def _place(path: str | Path, arm: str, node: yaml.Node) -> str:
    return f"{path}:{line_of(node)}, arm `{arm}`"


def _arms(path: str | Path, arms: yaml.Node | None) -> dict[str, Layer]:
    """What each arm overrides; its name is what is written, be it `on` or `010`."""
    if not isinstance(arms, yaml.MappingNode) or not arms.value:
        raise ConfigError(f"{path}: `arms` must map names to overrides, as in `removed: {{scrg.enabled: false}}`")
    found: dict[str, Layer] = {}
    for key, node in pairs_of(arms):
        arm = text_of(key, str(path))
        here = _place(path, arm, key)
        if node.tag == f"{YAML}null":
            node = yaml.MappingNode(f"{YAML}map", [])
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{here} must be a mapping of keys to values")
        for inner in nodes_of(node):
            if isinstance(inner, yaml.ScalarNode) and any(word in inner.value for word in ("{seed}", "{results}")):
                inner.tag = LATER
        found[arm] = layer_of(node, partial(_place, path, arm))
        taken = [name for name in FIXED if name in found[arm]]
        if taken or arm in RESERVED:
            what = f"sets `{taken[0]}`, which the study sets itself" if taken else "has a name with a meaning here"
            raise ConfigError(f"{here} {what}; leave it out, or call the arm otherwise")
    return found


def _looks(path: str | Path, value: Any) -> int:
    if not isinstance(value, str) or not value.isdecimal() or not 1 <= int(value[:9]) <= MOST_LOOKS:
        raise ConfigError(f"{path}: `looks` takes a number of looks at the verdicts, from 1 to {MOST_LOOKS}")
    return int(value)


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
