"""What a run says of the code and the machine that its numbers come from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import mgsr.runtime.environment
from mgsr.runtime.environment import environment


def test_the_environment_tells_commit_changes_and_numerics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    package = tmp_path / "mgsr" / "runtime"
    package.mkdir(parents=True)
    (package / "environment.py").write_text("a = 1\n")
    monkeypatch.setattr(mgsr.runtime.environment, "__file__", str(package / "environment.py"))
    outside = environment()
    assert (outside["commit"], outside["dirty"], outside["numerics"]) == ("unknown", None, mgsr.NUMERICS_VERSION)
    git("init", "-q")
    # an installed package in somebody's checkout, which does not track it
    (tmp_path / "README").touch()
    git("add", "README")
    git("commit", "-q", "-m", "theirs")
    outside = environment()
    assert (outside["commit"], outside["dirty"]) == ("unknown", None)
    git("add", ".")
    git("commit", "-q", "-m", "a")
    # results that a study records are no change of the code
    (tmp_path / "seed=0.json").write_text("{}")
    clean = environment()
    assert clean["commit"] == git("rev-parse", "HEAD").strip() and clean["dirty"] is False
    (package / "environment.py").write_text("a = 2\n")
    assert environment()["dirty"] is True
    for name in ("mgsr", "python", "torch", "lightning", "transformers"):
        assert isinstance(clean[name], str)
