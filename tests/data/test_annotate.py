"""The phrase cache, and responses in token ids -> span ids."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mgsr.data.annotate import PhraseCache, SpanAnnotator
from mgsr.data.chunkers import LightChunker
from mgsr.data.spans import Phrase
from mgsr.runtime.errors import UserError


class CountingChunker:
    """Every word is a phrase; remembers what it was asked."""

    def __init__(self, fingerprint: str = "words-1") -> None:
        self.fingerprint = fingerprint
        self.asked: list[str] = []

    def __call__(self, text: str) -> list[Phrase]:
        return self.many([text])[0]

    def many(self, texts) -> list[list[Phrase]]:
        self.asked += texts
        found = []
        for text in texts:
            words = text.split(" ")
            starts = [sum(len(word) + 1 for word in words[:k]) for k in range(len(words))]
            found.append([Phrase(s, s + len(word), "NP") for s, word in zip(starts, words, strict=True) if word])
        return found


def test_every_text_is_asked_once_also_over_runs(tmp_path):
    path = tmp_path / "cache" / "phrases.json"
    first = CountingChunker()
    cache = PhraseCache(first, path)
    assert cache(["a b", "c", "a b"])[0] == [Phrase(0, 1, "NP"), Phrase(2, 3, "NP")]
    cache(["c"])
    assert first.asked == ["a b", "c"]
    again, other = CountingChunker(), CountingChunker("words-2")
    assert PhraseCache(again, path)(["c", "d é"]) == [
        [Phrase(0, 1, "NP")],
        [Phrase(0, 1, "NP"), Phrase(2, 3, "NP")],
    ]
    PhraseCache(other, path)(["c"])
    assert (again.asked, other.asked) == (["d é"], ["c"])
    stored = json.loads(path.read_text("utf-8"))
    assert {name: len(texts) for name, texts in stored.items()} == {"words-1": 3, "words-2": 1}
    assert [file.name for file in path.parent.iterdir()] == ["phrases.json"]  # no draft left


def test_two_caches_on_one_file_keep_each_others_phrases(tmp_path):
    one, two = CountingChunker(), CountingChunker()
    left, right = PhraseCache(one, tmp_path / "p.json"), PhraseCache(two, tmp_path / "p.json")
    left(["a"])
    right(["b"])
    late = CountingChunker()
    PhraseCache(late, tmp_path / "p.json")(["a", "b"])
    assert late.asked == []


@pytest.mark.parametrize("content", ["{", "[1]", '{"x": {"y": [[1, 2]]}}', '{"x": 3}'])
def test_a_file_that_is_no_cache_is_left_alone(tmp_path, content):
    path = tmp_path / "notes.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"notes\.json.* no.* phrase cache"):
        PhraseCache(CountingChunker(), path)
    assert path.read_text() == content


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=["<eos>"], initial_alphabet=alphabet)
    inner.train_from_iterator(["the black cat sat on the mat, the cat"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")


def response(tokenizer, text: str) -> list[int]:
    return [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]


def words_of(tokenizer, ids: list[int], spans: list[int]) -> list[str]:
    """The text of each span."""
    count = max(spans, default=-1) + 1
    return [tokenizer.decode([i for i, span in zip(ids, spans, strict=True) if span == k]) for k in range(count)]


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        ("outermost", ["The black cat", " sat", " on the mat"]),
        ("innermost", ["The black cat", " sat", " the mat"]),
    ],
)
def test_spans_of_a_response(tokenizer, overlap, expected):
    ids = response(tokenizer, "The black cat sat on the mat.")
    annotator = SpanAnnotator(tokenizer, overlap=overlap)
    (spans,) = annotator.annotate([ids])
    assert words_of(tokenizer, ids, spans) == expected
    assert spans[-2:] == [-1, -1]  # the full stop and EOS
    assert annotator.fingerprint == f"{LightChunker().fingerprint}/{overlap}"


def test_ids_that_are_not_canonical_get_the_same_spans(tokenizer):
    text = "The black cat sat on the mat."
    pieces = [tokenizer.convert_tokens_to_ids("Ġ" if char == " " else char) for char in text]
    assert pieces != tokenizer(text)["input_ids"]
    (spans,) = SpanAnnotator(tokenizer).annotate([pieces])
    assert words_of(tokenizer, pieces, spans) == ["The black cat", "sat", "on the mat"]


def test_a_response_of_nothing_and_none_at_all(tokenizer):
    annotator = SpanAnnotator(tokenizer)
    assert annotator.annotate([]) == []
    assert annotator.annotate([[], [tokenizer.eos_token_id]]) == [[], [-1]]


def test_the_annotator_asks_its_chunker_once_per_text(tokenizer, tmp_path):
    chunker = CountingChunker()
    annotator = SpanAnnotator(tokenizer, chunker=chunker, cache_file=tmp_path / "c.json")
    ids = response(tokenizer, "the cat")
    first, second = annotator.annotate([ids, ids])
    assert first == second == annotator.annotate([ids])[0]
    assert chunker.asked == ["the cat"] and (tmp_path / "c.json").exists()


def test_replacements(tokenizer):
    ids = response(tokenizer, "The black cat sat on the mat.")
    assert SpanAnnotator(tokenizer, chunker="all_adjacent").annotate([ids, []]) == [[0] * len(ids), []]
    runs = SpanAnnotator(tokenizer, chunker="fixed", fixed_length=3).annotate([ids])[0]
    assert runs == [k // 3 for k in range(len(ids))]


def test_random_spans_have_the_chunkers_lengths_and_are_the_same_every_time(tokenizer):
    texts = ["The black cat sat on the mat.", "the cat", "on the mat the cat sat and sat", ""]
    responses = [response(tokenizer, text) for text in texts]
    real = SpanAnnotator(tokenizer, chunker="light").annotate(responses)
    placed = SpanAnnotator(tokenizer, chunker="random", random_lengths="light", seed=4).annotate(responses)

    def pairs(ids):
        return sum(a == b != -1 for a, b in pairwise(ids))

    assert [pairs(r) for r in real] == [pairs(r) for r in placed] and real != placed
    assert [len(r) for r in placed] == [len(r) for r in responses] and all(r[-1] == -1 for r in placed)
    alone = SpanAnnotator(tokenizer, chunker="random", random_lengths=LightChunker(), seed=4)
    assert [alone.annotate([r])[0] for r in responses] == placed  # whatever the batch
    for seed in range(20):  # EOS never gets a span, as with the chunker
        (spans,) = SpanAnnotator(tokenizer, chunker="random", seed=seed).annotate(responses[:1])
        assert spans[-1] == -1
    other = SpanAnnotator(tokenizer, chunker="random", seed=5)
    assert other.annotate(responses) != placed and other.fingerprint != alone.fingerprint


def test_wrong_names_are_refused(tokenizer):
    with pytest.raises(ValueError, match="'spcy'; did you mean `spacy`"):
        SpanAnnotator(tokenizer, chunker="spcy")
    with pytest.raises(ValueError, match="'inner'"):
        SpanAnnotator(tokenizer, chunker="fixed", overlap="inner")
    with pytest.raises(ValueError, match="got 0"):
        SpanAnnotator(tokenizer, chunker="fixed", fixed_length=0)
    with pytest.raises(ValueError, match="'random'"):
        SpanAnnotator(tokenizer, chunker="random", random_lengths="random")
