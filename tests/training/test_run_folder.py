"""What a run folder says of where its numbers come from."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import mgsr
from mgsr.models import build_causal_lm, content_fingerprint
from mgsr.runtime.environment import environment, numerics_of
from mgsr.training import run_folder
from mgsr.training.run_folder import START, keep_start, open_run_folder, read_json
from tests.conftest import Make


def student() -> Any:
    sizes = {"vocab_size": 8, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8}
    return build_causal_lm("llama", **sizes, max_position_embeddings=8, eos_token_id=0, seed=0)


def test_the_environment_tells_commit_changes_and_numerics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    package = tmp_path / "mgsr" / "training"
    package.mkdir(parents=True)
    (package / "run_folder.py").write_text("a = 1\n")
    monkeypatch.setattr(run_folder, "__file__", str(package / "run_folder.py"))
    outside = environment()
    assert (outside["commit"], outside["dirty"], outside["numerics"]) == ("unknown", None, mgsr.NUMERICS_VERSION)
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "a")
    # results that a study records are no change of the code
    (tmp_path / "seed=0.json").write_text("{}")
    clean = environment()
    assert clean["commit"] == git("rev-parse", "HEAD").strip() and clean["dirty"] is False
    (package / "run_folder.py").write_text("a = 2\n")
    assert environment()["dirty"] is True
    for name in ("mgsr", "python", "torch", "lightning", "transformers"):
        assert isinstance(clean[name], str)


def test_an_environment_of_before_there_was_a_version_is_of_the_first() -> None:
    assert numerics_of({"code": "4b231d9ac12f"}) == 1 and numerics_of({"numerics": 3}) == 3


def test_a_run_keeps_the_fingerprints_that_it_began_with(tmp_path: Path) -> None:
    model = student()
    content = content_fingerprint(model)
    keep_start(tmp_path, "abc", model)
    assert read_json(tmp_path / START) == {"teacher": "abc", "student": content}
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1.0)
    keep_start(tmp_path, "abc", model)
    assert read_json(tmp_path / START)["student"] == content


def test_going_on_with_another_numerics_version_is_said(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config()
    folder = run_folder.run_folder(config)
    open_run_folder(folder, config, resume=False)
    (folder / "checkpoints").mkdir()
    open_run_folder(folder, config, resume=True)
    assert "numerics" not in capsys.readouterr().out
    monkeypatch.setattr(mgsr, "NUMERICS_VERSION", 2)
    open_run_folder(folder, config, resume=True)
    assert "begun with numerics version 1, here it is 2: the rest may differ" in capsys.readouterr().out
    assert json.loads((folder / "environment.json").read_text())["numerics"] == 1
