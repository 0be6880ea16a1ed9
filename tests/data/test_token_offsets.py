"""Where any token ids stand in the text that they spell."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from mgsr.data.spans import Offset, Phrase, TokenSpeller, span_ids
from mgsr.runtime.errors import UserError

CORPUS = [
    "the quick brown fox jumps over the lazy dog, and the dog sleeps.",
    "naïve café Zoë 1990 in the house",
] * 4


def token_offsets(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> tuple[str, list[Offset]]:
    return TokenSpeller(tokenizer).offsets(ids)


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")
    fast.add_tokens([AddedToken("<think it>", special=False, normalized=False)])
    return fast


def byte_level(trim: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if trim:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<eos>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrap(tokenizer)


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def sentencepiece_bpe() -> PreTrainedTokenizerFast:
    """As Llama 2 has it: spaces become ▁ by a normalizer, and the decoder is a sequence."""
    pieces = [
        "<unk>",
        "<eos>",
        *BYTES,
        *"▁abcdefghijklmnopqrstuvwxyzé.,",
        "▁t",
        "▁th",
        "he",
        "▁the",
        "do",
        "dog",
    ]
    merges = [("▁", "t"), ("▁t", "h"), ("h", "e"), ("▁th", "e"), ("d", "o"), ("do", "g")]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<eos>"])
    return wrap(tokenizer)


def metaspace_unigram() -> PreTrainedTokenizerFast:
    words = ["▁the", "▁dog", "▁", "dog", "s", *"abcdefghijklmnopqrtuvwxyzé.,"]
    pieces = [
        ("<unk>", -20.0),
        ("<eos>", -20.0),
        *((byte, -10.0) for byte in BYTES),
        *((word, -2.0) for word in words),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(["<unk>", "<eos>"])
    return wrap(tokenizer)


BYTE_LEVEL, TRIMMED = byte_level(), byte_level(trim=True)
SENTENCEPIECE = [sentencepiece_bpe(), metaspace_unigram()]
TEXTS = st.text(max_size=40) | st.lists(st.sampled_from([*"ab. \n", "the", "é", "😀", "👩‍👧", "dog"])).map("".join)


def ids_of(tokenizer) -> st.SearchStrategy[list[int]]:
    rare = st.sampled_from([tokenizer.eos_token_id, len(tokenizer) - 1, len(tokenizer) + 5])
    return st.lists(st.integers(0, len(tokenizer) - 1) | rare, max_size=30)


def assert_monotone_cover(text: str, offsets: list[tuple[int, int]]) -> None:
    written = [(start, end) for start, end in offsets if end > start]
    assert all(0 <= start <= end <= len(text) for start, end in offsets)
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(written))
    assert all(a[0] <= b[0] for a, b in pairwise(offsets))
    assert {c for start, end in written for c in range(start, end)} == set(range(len(text)))


# ---- offsets


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_byte_level_offsets_of_canonical_ids_equal_the_tokenizers_own(text):
    encoded = BYTE_LEVEL(text, return_offsets_mapping=True)
    spelled, offsets = token_offsets(BYTE_LEVEL, encoded["input_ids"])
    assert_monotone_cover(spelled, offsets)
    if "<" not in text:  # an added token or EOS written out is another matter
        assert spelled == text
        assert offsets == [tuple(pair) for pair in encoded["offset_mapping"]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["the", " the", " dog", ".", " é", "😀"])).map("".join))
def test_trimmed_offsets_of_the_tokenizer_differ_by_the_leading_space_alone(text):
    encoded = TRIMMED(text, return_offsets_mapping=True)
    _, offsets = token_offsets(TRIMMED, encoded["input_ids"])
    for (start, end), (theirs, their_end) in zip(offsets, encoded["offset_mapping"], strict=True):
        if text[start:end].strip():  # theirs is empty for a space alone
            assert end == their_end and text[start:theirs].strip() == ""


@settings(max_examples=60, deadline=None)
@given(TEXTS.filter(lambda text: "▁" not in text and "<" not in text), st.sampled_from(SENTENCEPIECE))
def test_sentencepiece_offsets_of_canonical_ids(text, tokenizer):
    spelled, offsets = token_offsets(tokenizer, tokenizer(text)["input_ids"])
    assert_monotone_cover(spelled, offsets)
    assert spelled in (text, " " + text)  # one space is prepended, and Metaspace leaves out one that is there


def test_sentencepiece_offsets_equal_the_tokenizers_own_but_for_the_prepended_space():
    text = "the dog"
    encoded = SENTENCEPIECE[1](text, return_offsets_mapping=True)
    spelled, offsets = token_offsets(SENTENCEPIECE[1], encoded["input_ids"])
    assert (spelled, offsets) == (" the dog", [(0, 4), (4, 8)])
    assert [tuple(pair) for pair in encoded["offset_mapping"]] == [(0, 3), (3, 7)]


@settings(max_examples=60, deadline=None)
@given(ids_of(BYTE_LEVEL))
def test_any_byte_level_ids_spell_what_decode_gives_and_prefixes_end_where_they_should(ids):
    text, offsets = token_offsets(BYTE_LEVEL, ids)
    assert len(offsets) == len(ids)
    assert_monotone_cover(text, offsets)
    assert text == BYTE_LEVEL.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    for length in range(1, len(ids) + 1):
        prefix = BYTE_LEVEL.decode(ids[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if not prefix.endswith("\ufffd") and offsets[length - 1][1] > offsets[length - 1][0]:
            assert text[: offsets[length - 1][1]] == prefix


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(SENTENCEPIECE))
def test_any_sentencepiece_ids_spell_what_decode_gives(data, tokenizer):
    ids = data.draw(ids_of(tokenizer))
    text, offsets = token_offsets(tokenizer, ids)
    assert_monotone_cover(text, offsets)
    decoded = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if "\ufffd" not in decoded + text:  # the two count the replacements of broken characters differently
        assert text in (decoded, " " + decoded)


def test_every_token_of_a_split_character_has_its_range_and_eos_an_empty_one():
    ids = BYTE_LEVEL.convert_tokens_to_ids(["a", "Ã", "«", "Ġ", "ð", "Ł", "ĺ", "<eos>", "Ģ", "<eos>"])
    text, offsets = token_offsets(BYTE_LEVEL, ids)
    assert text == "aë 😀"
    assert offsets == [(0, 1), (1, 2), (1, 2), (2, 3), (3, 4), (3, 4), (3, 4), (3, 3), (3, 4), (4, 4)]


def test_broken_characters_become_replacements():
    ids = BYTE_LEVEL.convert_tokens_to_ids(["Ã", "a", "ð", "Ł", "b"])
    assert token_offsets(BYTE_LEVEL, ids) == ("\ufffda\ufffdb", [(0, 1), (1, 2), (2, 3), (2, 3), (3, 4)])


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, *SENTENCEPIECE])
def test_added_tokens_are_literal_and_unknown_ids_silent(tokenizer):
    added = tokenizer.convert_tokens_to_ids("<think it>")
    assert token_offsets(tokenizer, [added, 10**6, added]) == (
        "<think it>" * 2,
        [(0, 10), (10, 10), (10, 20)],
    )


def test_byte_level_tokens_with_foreign_characters_are_literal_as_in_decode():
    inner = Tokenizer(models.BPE({"<eos>": 0, "a": 1, "日本": 2, "é b": 3}, []))
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    text, offsets = token_offsets(tokenizer, [1, 2, 3])
    assert text == tokenizer.decode([1, 2, 3]) == "a日本é b"
    assert offsets == [(0, 1), (1, 3), (3, 6)]


def test_a_tokenizer_without_decoder_joins_words_by_a_space():
    vocab = {"<eos>": 0, "the": 1, "dog": 2}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocab, "<eos>")), eos_token="<eos>"
    )
    assert token_offsets(tokenizer, [0, 1, 0, 2]) == ("the dog", [(0, 0), (0, 3), (3, 3), (3, 7)])


def test_other_tokenizers_are_refused_in_one_line():
    inner = Tokenizer(models.WordPiece({"[UNK]": 0}))
    inner.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match=r"byte-level or SentencePiece-like tokenizer: .* has WordPiece"):
        TokenSpeller(PreTrainedTokenizerFast(tokenizer_object=inner))

    class Slow:
        added_tokens_decoder: dict = {}
        all_special_ids: list = []

    with pytest.raises(UserError, match=r"need a fast tokenizer .* Slow"):
        TokenSpeller(Slow())


# ---- span ids of any token ids


@settings(max_examples=50, deadline=None)
@given(st.data(), st.sampled_from([BYTE_LEVEL, *SENTENCEPIECE]))
def test_span_ids_agree_with_a_look_at_every_character(data, tokenizer):
    """Independent: label the characters, and let every token's non-space characters vote."""
    text, offsets = token_offsets(tokenizer, data.draw(ids_of(tokenizer)))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    phrases = [Phrase(a, b, "NP") for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    label = {c: k for k, phrase in enumerate(phrases) for c in range(phrase.start, phrase.end)}
    expected = []
    for start, end in offsets:
        inside = [label.get(c) for c in range(start, end)]
        votes = Counter(
            k for c, k in zip(range(start, end), inside, strict=True) if k is not None and not text[c].isspace()
        )
        if text[start:end].strip():
            most = max(votes.values(), default=0)
            expected.append(min((k for k, n in votes.items() if n == most), default=-1))
        else:
            expected.append(inside[0] if inside and inside[0] is not None and len(set(inside)) == 1 else -1)
    found = span_ids(phrases, offsets, text)
    names = sorted(set(expected) - {-1})
    assert found == [-1 if k == -1 else names.index(k) for k in expected]
