"""What a run folder says of where its numbers come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mgsr
from mgsr.cli.main import main
from mgsr.models import build_causal_lm, content_fingerprint
from mgsr.runtime.errors import UserError
from mgsr.training import run_folder
from mgsr.training.run_folder import START, keep_start, load_run_config, open_run_folder, read_run_file
from tests.conftest import Make


def student() -> Any:
    sizes = {"vocab_size": 8, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8}
    return build_causal_lm("llama", **sizes, max_position_embeddings=8, eos_token_id=0, seed=0)


def test_a_run_keeps_the_fingerprints_that_it_began_with(tmp_path: Path) -> None:
    model = student()
    content = content_fingerprint(model)
    keep_start(tmp_path, "abc", model)
    assert read_run_file(tmp_path, START) == {"teacher": "abc", "student": content}
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1.0)
    # its text would be mixed with that of the one before
    with pytest.raises(UserError, match="the student it starts from is not the one it began with"):
        keep_start(tmp_path, "abc", model)
    # a resume point has weights of its own
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/resume-00000003.ckpt").touch()
    keep_start(tmp_path, "abc", model)
    assert read_run_file(tmp_path, START)["student"] == content


def test_going_on_with_another_numerics_version_is_said(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config()
    folder = run_folder.run_folder(config)
    open_run_folder(folder, config, resume=False)
    (folder / "checkpoints").mkdir()
    open_run_folder(folder, config, resume=True)
    assert "numerics" not in capsys.readouterr().out
    here = mgsr.NUMERICS_VERSION
    monkeypatch.setattr(mgsr, "NUMERICS_VERSION", here + 1)
    open_run_folder(folder, config, resume=True)
    said = f"begun with numerics version {here}, here it is {here + 1}: the rest may differ"
    assert said in capsys.readouterr().out
    assert json.loads((folder / "environment.json").read_text())["numerics"] == here


def test_a_run_goes_on_from_another_folder(
    tiny_file: Path, shared_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that were named from where it began are found again; so is a run below `~`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    row = json.dumps({"instruction": "Say it.", "output": "It."}) + "\n"
    for name in ("train", "dev", "test"):
        Path(f"{name}.jsonl").write_text(row * 12)
    words = [f"data.{name}={name}.jsonl" for name in ("train", "dev", "test")]
    words += ["data.test_sets={more: test.jsonl}", "run_root=~/runs", "teacher.sft.max_steps=1"]
    words += ["student.sft.max_steps=1", "train.epochs=1", "evaluation.seeds=[10]"]
    assert main(["train", str(tiny_file), *words]) == 0
    folder = tmp_path / "runs/tiny/mgsr/seed=0"
    kept = load_run_config(folder).data
    assert [kept.train, kept.test_sets] == [f"{tmp_path}/train.jsonl", {"more": f"{tmp_path}/test.jsonl"}]
    assert (folder / "checkpoints/best.ckpt").exists() and not (tmp_path / "~").exists()
    # the same words mean the same run
    assert main(["train", str(tiny_file), *words, "--resume", "auto"]) == 0
    (folder / "metrics.json").unlink()
    monkeypatch.chdir(shared_root)
    cached = set((tmp_path / "runs/cache").iterdir())
    assert main(["train", "--resume", str(folder), "train.epochs=2"]) == 0
    assert set((tmp_path / "runs/cache").iterdir()) == cached
