"""Fine-tuned models are cached by what their source holds, not by where it lies."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import transformers.utils.hub

from mgsr.config.schema import ExperimentConfig
from mgsr.data.splits import read_split
from mgsr.data.tokenizer import train_tokenizer
from mgsr.models import build_causal_lm, content_fingerprint, save_model_folder, source_fingerprint
from mgsr.runtime.errors import UserError
from mgsr.training.sft import Prepared, prepare_student

Make = Callable[..., ExperimentConfig]
WORDS = ("student.sft.max_steps=1", "data.template=plain")
Source = tuple[str, Callable[[int], None]]


def model_folder(path: Path, seed: int) -> Path:
    """A model whose files have the same names, sizes and time whatever its weights are."""
    tokenizer = train_tokenizer(["some words to begin with"], vocab_size=260)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 8,
        "num_layers": 1,
        "num_heads": 2,
        "intermediate_size": 8,
    }
    end = tokenizer.eos_token_id
    model = build_causal_lm("llama", **sizes, max_position_embeddings=128, eos_token_id=end, seed=seed)  # type: ignore[arg-type]
    save_model_folder(model, tokenizer, path)
    for file in path.iterdir():
        os.utime(file, (1, 1))
    return path


def replaced_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    return str(root / "model"), lambda seed: shutil.move(str(model_folder(root / "new", seed)), root / "model")


def moved_branch(root: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A model of the hub cache, whose `main` is another commit."""
    for module in (huggingface_hub.constants, transformers.utils.hub.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(transformers.utils.hub, "is_offline_mode", lambda: True)
    repository = root / "models--some--model"

    def move(seed: int) -> None:
        commit = f"{seed:040x}"
        model_folder(repository / "snapshots" / commit, seed)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs/main").write_text(commit)

    return "some/model", move


def upgraded_package(root: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.syspath_prepend(str(root))

    def install(seed: int) -> None:
        for old in root.glob("some_model*"):
            shutil.rmtree(old)
        model_folder(root / "some_model", seed)
        info = root / f"some_model-{seed}.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: some-model\nVersion: {seed}.0\n")
        importlib.invalidate_caches()

    return "package:some-model/some_model", install


def prepared(make_config: Make, source: str, root: Path) -> Prepared:
    # a cache of the test's own: the same content has been cached by the others
    config = make_config(f"student.source={source}", f"run_root={root / 'runs'}", *WORDS)
    return prepare_student(config, None, read_split(config.data, "train"))


@pytest.mark.parametrize("kind", [replaced_folder, moved_branch, upgraded_package])
def test_another_model_at_the_same_place_is_another_student(
    kind: Callable[[Path, pytest.MonkeyPatch], Source],
    make_config: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, put = kind(tmp_path, monkeypatch)
    put(1)
    first = prepared(make_config, source, tmp_path)
    capsys.readouterr()
    again = prepared(make_config, source, tmp_path)
    assert again.folder == first.folder and "supervised fine-tuning" not in capsys.readouterr().out
    if kind is replaced_folder:
        shutil.rmtree(source)
    put(2)
    second = prepared(make_config, source, tmp_path)
    assert "supervised fine-tuning" in capsys.readouterr().out
    assert second.folder != first.folder
    assert content_fingerprint(second.model) != content_fingerprint(first.model)


def test_the_same_model_at_another_place_is_the_same_student(make_config: Make, tmp_path: Path) -> None:
    here, there = (model_folder(tmp_path / name, 1) for name in ("here", "there"))
    assert source_fingerprint(here) == source_fingerprint(there)
    folders = {prepared(make_config, str(path), tmp_path).folder for path in (here, there)}
    assert len(folders) == 1


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "code.py"])
def test_what_is_read_beside_the_weights_counts_too(name: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", 1)
    before = source_fingerprint(folder)
    (folder / "README.md").write_text("not read")
    assert source_fingerprint(folder) == before
    path = folder / name
    path.write_text((path.read_text() if path.exists() else "") + "\n")
    assert source_fingerprint(folder) != before


def test_a_gguf_file_counts_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"one")
    one = source_fingerprint(file)
    assert source_fingerprint(tmp_path, gguf_file="model.gguf") == one
    file.write_bytes(b"two")
    assert source_fingerprint(file) != one


def test_what_is_no_model_is_said_as_where_it_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        source_fingerprint(tmp_path / "nothing")
    with pytest.raises(UserError, match="no config"):
        source_fingerprint(tmp_path)
    folder = model_folder(tmp_path / "model", 1)
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="pickled weights"):
        source_fingerprint(folder)
