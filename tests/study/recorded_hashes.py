"""Compare the hashes that are recorded in the committed results with those of their runs, on any Python.

    python -S -m tests.study.recorded_hashes [--few] [PACKAGE ...]

PyYAML and OmegaConf must be there. The packages named get stand-ins where they are not installed, as no hash
hangs on them.
Prints JSON: `compared` results, `wrong` ones, and studies `without_data`, whose files are not in the repository.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any


class _Kind(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class Anything(metaclass=_Kind):
    """A base class, a decorator, an annotation: whatever a module asks for while it is imported."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **_: Any) -> Any:
        return arguments[0] if arguments else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __rmul__(self, _: Any) -> Any:
        return self

    def __class_getitem__(cls, _: Any) -> Any:
        return cls


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Behind all other finders: a package that none of them finds is a module of such things."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = frozenset(packages)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        other = name.partition(".")[0] in self.packages
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if other else None

    def create_module(self, spec: Any) -> ModuleType:
        module = ModuleType(spec.name)
        module.__getattr__ = lambda name: getattr(Anything, name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def compare(folders: Sequence[Path], few: bool) -> dict[str, Any]:
    """Every recorded result of these studies, or one of each study, of its last arm."""
    import mgsr
    from mgsr.runtime.environment import numerics_of
    from mgsr.runtime.errors import UserError
    from mgsr.study import results
    from mgsr.study.study import load_study

    compared, wrong, without_data = 0, [], []
    original = results.read_split
    for folder in folders:
        study = load_study(folder / "study.yaml")
        base = study.base_config(study.arguments)
        results.read_split = original
        try:
            results.hashes(base, base)
        except UserError:
            without_data.append(study.name)
            results.read_split = lambda *_: []
        for arm in list(study.arms)[-1 if few else 0 :]:
            config = study.config(arm, 0, study.arguments, study.results)
            for path in sorted((study.results / arm).glob("seed=*.json"))[: 1 if few else None]:
                result = results.read_result(path)
                assert result is not None
                seed = result["seed"]
                clip = replace(config.clip, run=config.clip.run.replace("seed=0", f"seed={seed}"))
                found = results.hashes(replace(config, seed=seed, clip=clip), base)
                other = set(results.other_hashes(result, found))
                if study.name in without_data:
                    other -= {"data"}
                compared += 1
                # of an earlier version a result is shown apart, and its hashes are those of its run all the same
                if other or not 0 < numerics_of(result["environment"]) <= mgsr.NUMERICS_VERSION:
                    wrong.append(f"{path}: {sorted(other)}")
    return {"compared": compared, "wrong": wrong, "without_data": without_data}


if __name__ == "__main__":
    sys.meta_path.append(Absent(sys.argv[1:]))
    studies = sorted(path.parent for path in Path("experiments").glob("*/results"))
    print(json.dumps(compare(studies, "--few" in sys.argv)))
