"""The trained tokenizer: whole words, any text back unchanged, the same every time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaConfig

from mgsr.data.synthetic import generate_rows
from mgsr.data.tokenizer import LONGEST_PIECE, train_tokenizer

TEXTS = ["The cat saw the dog.\n", "Then the dog saw Ann.", "Ann ran to the cat."]
WHOLE = train_tokenizer(TEXTS)
MERGED = train_tokenizer(TEXTS * 3, vocab_size=300)
STRINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def test_a_known_word_is_one_token_with_its_space() -> None:
    ids = WHOLE.encode("The cat saw Ann.\n")
    assert [WHOLE.decode([index]) for index in ids] == ["The", " cat", " saw", " Ann", ".", "\n"]
    assert [WHOLE.decode([index]) for index in WHOLE.encode("Ann saw")] == ["Ann", " saw"]


def test_an_unknown_word_is_spelled_in_bytes() -> None:
    assert len(WHOLE.encode(" cats")) == 5
    assert len(WHOLE.encode("é")) == 2


@settings(max_examples=60, deadline=None)
@given(STRINGS)
def test_any_text_comes_back(text: str) -> None:
    for tokenizer in (WHOLE, MERGED):
        ids = tokenizer.encode(text, split_special_tokens=True)
        assert tokenizer.decode(ids) == text
        assert all(index >= 2 for index in ids)


@pytest.mark.parametrize("text", ["a , b .", " don 't  ", "<eos> and <pad>", "日本\U0001f642\x00\t\r\n"])
def test_hard_texts_come_back(text: str) -> None:
    for tokenizer in (WHOLE, MERGED):
        assert tokenizer.decode(tokenizer.encode(text, split_special_tokens=True)) == text


def test_special_tokens_are_distinct_and_never_added() -> None:
    for tokenizer in (WHOLE, MERGED):
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
        assert tokenizer.encode("Ann", add_special_tokens=True) == tokenizer.encode(
            "Ann", add_special_tokens=False
        )
        assert tokenizer.encode("Ann<eos>")[-1] == 1
        assert tokenizer.decode([*tokenizer.encode("Ann"), 1, 0], skip_special_tokens=True) == "Ann"


def test_the_vocabulary_holds_bytes_and_words_and_nothing_else() -> None:
    words = {"The", " cat", " saw", " the", " dog", "Then", " Ann", "Ann", " ran", " to"}
    assert len(WHOLE) == 2 + 256 + len(words)
    assert {WHOLE.decode([index]) for index in range(258, len(WHOLE))} == words
    single = [WHOLE.convert_ids_to_tokens(index) for index in range(2, 258)]
    assert all(len(token) == 1 for token in single) and len(set(single)) == 256
    assert single == [MERGED.convert_ids_to_tokens(index) for index in range(2, 258)]


def test_training_again_gives_the_same_ids() -> None:
    assert train_tokenizer(TEXTS[::-1]).get_vocab() == WHOLE.get_vocab()
    again = train_tokenizer(iter(TEXTS * 3), vocab_size=300)
    assert again.get_vocab() == MERGED.get_vocab()
    assert again.encode(TEXTS[0]) == MERGED.encode(TEXTS[0])


def test_a_size_is_kept_and_used_for_merges() -> None:
    small = train_tokenizer(TEXTS * 3, vocab_size=270)
    assert len(small) == 270
    assert len(MERGED.encode(TEXTS[0])) < len(small.encode(TEXTS[0])) < len(TEXTS[0])
    assert len(train_tokenizer(TEXTS, vocab_size=258).encode("The cat")) == 7
    with pytest.raises(ValueError, match=r"at least 258 .* got 257"):
        train_tokenizer(TEXTS, vocab_size=257)


def test_saved_beside_a_model_it_loads_as_the_same_tokenizer(tmp_path: Path) -> None:
    WHOLE.save_pretrained(tmp_path)
    LlamaConfig(vocab_size=len(WHOLE)).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.pad_token_id, loaded.eos_token_id, len(loaded)) == (0, 1, len(WHOLE))
    for text in (*TEXTS, "Zebra \U0001f642 <eos>"):
        assert loaded.encode(text) == WHOLE.encode(text)
        assert loaded.decode(loaded.encode(text)) == text


def test_the_synthetic_set_takes_hardly_more_than_one_token_a_word() -> None:
    rows = generate_rows("teacher", 3000, seed=0)
    tokenizer = train_tokenizer(text for row in rows for text in (row.instruction, row.input, *row.references))
    assert 1500 < len(tokenizer) < 1800
    texts = [text for row in generate_rows("dev", 1100, seed=5) for text in row.references]
    pieces = [len(re.findall(r"\w+|[^\w\s]", text)) for text in texts]
    tokens = [len(tokenizer.encode(text)) for text in texts]
    assert sum(tokens) < 1.1 * sum(pieces)
    # what is longer has a rare word with a capital at its front
    longer = [text for text, found, least in zip(texts, tokens, pieces, strict=True) if found > least]
    assert 0 < len(longer) < 0.25 * len(texts) and all(re.search(r"[A-Z]", text) for text in longer)


@pytest.mark.parametrize("text", ["ab" * 100_000, " " * 200_000, "日本" * 40_000, "z" * 200_000 + " the end"])
def test_a_text_without_a_break_ends(text: str) -> None:
    """Merges of one piece took time that grows with its square."""
    tokenizer = train_tokenizer([text], vocab_size=300)
    assert tokenizer.decode(tokenizer.encode(text[:5000])) == text[:5000]


def test_pieces_are_cut_for_learning_alone() -> None:
    long = "".join(chr(ord("a") + i * i % 23) for i in range(LONGEST_PIECE + 500))
    texts = [long, *TEXTS]
    cut = train_tokenizer([long[:LONGEST_PIECE], long[LONGEST_PIECE:], *TEXTS], vocab_size=400)
    assert train_tokenizer(texts, vocab_size=400).get_vocab() == cut.get_vocab()


@pytest.mark.parametrize("vocab_size", [10**9, 2**40, 10_000])
def test_a_vocabulary_beyond_the_texts_is_as_large_as_they_give(vocab_size: int) -> None:
    """The trainer reserved memory for all, and ended the process."""
    assert (
        train_tokenizer(TEXTS, vocab_size=vocab_size).get_vocab()
        == train_tokenizer(TEXTS, vocab_size=600).get_vocab()
    )
