"""A study: a YAML file of arms, each a small override of one base configuration."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml

from mgsr.config.carried_over import refuse_carried_over
from mgsr.config.checks import TAKEN
from mgsr.config.layers import LATER, layer_of, layer_of_tree, read_layer, read_words
from mgsr.config.load import config_of, keep_inside, merged
from mgsr.config.origin import COMMAND_LINE, Layer, Said
from mgsr.config.schema import ExperimentConfig
from mgsr.config.shipped import as_typed, is_packed, located, shipped
from mgsr.config.yaml_reader import YAML, line_of, nodes_of, pairs_of, read_yaml, text_of, words_of
from mgsr.runtime.errors import ConfigError, did_you_mean
from mgsr.study.study_keys import SHAPES, read_contrasts, refuse_wrong_shapes

STUDY_KEYS = ("base", "arms", "baseline", "contrasts", *SHAPES)
FIXED = ("experiment", "arm", "seed")
_MODELS_AND_DATA = ("data", "teacher", "student")
RESERVED = (
    *("study", "seeds", "start", "teacher", "sft_start", "floors", "comparisons", "layout"),
    *("study.yaml", "base.yaml", "metrics.json", "README.md", "report.html", "forest.svg"),
)
"""Names that a summary or a folder of a study has use for."""
POOL = "results"
"""Folder of recorded runs."""


@dataclass(frozen=True)
class Study:
    """Arms of one base configuration.

    Attributes:
        arms: name -> flat overrides.
        baseline: the arm that the others are compared with.
        contrasts: name -> (arms with, arms without): the effect is the difference of the two means.
        question: what the study is to answer, in words.
        asked: the arms that answer it, each a question of its own: its interval is not widened by other arms.
        seeds: declared before the first run; no verdict rests on others. Empty: all that are recorded.
        margin: ROUGE-L that is no difference worth having.
        settings: the question elsewhere, in words -> (study, arm): more rows of the report's plot.
        arguments: what a command line has to say besides, such as files that the base leaves to the user; a
            report prints it with its commands, so that file names are stand-ins (`TRAIN.jsonl`).
        path: of its YAML file.
        base: the base's file: a path that starts from the study's folder, or a shipped name.
        typed: of a study that lies among its runs (`written_study.py`): `study`, `base` and `folder` as they were
            typed, `config` where another base was named, and `question` where one was. With words that change
            models or data, `base` has those too.
        places: arm -> key -> where it is written.
    """

    name: str
    base: str
    arms: dict[str, dict[str, Any]]
    baseline: str
    contrasts: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict)
    question: str = ""
    asked: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    margin: float = 0.5
    settings: dict[str, tuple[str, str]] = field(default_factory=dict)
    path: Path = Path("study.yaml")
    arguments: tuple[str, ...] = ()
    places: dict[str, dict[str, str]] = field(default_factory=dict)
    typed: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """Where the report lies: beside the file, but of an installed study below the working folder."""
        return Path(ExperimentConfig().run_root, self.name) if is_packed(self.path) else self.path.parent

    def pool(self, run_root: str | Path | None = None, *, record: bool = True) -> Path:
        """Where its runs are recorded: beside its folder, or (not `record`, or an installed study) below the run
        root."""
        root = Path(ExperimentConfig().run_root if run_root is None else run_root)
        return self.path.parent.parent / POOL if record and not is_packed(self.path) else root / POOL

    def config(
        self, arm: str, seed: int, overrides: Sequence[str] = (), recorded: Mapping[str, str] | None = None
    ) -> ExperimentConfig:
        """The configuration of one run: base, then the command line, then the arm.

        `{run:ARM}` in an arm's values stands for the recorded run of another arm.

        Args:
            recorded: arm -> path of its run with this seed, of those that are recorded.

        Raises:
            ConfigError: an override of experiment, arm or seed, which the study sets itself; any other mistake.
        """
        self._refuse_fixed(overrides)
        own = {"arm": Said(arm, str(self.path)), "seed": Said(seed, COMMAND_LINE)}
        filled = {f"{{run:{name}}}": path for name, path in (recorded or {}).items()}
        base = self.base_layer()
        layer = merged(base, own, *read_words(overrides), self._arm(arm, filled))
        keep_inside(layer)
        refuse_carried_over(base, layer)
        return config_of(layer)

    def needs(self, arm: str) -> list[str]:
        """Other arms whose recorded runs this one reads."""
        values = [str(value) for value in self.arms[arm].values()]
        return [name for name in self.arms if any(f"{{run:{name}}}" in value for value in values)]

    def _arm(self, arm: str, filled: Mapping[str, str]) -> Layer:
        values = layer_of_tree({name: _filled(value, filled) for name, value in self.arms[arm].items()})
        return {name: Said(said.value, self.places[arm][name]) for name, said in values.items()}

    def base_config(self, overrides: Sequence[str] = ()) -> ExperimentConfig:
        """What all arms have in common: base and command line."""
        self._refuse_fixed(overrides)
        base = self.base_layer()
        layer = merged(base, *read_words(overrides))
        keep_inside(layer)
        refuse_carried_over(base, layer)
        return config_of(layer)

    @cached_property
    def _base_file(self) -> Layer:
        # a report asks several times per run
        return read_layer(self.base)

    def base_layer(self) -> Layer:
        """What the base's file says, under the study's name."""
        return {**self._base_file, "experiment": Said(self.name, str(self.path))}

    @staticmethod
    def _refuse_fixed(overrides: Sequence[str]) -> None:
        fixed = [o for o in overrides if o.partition("=")[0] in FIXED]
        if fixed:
            raise ConfigError(f"`{fixed[0]}`: a study sets experiment, arm and seed itself")


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
        path: its file or its folder, or the name of a shipped one.
        base: another base configuration than the study names, of any path or a shipped name. The study is another
            one then, `<study>-<base>`: it keeps the arms, and neither question nor answer.

    Raises:
        ConfigError: no such study or base, unknown keys, no arms, an arm that is no mapping, two arms or two keys
            of one name.
    """
    path = located(path, "study")
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
    refuse_wrong_shapes(path, tree, flat)
    name = str(tree.get("study") or path.stem)
    if name.lower() in TAKEN:
        raise ConfigError(f"{path}: the study is called {name}, a folder with a meaning here; call it otherwise")
    settings = {str(label): str(word).split("/") for label, word in (tree.get("settings") or {}).items()}
    study = Study(
        name,
        # that of the file need not be there where another one is named
        _base(path, str(tree["base"])) if base is None else base,
        flat,
        baseline,
        read_contrasts(path, tree.get("contrasts") or {}, flat),
        str(tree.get("question") or ""),
        tuple(map(str, tree.get("asked") or ())),
        tuple(map(int, tree.get("seeds") or ())),
        float(0.5 if tree.get("margin") is None else tree["margin"]),
        {label: (name, arm) for label, (name, arm) in settings.items()},
        path,
        tuple(tree.get("arguments") or ()),
        {arm: {name: said.place for name, said in layer.items()} for arm, layer in layers.items()},
        dict(tree.get("typed") or {}),
    )
    return study if base is None else _on(study, base)


