"""Responses are encoded as they stand behind their prompts, whatever a tokenizer does with a text's beginning."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mgsr.config.schema import DataConfig
from mgsr.data.annotate import SpanAnnotator
from mgsr.data.encoding import ids_behind, plain_ids
from mgsr.data.prompts import encode_prompt, encode_rows, end_id
from mgsr.data.rows import Row
from mgsr.data.spans import TokenSpeller
from mgsr.data.splits import encode
from mgsr.data.templates import render
from mgsr.runtime.errors import ConfigError, UserError

SPECIAL = ["<unk>", "<s>", "</s>"]
TEXTS = ["Say it aloud to the old dog.", "The old dog saw the cat.", "Ab\nAb ab.\n\nThe cat", "=>\nIt saw it"] * 4


def finished(backend: Tokenizer, **more: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **more
    )


def llama() -> PreTrainedTokenizerFast:
    """Llama 2's: a space before every text, spaces as "▁", nothing split off, bytes for the rest, BOS and EOS."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    # the line break is a byte to it, as in Llama 2
    lines = [line for text in TEXTS for line in text.split("\n")]
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    content = json.loads(backend.to_str())
    # the bytes are tokens of the vocabulary, as there, and none that was added
    content["added_tokens"] = content["added_tokens"][: len(SPECIAL)]
    backend = Tokenizer.from_str(json.dumps(content))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return finished(backend)


def metaspace_bpe() -> PreTrainedTokenizerFast:
    """Mistral's and Gemma's kind: Metaspace, a space before the first word."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=90, special_tokens=SPECIAL, show_progress=False)
    )
    return finished(backend)


def unigram() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return finished(backend)


def byte_level(*, prefix_space: bool = False) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return finished(backend)


def word_piece() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    return finished(backend)


TOKENIZERS = {
    "llama": llama(),
    "metaspace": metaspace_bpe(),
    "unigram": unigram(),
    "byte_level": byte_level(),
    "prefix_space": byte_level(prefix_space=True),
    "word_piece": word_piece(),
}
PROMPTS = ["Say it aloud.\n=>\n", "Say it aloud to the old dog:", "The old dog\n\n=>\n"]
RESPONSES = ["The old dog saw it.", "it saw", "Ab ab.\nThe cat", "dog"]


def row(output: str, instruction: str = "Say it aloud.") -> Row:
    return Row(0, instruction, "", (output,), where="rows.jsonl:1")


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("response", RESPONSES)
def test_prompt_and_response_are_cut_out_of_the_whole(name: str, prompt: str, response: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids, together = ids_behind(response, prompt, tokenizer)
    front = plain_ids(prompt, tokenizer)
    assert together == (plain_ids(prompt + response, tokenizer)[: len(front)] == front)
    if together:
        assert front + ids == plain_ids(prompt + response, tokenizer)
    # what it spells is the response, without a space before it
    if name != "word_piece":
        text, offsets = TokenSpeller(tokenizer).offsets([*ids, 2])
        assert text == response
        assert offsets[0][0] == 0 and offsets[-1] == (len(response), len(response))


@pytest.mark.parametrize("name", ["llama", "metaspace", "unigram", "prefix_space"])
def test_a_response_has_no_space_that_its_text_has_not(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    alone = TokenSpeller(tokenizer).offsets(plain_ids("The old dog saw it.", tokenizer))[0]
    assert alone == " The old dog saw it."
    (example,) = encode_rows([row("The old dog saw it.")], tokenizer, template="plain").examples
    assert TokenSpeller(tokenizer).offsets(example.response_ids)[0] == "The old dog saw it."
    # so the phrases are those of the text, and the first token belongs to the first of them
    (spans,) = SpanAnnotator(tokenizer).annotate([example.response_ids])
    assert spans[0] == 0 and spans[-1] == -1


@pytest.mark.parametrize("name", sorted({*TOKENIZERS} - {"unigram"}))
def test_a_token_over_the_border_leaves_the_prompt_as_it_is(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    prompt, output = "Say it to the o", "ld dog."
    ids, together = ids_behind(output, prompt, tokenizer)
    assert not together, "`old` reaches from one into the other"
    if name != "word_piece":
        assert TokenSpeller(tokenizer).offsets(ids)[0] == output
    else:
        assert ids == plain_ids(output, tokenizer)


def test_rows_encoded_apart_are_counted_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    # its regular expression joins what stands before a line break with it
    backend = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merged = {"Ċ": 0, "ĊĊ": 1, "a": 2, "=": 3, ">": 4, "S": 5, "</s>": 6, "<unk>": 7, "<s>": 8}
    backend.model = models.BPE(vocab=merged, merges=[("Ċ", "Ċ")])
    tokenizer = finished(backend)
    rows = [row("a", "S"), row("\na", "S"), row("\n\na", "S")]
    config = DataConfig(template="plain")
    encoded = encode(rows, tokenizer, config, "training rows")
    assert encoded.apart == 2 and encoded.truncated_responses == 0
    assert "training rows: 2 of 3 responses encoded apart from their prompts" in capsys.readouterr().out
    ends = [example.response_ids for example in encoded.examples]
    assert ends == [(2, 6), (0, 2, 6), (1, 2, 6)]
    assert len({example.prompt_ids for example in encoded.examples}) == 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_cut_prompt_is_followed_as_it_was_cut(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    long = row("The cat saw it.", "Say it aloud to the old dog. " * 20)
    prompt = encode_prompt(long, tokenizer, template="plain", max_prompt_length=14)
    assert prompt.truncated and prompt.text != render(long, "plain")
    (example,) = encode_rows([long], tokenizer, template="plain", max_prompt_length=14).examples
    assert example.prompt_ids == prompt.ids
    assert example.response_ids == (*ids_behind("The cat saw it.", prompt.text, tokenizer)[0], 2)
    # nothing is put behind a prompt, BOS stands before it once
    begins = 1 if name == "llama" else 0
    assert prompt.ids.count(1) == begins and prompt.ids[:begins] == (1,) * begins and 2 not in prompt.ids


def test_the_end_token_is_a_mark_of_the_tokenizer() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["<|end|>"])
    assert (end_id(tokenizer), end_id(tokenizer, "<s>"), end_id(tokenizer, "<|end|>")) == (
        2,
        1,
        len(tokenizer) - 1,
    )
    (example,) = encode_rows([row("it saw")], tokenizer, end_token="<|end|>").examples
    assert example.response_ids[-1] == len(tokenizer) - 1 and 2 not in example.response_ids
    with pytest.raises(ConfigError, match=r"'<\|emd\|>' is no token of .*did you mean `<\|end\|>`"):
        end_id(tokenizer, "<|emd|>")
    with pytest.raises(ConfigError, match="'a' is ordinary text of"):
        end_id(tokenizer, "a")


def test_an_end_that_is_no_special_token_spells_nothing() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["<|end|>"])
    ids = [*plain_ids("The old dog", tokenizer), len(tokenizer) - 1]
    assert TokenSpeller(tokenizer).offsets(ids)[0] == "The old dog<|end|>"
    assert TokenSpeller(tokenizer, [ids[-1]]).offsets(ids)[0] == "The old dog"


def test_other_tokenizers_have_a_way_out() -> None:
    with pytest.raises(UserError, match=r"has WordPiece; set spans\.chunker=fixed"):
        SpanAnnotator(TOKENIZERS["word_piece"])
