"""Model folders: whole or not at all, and a fingerprint of what they hold."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mgsr.models import (
    FAMILIES,
    add_lora,
    build_causal_lm,
    content_fingerprint,
    load_causal_lm,
    save_model_folder,
)
from mgsr.runtime.errors import UserError

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def tiny_model(family="llama", **changes):
    sizes = {"vocab_size": 40, "hidden_size": 8, "num_layers": 2, "num_heads": 2, "intermediate_size": 16}
    options = sizes | {"max_position_embeddings": 16, "eos_token_id": 0, "seed": 3} | changes
    return build_causal_lm(family, **options).eval()


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "deep" / "student"
    save_model_folder(tiny_model(), None, target)
    (target / "stale.txt").write_text("from before")
    assert save_model_folder(tiny_model(seed=4), None, str(target)) == target
    assert torch.equal(load_causal_lm(target)(TOKENS).logits, tiny_model(seed=4)(TOKENS).logits)
    assert not (target / "stale.txt").exists()
    assert os.listdir(target.parent) == ["student"]


def test_a_failed_write_leaves_the_old_model(tmp_path, monkeypatch):
    target = save_model_folder(tiny_model(), None, tmp_path / "student")
    before = content_fingerprint(target)
    newer = tiny_model(seed=4)

    def half_written(folder, **options):
        (folder / "config.json").write_text("{}")
        raise OSError("No space left on device")

    monkeypatch.setattr(newer, "save_pretrained", half_written)
    with pytest.raises(UserError, match=r"cannot be written .No space left"):
        save_model_folder(newer, None, target)
    assert content_fingerprint(target) == before
    assert os.listdir(tmp_path) == ["student"]


def test_a_failed_rename_puts_the_old_model_back(tmp_path, monkeypatch):
    target = save_model_folder(tiny_model(), None, tmp_path / "student")
    before = content_fingerprint(target)
    rename = type(target).rename

    def refuse_the_new(self, other):
        if self.name.endswith(".partial"):
            raise PermissionError("not now")
        return rename(self, other)

    monkeypatch.setattr(type(target), "rename", refuse_the_new)
    with pytest.raises(UserError, match="not now"):
        save_model_folder(tiny_model(seed=4), None, target)
    assert content_fingerprint(target) == before
    assert os.listdir(tmp_path) == ["student"]


def test_other_peoples_folders_are_left_alone(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "file").write_text("")
    for name in ("thesis", "file"):
        with pytest.raises(UserError, match="exists and is no model folder"):
            save_model_folder(tiny_model(), None, tmp_path / name)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
    (tmp_path / "blank").mkdir()
    save_model_folder(tiny_model(), None, tmp_path / "blank")


def test_adapters_must_be_merged_first(tmp_path):
    adapted = add_lora(tiny_model(), r=2, alpha=4, target_modules=["q_proj"])
    with pytest.raises(ValueError, match="merge adapters first"):
        save_model_folder(adapted, None, tmp_path / "adapted")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_and_its_folder_have_one_fingerprint(family, tied, tmp_path):
    model = tiny_model(family, tie_word_embeddings=tied)
    folder = save_model_folder(model, None, tmp_path / "model")
    expected = content_fingerprint(model)
    assert len(expected) == 64
    assert content_fingerprint(folder) == content_fingerprint(str(folder)) == expected
    assert content_fingerprint(load_causal_lm(folder, attn_implementation="eager")) == expected


def test_the_fingerprint_sees_content_and_nothing_else(tmp_path):
    folder = save_model_folder(tiny_model(), None, tmp_path / "model")
    expected = content_fingerprint(folder)
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    weights = load_file(moved / "model.safetensors")
    # the same weights cut into two files
    names = sorted(weights)
    save_file({name: weights[name] for name in names[:5]}, moved / "model-00001-of-00002.safetensors")
    save_file({name: weights[name] for name in names[5:]}, moved / "model-00002-of-00002.safetensors")
    (moved / "model.safetensors").unlink()
    (moved / "README.md").write_text("a note")
    assert content_fingerprint(moved) == expected

    for name in names:  # one number anywhere
        changed = {key: tensor.clone() for key, tensor in weights.items()}
        changed[name].view(-1)[-1] += 1e-6
        save_file(changed, folder / "model.safetensors")
        assert content_fingerprint(folder) != expected, name
    save_file(weights, folder / "model.safetensors")
    assert content_fingerprint(folder) == expected
    config = json.loads((folder / "config.json").read_text())
    passing = {"transformers_version": "6.0", "architectures": ["Other"], "_name_or_path": "/home/x"}
    (folder / "config.json").write_text(json.dumps(config | passing))
    assert content_fingerprint(folder) == expected
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert content_fingerprint(folder) != expected


def test_the_fingerprint_sees_the_type_of_a_weight():
    model = tiny_model()
    assert content_fingerprint(tiny_model(dtype="bfloat16")) != content_fingerprint(model)
    assert content_fingerprint(tiny_model()) == content_fingerprint(model)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1.0
    assert content_fingerprint(tiny_model()) != content_fingerprint(model)
    untied = tiny_model()  # a head of its own, whatever the config says
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight + 1.0)
    assert content_fingerprint(tiny_model()) != content_fingerprint(untied)


def test_the_fingerprint_is_a_fixed_function(tmp_path):
    # caches and checkpoints on disk hold fingerprints: a new value here orphans them
    (tmp_path / "config.json").write_text('{"b": 1, "a": [2, 3]}')
    save_file({"w": torch.tensor([[1.0, 2.0]]), "n": torch.tensor(3)}, tmp_path / "model.safetensors")
    assert content_fingerprint(tmp_path) == "93093e13beeb2237d83bc3950d8b204963817f6a32afd5543bffdc30045e62ee"


def test_no_fingerprint_without_a_model(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        content_fingerprint(tmp_path / "nothing")
    with pytest.raises(UserError, match="not a model folder"):
        content_fingerprint(tmp_path)