def _on(study: Study, base: str) -> Study:
    """The arms on another base: what is said of the study's own results is not said of these."""
    place = located(base, "config")
    return replace(
        study,
        name=f"{study.name}-{place.stem}",
        base=str(place),
        question="",
        asked=(),
        seeds=(),
        settings={},
        arguments=(),
        typed={"study": as_typed(study.path, "study"), "config": as_typed(place, "config")},
    )


def as_run(study: Study, overrides: Sequence[str]) -> Study:
    """The study as its report tells it where words change data, teacher or student: its base is named with them.

    What a shipped study says of its own results is not said of these; a question of one's own stays.
    """
    layers = zip(overrides, read_words(overrides), strict=True)
    words = [word for word, said in layers if any(key.split(".")[0] in _MODELS_AND_DATA for key in said)]
    if not words or "folder" in study.typed:
        return study
    named = {**study.typed, "base": shlex.join([as_typed(study.base, "config"), *words])}
    if as_typed(study.path, "study") not in shipped("study"):
        return replace(study, typed=named)
    return replace(study, question="", asked=(), seeds=(), settings={}, arguments=(), typed=named)


def _base(path: Path, word: str) -> str:
    try:
        return str(located(word, "config", path.parent))
    except ConfigError as error:
        if Path(word).is_file():
            way = as_typed(word, "config", path.parent)
            raise ConfigError(
                f"{path}: `base` is {word}, and starts from the study's folder; write {way}"
            ) from None
        raise ConfigError(f"{path}: `base` is {word}: {error}") from None


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
            if isinstance(inner, yaml.ScalarNode) and "{run:" in inner.value:
                inner.tag = LATER
        found[arm] = layer_of(node, partial(_place, path, arm))
        taken = [name for name in FIXED if name in found[arm]]
        if taken or arm in RESERVED:
            what = f"sets `{taken[0]}`, which the study sets itself" if taken else "has a name with a meaning here"
            raise ConfigError(f"{here} {what}; leave it out, or call the arm otherwise")
    return found
