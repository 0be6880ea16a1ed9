"""Recorded results are read, and found to be those of today's runs, on every Python that is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
PURE = ("yaml", "omegaconf", "antlr4")


@cache
def interpreter(version: str) -> str | None:
    """A Python of this version: on the path, or among those of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [shutil.which(f"python{version}"), *map(str, pyenv.glob(f"versions/{version}.*/bin/python{version}"))]
    for path in filter(None, found):
        asked = [path, "-S", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        # pyenv has a word on the path for each version, whether or not it leads anywhere
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return path
    return None


def compared(version: str, folder: Path, *words: str) -> dict[str, Any]:
    """What `tests.study.recorded_hashes` prints, with no package but the pure ones."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"python{version} is not installed")
    for name in PURE:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            (folder / name).symlink_to(next(iter(spec.submodule_search_locations)))
    # OmegaConf asks whether attrs is there
    others = sorted({*packages_distributions()} - {"mgsr", "attr", "attrs", *PURE})
    command = [python, "-S", "-B", "-m", "tests.study.recorded_hashes", *words, *others]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_result_of_every_study_is_taken_for_done(version: str, tmp_path: Path) -> None:
    found = compared(version, tmp_path, "--few")
    assert found["wrong"] == [] and found["compared"] == len(list(ROOT.glob("experiments/*/results")))


@pytest.mark.long
@pytest.mark.parametrize("version", VERSIONS)
def test_every_result_is_taken_for_done(version: str, tmp_path: Path) -> None:
    found = compared(version, tmp_path)
    assert found["wrong"] == [] and found["without_data"] == ["real_text"]
    assert found["compared"] == len(list(ROOT.glob("experiments/*/results/*/seed=*.json")))
