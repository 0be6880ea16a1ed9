"""The study as it was run, beside its runs: `mgsr report RUN_ROOT/STUDY` reads it there, and nothing else.

    <run_root>/<study>/study.yaml            the arms that have run, and what was typed
    <run_root>/<study>/base.yaml             what they have in common, as it was then
    <run_root>/results/                      the pool of recorded runs, of all studies below this root

Another base makes other results, so that what a study's own file says of its results is not taken over.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mgsr.config.layers import read_words
from mgsr.config.load import merged
from mgsr.config.shipped import as_typed
from mgsr.config.yaml_reader import read_yaml, words_of
from mgsr.runtime.files import write_atomically
from mgsr.study.study import FIXED, Study
from mgsr.training.run_folder import NEUTRAL

FILE, BASE = "study.yaml", "base.yaml"


def write_study(
    study: Study, folder: Path, arms: Sequence[str], overrides: Sequence[str] = (), seeds: Sequence[int] = ()
) -> None:
    """Write both files.

    Args:
        folder: of the study's runs.
        arms, seeds: that are run now; those of an earlier command stay, if they had the same base. Seeds that the
            study declares stay alone: others are in no verdict.
        overrides: of the command line.
    """
    base = merged(study.base_layer(), *read_words(overrides))
    base_text = _text({name: said.value for name, said in base.items() if name not in FIXED})
    known: dict[str, Any] = {}
    if (folder / FILE).exists() and _same_runs(folder / BASE, base_text):
        known = words_of(read_yaml(folder / FILE), str(folder / FILE))
    kept = [arm for arm in study.arms if arm in arms or arm in (known.get("arms") or {})]
    # what a study declares stays declared; of one that declares nothing, what was typed
    declared = sorted(study.seeds or {*seeds, *map(int, known.get("seeds") or ())})
    typed = {"study": as_typed(study.path, "study"), "base": as_typed(study.base, "config"), **study.typed}
    tree = {
        "study": study.name,
        "question": study.question,
        "base": BASE,
        "baseline": baseline_of(study, kept),
        "asked": [arm for arm in study.asked if arm in kept],
        "seeds": declared,
        "margin": study.margin,
        "arms": {arm: study.arms[arm] for arm in kept},
        "contrasts": {
            name: {"with": sides[0], "without": sides[1]}
            for name, sides in study.contrasts.items()
            if {*sides[0], *sides[1]} <= {*kept}
        },
        # those that a study among its runs was typed with are in its base
        "arguments": [*(study.arguments if study.typed.get("folder") else ()), *overrides],
        "typed": {**typed, "folder": Path(folder).as_posix()},
    }
    write_atomically(folder / BASE, base_text)
    write_atomically(folder / FILE, _text({name: value for name, value in tree.items() if value}))


def baseline_of(study: Study, arms: Sequence[str]) -> str:
    """The arm that others are compared with: the study's baseline, or the first of those that are there."""
    return study.baseline if study.baseline in arms else arms[0]


def _same_runs(path: Path, text: str) -> bool:
    """Whether two bases differ in keys alone that change no figure."""
    try:
        trees = [yaml.safe_load(each) or {} for each in (path.read_text(encoding="utf-8"), text)]
    except (OSError, yaml.YAMLError):
        return False
    one, other = ({name: value for name, value in tree.items() if name not in NEUTRAL} for tree in trees)
    return one == other


def _text(tree: dict[str, Any]) -> str:
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110)
    return f"# written by mgsr ablate, and again when more arms are run\n{text}"
