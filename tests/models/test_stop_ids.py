"""Which ids end a text, what fills a batch, and what an export tells `generate()` of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from mgsr.data.encoding import decode
from mgsr.data.tokenizer import train_tokenizer
from mgsr.models import build_causal_lm, load_causal_lm, load_tokenizer, save_model_folder, text_ends
from mgsr.runtime.errors import UserError

TEXTS = ["the red cat sat on the mat", "a dog saw the red cat"] * 5
MARKS = ("<|im_end|>", "<|eot|>")


def words() -> PreTrainedTokenizerFast:
    """280 ids at most: pad 0, eos 1; then the two marks, the second of which is not special."""
    tokenizer = train_tokenizer(TEXTS, vocab_size=280)
    tokenizer.add_special_tokens({"extra_special_tokens": [MARKS[0]]})
    tokenizer.add_tokens([AddedToken(MARKS[1], special=False)])
    return tokenizer


def model(width: int, **options: Any) -> Any:
    sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 64, "seed": 0}
    return build_causal_lm(
        "llama", **{"vocab_size": width, "eos_token_id": 1, "pad_token_id": 0, **sizes, **options}
    )


def test_every_place_that_names_an_end_is_read() -> None:
    tokenizer = words()
    chat, eot = tokenizer.convert_tokens_to_ids(list(MARKS))
    one, other = model(len(tokenizer)), model(len(tokenizer))
    assert text_ends(tokenizer, [one], vocab_size=len(tokenizer)).stop_ids == (1,)
    assert text_ends(tokenizer, [one], vocab_size=len(tokenizer)).note == ""
    # the generation settings of one model, the config of another, the tokenizer of the other
    one.generation_config.eos_token_id = [chat, 1]
    assert text_ends(tokenizer, [one], vocab_size=len(tokenizer)).stop_ids == (1, chat)
    other.config.eos_token_id = [eot]
    found = text_ends(tokenizer, [one, other], vocab_size=len(tokenizer))
    assert found.stop_ids == (1, chat, eot)
    assert f"answers end with `<eos>` (id 1); written text ends at `<eos>` (id 1), `{MARKS[0]}`" in found.note
    taught = words()
    taught.eos_token = MARKS[0]
    plain = model(len(tokenizer))
    assert text_ends(tokenizer, [plain], vocab_size=len(tokenizer), others=[taught]).stop_ids == (1, chat)
    named = text_ends(tokenizer, [one], vocab_size=len(tokenizer), end_token=MARKS[1])
    assert (named.end_id, named.stop_ids) == (eot, (eot, 1, chat))


@pytest.mark.parametrize("strange", [LlamaConfig().eos_token_id, 50_256, 277])
def test_ordinary_text_and_ids_that_are_not_there_are_left_out(strange: int) -> None:
    tokenizer = words()
    one = model(len(tokenizer))
    one.config.eos_token_id = strange
    found = text_ends(tokenizer, [one], vocab_size=len(tokenizer))
    assert found.stop_ids == (1,) and "left out" in found.note and f"id {strange}" in found.note


def test_padding_is_an_id_of_the_model_and_the_end_token_must_be() -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=280)
    narrow = len(tokenizer)
    assert text_ends(tokenizer, [model(narrow)], vocab_size=narrow).pad_id == 0
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == narrow
    assert text_ends(tokenizer, [model(narrow)], vocab_size=narrow).pad_id == 1
    tokenizer.add_special_tokens({"eos_token": "[END]"})
    with pytest.raises(UserError, match=rf"`\[END\]` \(id {narrow + 1}\) is outside the {narrow} ids"):
        text_ends(tokenizer, [model(narrow)], vocab_size=narrow)
    assert text_ends(tokenizer, [model(narrow)], vocab_size=narrow, end_token="<eos>").stop_ids == (1,)


def test_a_stop_that_is_not_special_is_no_part_of_the_text() -> None:
    tokenizer = words()
    eot = tokenizer.convert_tokens_to_ids(MARKS[1])
    ids = [*tokenizer.encode("the cat"), eot]
    assert decode(tokenizer, ids) == f"the cat{MARKS[1]}"
    assert decode(tokenizer, ids, [1, eot]) == "the cat" == decode(tokenizer, ids[:-1], [1, eot])


def test_generation_settings_keep_what_the_source_says(tmp_path: Path) -> None:
    """A temperature without sampling contradicts itself, and published models have it."""
    tokenizer = words()
    made = model(len(tokenizer))
    source = GenerationConfig(temperature=0.6, top_p=0.9, eos_token_id=[282, 1], bos_token_id=5)
    ends = text_ends(tokenizer, [made], vocab_size=len(tokenizer), end_token=MARKS[0])
    made.generation_config = ends.given_to(source)
    save_model_folder(made, tokenizer, tmp_path / "model")
    written = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert written["eos_token_id"] == list(ends.stop_ids) and written["pad_token_id"] == 0
    assert (written["temperature"], written["top_p"], written["bos_token_id"]) == (0.6, 0.9, 5)
    loaded = load_causal_lm(tmp_path / "model")
    assert loaded.generation_config.eos_token_id == list(ends.stop_ids)
    # and once more, as a teacher's folder is written again after fine-tuning
    save_model_folder(loaded, tokenizer, tmp_path / "again")


def test_a_tokenizer_is_written_as_older_transformers_read_it(tmp_path: Path) -> None:
    tokenizer = words()
    save_model_folder(model(len(tokenizer)), tokenizer, tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    # transformers 4.57 knows neither `TokenizersBackend` nor a list of extra tokens
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in settings and settings["additional_special_tokens"] == [MARKS[0]]
    for loaded in (load_tokenizer(tmp_path / "model"), AutoTokenizer.from_pretrained(tmp_path / "model")):
        assert type(loaded) is type(tokenizer) and loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.all_special_tokens == tokenizer.all_special_tokens
        text = f"the red cat{MARKS[0]}"
        assert loaded.encode(text) == tokenizer.encode(text)
        assert (loaded.eos_token_id, loaded.pad_token_id) == (1, 0)
