"""Small result files of a study: all that its report needs, committed with the project.

    <study folder>/results/<arm>/seed=<n>.json                  of numerics version 1
    <study folder>/results/<arm>/seed=<n>.numerics=<v>.json     of later ones: both may stand side by side

Each holds the run's metrics, the score of every test example, its curves thinned to `POINTS`, the arm's overrides,
and what the numbers came from: hashes of configuration and data, commit, numerics version and machine, and the
fingerprints of the models it began with. The hashes are the same on every Python; older results have one of the
code as well, which nothing reads.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from mgsr.config.load import filled, fingerprint, flat_tree, with_absolute_paths
from mgsr.config.schema import DataConfig, ExperimentConfig
from mgsr.data.splits import SPLITS, read_split, rows_fingerprint
from mgsr.runtime.errors import DataError
from mgsr.runtime.files import write_atomically
from mgsr.runtime.json_files import read_json
from mgsr.runtime.progress import say
from mgsr.study.result_checks import what_is_wrong
from mgsr.study.study import FIXED, seed_of
from mgsr.training.run_folder import NEUTRAL, changed_keys, load_run_config, told_keys


def hashes(config: ExperimentConfig, base: ExperimentConfig) -> dict[str, str]:
    """What a run's numbers come from: `config` (names, places and cosmetics aside), `base` and `data`.

    Data files count by their content, so a study goes on where they lie elsewhere.

    Args:
        base: the configuration without the arm's overrides: alike for all arms of a study.
    """
    return {
        "config": _config_hash(config, config.seed),
        "base": _config_hash(base, None),
        "data": _data_hash(json.dumps(asdict(config.data), sort_keys=True)),
    }


def _config_hash(config: ExperimentConfig, seed: int | None) -> str:
    tree, defaults = flat_tree(asdict(config)), flat_tree(asdict(ExperimentConfig()))
    names = sorted(tree["data.test_sets"])
    # of which kinds of task exact match is told changes no other figure
    aside = {*FIXED, *NEUTRAL, "evaluation.one_answer", "data.train", "data.dev", "data.test", "data.test_sets"}
    # what stands at its default is left out: a key that is new changes no hash
    kept = {name: value for name, value in tree.items() if name not in aside and value != defaults[name]}
    if config.clip.run:
        # whose bounds they are, not where that study lies
        kept["clip.run"] = re.sub(r"\.numerics=\d+", "", "/".join(Path(config.clip.run).parts[-2:]))
    return fingerprint(kept, seed, names)


def other_hashes(result: Mapping[str, Any], found: Mapping[str, str]) -> list[str]:
    """Names of the hashes of a run in which a recorded result differs from it."""
    return [name for name, value in found.items() if result["hashes"].get(name) != value]


def other_keys(
    result: Mapping[str, Any], folder: Path, config: ExperimentConfig, overrides: Mapping[str, Any]
) -> str:
    """The keys in which a recorded run's configuration differs from `config`, as far as they can be told.

    A result file has the arm's overrides alone; the whole configuration is in the run's folder, if that is there.
    """
    # paths in the folder are absolute, whatever was typed
    config = with_absolute_paths(config)
    then, now = result["overrides"], plain(overrides)
    told = ", ".join(
        f"{name}: {then.get(name, 'as the base')} -> {now.get(name, 'as the base')}"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    )
    if not told and (folder / "config.yaml").exists():
        there = with_absolute_paths(load_run_config(folder))
        told = told_keys(changed_keys(there, config), there, config)
    return f" ({told})" if told else ""


def ways_out(path: Path, run: Path, result: Mapping[str, Any], changed: Sequence[str], record: bool) -> str:
    """What to do where a result comes from something else.

    Args:
        path: of the result.
        run: folder of the run.
        changed: as of `other_hashes`.
        record: whether it lies beside the study, not below the run root.
    """
    if not record:
        # what differs in the base differs in every arm
        gone = f"{path} and {run}" if changed == ["config"] else str(run.parents[1])
        return f"delete {gone} to run anew, or name another place with run_root="
    gone = f"delete those of {result['study']} to run it anew"
    return f"check that commit out, or {gone}" if of_commit(result["environment"]) else gone


def of_commit(environment: Mapping[str, Any]) -> str:
    """The commit that made a result; nothing where nobody knows it, as of an installed package.

    >>> of_commit({"commit": "0123456789"}), of_commit({"commit": "unknown"})
    (' (commit 0123456)', '')
    """
    commit = str(environment.get("commit") or "unknown")
    return "" if commit == "unknown" else f" (commit {commit[:7]})"


@lru_cache(maxsize=32)
def _data_hash(content: str) -> str:
    data = filled(DataConfig, flat_tree(json.loads(content), "data."), "data.")
    return fingerprint({s: rows_fingerprint(read_split(data, s)) for s in (*SPLITS, *sorted(data.test_sets))})


def plain(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides as JSON can hold them: infinities as YAML writes them.

    >>> plain({"clip.lower": -math.inf})
    {'clip.lower': '-.inf'}
    """

    def value_of(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
        return value

    return {name: value_of(value) for name, value in overrides.items()}


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(result, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_result(path: Path) -> dict[str, Any] | None:
    """A result file; None where there is none.

    Raises:
        DataError: it is torn, not a whole result file, or another run's.
    """
    if not path.exists():
        return None
    remedy = "restore it, or delete it to have it run again"
    result = read_json(path, {}, remedy)
    wrong = what_is_wrong(result)
    if wrong:
        raise DataError(f"{path}: no whole result file ({wrong}); {remedy}")
    if path.parent.name != result["arm"] or seed_of(path) != result["seed"]:
        raise DataError(f"{path}: holds {result['arm']}, seed {result['seed']}; move it to that place")
    return result


def results_in(folder: Path, seed: int | str = "*") -> Iterator[dict[str, Any]]:
    """Every result of a study's own folder; what runs are compared with must not be passed over.

    Raises:
        DataError: as `read_result`.
    """
    found = (read_result(path) for path in sorted(folder.glob(f"*/seed={seed}.*json")))
    return (result for result in found if result is not None)


def recorded(root: Path) -> Iterator[dict[str, Any]]:
    """Every readable result of all studies below a folder; of one that is not, it is said."""
    for folder in sorted(root.glob("*/results")):
        for path in sorted(folder.glob("*/seed=*.json")):
            try:
                result = read_result(path)
            except DataError as error:
                say(f"{error}; until then it is passed over")
                continue
            if result is not None:
                yield result
