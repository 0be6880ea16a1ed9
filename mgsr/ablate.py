"""`mgsr ablate`: a study is a YAML file of arms, each a small override of one base configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgsr.config import ExperimentConfig, config_from_tree, flat_tree, read_yaml
from mgsr.data.corpus import write_atomically
from mgsr.errors import ConfigError, did_you_mean
from mgsr.progress import say
from mgsr.runs import run_folder
from mgsr.statistics import mean_std, paired_t_interval
from mgsr.train import train

STUDY_KEYS = ("study", "base", "arms", "baseline")


@dataclass(frozen=True)
class Study:
    """Arms of one base configuration.

    Attributes:
        arms: name -> flat overrides. baseline: the arm that the others are compared with.
    """

    name: str
    base: str
    arms: dict[str, dict[str, Any]]
    baseline: str

    def config(self, arm: str, seed: int, overrides: Sequence[str] = ()) -> ExperimentConfig:
        """The configuration of one run: base, then the command line, then the arm."""
        tree = flat_tree(read_yaml(self.base))
        tree.update(experiment=self.name, arm=arm, seed=seed)
        arm_overrides = [f"{name}={json.dumps(value)}" for name, value in self.arms[arm].items()]
        fixed = [o for o in overrides if o.partition("=")[0] in ("experiment", "arm", "seed")]
        if fixed:
            raise ConfigError(f"`{fixed[0]}`: a study sets experiment, arm and seed itself")
        return config_from_tree(tree, [*overrides, *arm_overrides], source=self.base)


def load_study(path: str | Path, base: str | None = None) -> Study:
    """Read a study.

    Args:
        base: another base configuration than the study names.

    Raises:
        ConfigError: unknown keys, no arms, an arm that is no mapping, two arms of one name.
    """
    _refuse_repeated_arms(path)
    tree = read_yaml(path)
    for name in tree:
        if name not in STUDY_KEYS:
            raise ConfigError(f"{path}: unknown key `{name}`{did_you_mean(name, STUDY_KEYS)}")
    arms = tree.get("arms")
    if not isinstance(arms, Mapping) or not arms:
        raise ConfigError(f"{path}: `arms` must map names to overrides, as in `removed: {{scrg.enabled: false}}`")
    for arm, overrides in arms.items():
        if overrides is not None and not isinstance(overrides, Mapping):
            raise ConfigError(f"{path}: arm `{arm}` must be a mapping of keys to values")
    if base is None and not tree.get("base"):
        raise ConfigError(f"{path}: `base` is missing; name the configuration that the arms override")
    flat = {str(arm): flat_tree(overrides or {}) for arm, overrides in arms.items()}
    baseline = str(tree.get("baseline") or next(iter(flat)))
    if baseline not in flat:
        raise ConfigError(f"{path}: `baseline` is {baseline}, which is no arm{did_you_mean(baseline, flat)}")
    return Study(str(tree.get("study") or Path(path).stem), base or str(tree["base"]), flat, baseline)


def _refuse_repeated_arms(path: str | Path) -> None:
    import yaml

    try:
        node = yaml.compose(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return  # read_yaml says what is wrong
    if not isinstance(node, yaml.MappingNode):
        return
    arms = next((v for k, v in node.value if k.value == "arms" and isinstance(v, yaml.MappingNode)), None)
    seen: dict[str, int] = {}
    for key, _ in arms.value if arms else []:
        if key.value in seen:
            raise ConfigError(
                f"{path}:{key.start_mark.line + 1}: arm `{key.value}` stands twice (line {seen[key.value]} first)"
            )
        seen[key.value] = key.start_mark.line + 1


def run_study(study: Study, seeds: Sequence[int], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run every arm with every seed, one after another; complete runs are skipped, begun ones resumed.

    Returns:
        The summary that is written to `<run_root>/<study>/metrics.json`.
    """
    # refuse a bad arm before the first one has run for an hour
    configs = [(arm, seed, study.config(arm, seed, overrides)) for seed in seeds for arm in study.arms]
    results: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in study.arms}
    for number, (arm, seed, config) in enumerate(configs, 1):
        say(f"[{number}/{len(configs)}] {study.name}: {arm}, seed {seed}")
        begun = (run_folder(config) / "config.yaml").exists()
        results[arm][seed] = train(config, resume=begun)
    summary = summarise(study, results)
    path = Path(configs[0][2].run_root) / study.name / "metrics.json"
    write_atomically(path, json.dumps(summary, indent=2) + "\n")
    return summary


def summarise(study: Study, results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Mean test ROUGE-L per arm, of what the arms start from, and paired differences over training seeds."""
    runs = list(results[study.baseline].values())
    summary: dict[str, Any] = {"study": study.name, "seeds": sorted(results[study.baseline])}
    for name in ("teacher", "sft_start"):
        if all(name in run for run in runs):
            summary[name] = _over_seeds([run[name]["test"] for run in runs])
    for arm, by_seed in results.items():
        summary[arm] = _over_seeds([run["result"]["test"] for run in by_seed.values()])
        rounds = [run["scrg"] for run in by_seed.values() if "scrg" in run]
        if rounds and (arm == study.baseline or "scrg" not in summary):
            summary["scrg"] = {k: sum(r[k] for r in rounds) / len(rounds) for k in rounds[0]}
    differences = {}
    for arm in results:
        if arm == study.baseline or len(runs) < 2:
            continue
        pairs = [
            results[study.baseline][seed]["result"]["test"]["rouge_l"] - run["result"]["test"]["rouge_l"]
            for seed, run in results[arm].items()
        ]
        interval = paired_t_interval(pairs)
        differences[f"{study.baseline} - {arm}"] = {
            "mean": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "p": interval.p,
            "by_seed": pairs,
        }
    if differences:
        summary["paired_difference"] = differences
    return summary


def _over_seeds(tests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One training seed: as measured. Several: mean and standard deviation over training seeds."""
    if len(tests) == 1:
        return {k: tests[0][k] for k in ("rouge_l", "rouge_l_std", "std_over", "exact_match", "distinct_2")}
    mean, std = mean_std([test["rouge_l"] for test in tests])[:2]
    return {
        "rouge_l": mean,
        "rouge_l_std": std,
        "std_over": "training seeds",
        "exact_match": sum(test["exact_match"] for test in tests) / len(tests),
        "distinct_2": sum(test["distinct_2"] for test in tests) / len(tests),
        "by_seed": [test["rouge_l"] for test in tests],
    }
