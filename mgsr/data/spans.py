"""Phrases of a text in characters -> one span id per token.

Everything here is pure: no model, no file. The phrases come from `mgsr.data.chunkers`, the span ids go to the span
correlation loss (Liu et al. 2024, arXiv 2407.10068, eq. 10), which pairs neighbouring tokens of one span.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from mgsr.runtime.errors import UserError

NO_SPAN = -1
OVERLAPS = ("outermost", "innermost")

Offset = tuple[int, int]


class Phrase(NamedTuple):
    """Characters `start` up to, not including, `end` of a text; `kind` is NP, VP or PP."""

    start: int
    end: int
    kind: str


def resolve_overlap(phrases: Iterable[Phrase], overlap: str = "outermost") -> list[Phrase]:
    """Disjoint phrases, in text order: of phrases that share characters one is kept and the others go.

    `outermost` prefers the longer phrase, `innermost` the shorter one; of equal lengths the earlier stays.
    A phrase is kept or dropped as a whole: with `innermost`, "in [the house]" leaves "in" without a span.

    Raises:
        ValueError: unknown `overlap`.

    >>> nested = [Phrase(0, 12, "PP"), Phrase(3, 12, "NP"), Phrase(13, 17, "VP")]
    >>> [p.kind for p in resolve_overlap(nested)], [p.kind for p in resolve_overlap(nested, "innermost")]
    (['PP', 'VP'], ['NP', 'VP'])
    """
    if overlap not in OVERLAPS:
        raise ValueError(f"overlap must be one of {OVERLAPS}, got {overlap!r}")
    sign = -1 if overlap == "outermost" else 1
    kept: list[Phrase] = []
    for phrase in sorted(set(phrases), key=lambda p: (sign * (p.end - p.start), p)):
        if phrase.end > phrase.start and all(phrase.end <= k.start or k.end <= phrase.start for k in kept):
            kept.append(phrase)
    return sorted(kept)


def span_ids(
    phrases: Iterable[Phrase], offsets: Sequence[Offset], text: str, *, overlap: str = "outermost"
) -> list[int]:
    """The span of every token: 0, 1, ... in text order (so below the number of tokens), -1 for none.

    A token belongs to the phrase that holds the most of its non-space characters, the first of equals. So a
    leading space or a quote glued to a word does not cost the word its span. A token of spaces alone belongs
    to a phrase only if it lies inside; an empty one (EOS) to none.

    Args:
        phrases: in characters of `text`; they may overlap, see `resolve_overlap`.
        offsets: of every token, as `TokenSpeller.offsets` returns them with the text.
        text: what the chunker saw.

    Raises:
        ValueError: unknown `overlap`.

    >>> text, offsets = "The dog ran.", [(0, 3), (3, 7), (7, 11), (11, 12)]
    >>> span_ids([Phrase(0, 7, "NP"), Phrase(8, 11, "VP")], offsets, text)
    [0, 0, 1, -1]
    """
    disjoint = resolve_overlap(phrases, overlap)
    starts = [phrase.start for phrase in disjoint]
    found = [_span_of_token(_without_spaces(text, offset), text, disjoint, starts) for offset in offsets]
    number = {index: k for k, index in enumerate(sorted(set(found) - {NO_SPAN}))} | {NO_SPAN: NO_SPAN}
    return [number[index] for index in found]


def _span_of_token(core: Offset, text: str, disjoint: list[Phrase], starts: list[int]) -> int:
    start, end = core
    blank = text[start:end].isspace()
    best, most = NO_SPAN, 0
    for index in range(max(bisect_right(starts, start) - 1, 0), len(disjoint)):
        phrase = disjoint[index]
        if phrase.start >= end:
            break
        shared_start, shared_end = max(start, phrase.start), min(end, phrase.end)
        shared = sum(not c.isspace() for c in text[shared_start:shared_end])
        if blank:
            shared = int((shared_start, shared_end) == core)
        if shared > most:
            best, most = index, shared
    return best


def _without_spaces(text: str, offset: Offset) -> Offset:
    """The range without the spaces at its ends; a range of spaces alone stays as it is."""
    start, end = offset
    piece = text[start:end]
    if not piece.strip():
        return offset
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())


# ---- spans that know nothing of phrases, to compare with


def fixed_spans(length: int, run: int) -> list[int]:
    """Runs of `run` tokens, one after the other; the last may be shorter.

    Raises:
        ValueError: `run` below 1.

    >>> fixed_spans(5, 2)
    [0, 0, 1, 1, 2]
    """
    if run < 1:
        raise ValueError(f"a run has at least 1 token, got {run}")
    return [position // run for position in range(length)]


def all_adjacent_spans(length: int) -> list[int]:
    """One span over all tokens: every neighbour is a pair.

    >>> all_adjacent_spans(3)
    [0, 0, 0]
    """
    return [0] * length


def random_spans(ids: Sequence[int], *, key: str, seed: int, placeable: int | None = None) -> list[int]:
    """Spans of the same lengths as those in `ids`, in random order at random places, without overlap.

    Every arrangement of the spans and the tokens between them is equally likely. It depends on `seed` and
    `key` (the text) alone, so it is the same in every process and epoch. The number of pairs is kept.

    Args:
        ids: spans of the chunker, one id per token, -1 for none.
        placeable: only the first `placeable` tokens may get a span (default: all); no id >= 0 stands after.

    >>> random_spans([0, 0, 0, -1, -1, 1, -1], key="some text", seed=0, placeable=6)
    [-1, 0, 1, 1, 1, -1, -1]
    """
    room = len(ids) if placeable is None else placeable
    lengths = [len(list(run)) for span, run in groupby(ids) if span != NO_SPAN]
    free = room - sum(lengths)
    assert free >= 0 and room <= len(ids), (room, lengths, len(ids))
    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    draw = random.Random(int.from_bytes(digest, "big")).random
    # Blocks in random order: a span is one block, a free token too. Sorting by draws is stable over versions.
    blocks = [*lengths, *[0] * free]
    placed: list[int] = []
    span = 0
    for _, length in sorted((draw(), length) for length in blocks):
        placed += [span] * length or [NO_SPAN]
        span += length > 0
    return placed + [NO_SPAN] * (len(ids) - room)


# ---- token ids -> text, and where each token stands in it


class TokenSpeller:
    """Spells token ids as bytes, by the kind of decoder that the (fast) tokenizer has.

    Byte-level (GPT-2, OPT, Llama 3, Qwen, SmolLM2), SentencePiece-like (Llama 2, Mistral, Gemma: "▁" for a
    space, "<0xNN>" for a byte), or no decoder at all (whole words, a space between two).

    Args:
        silent: ids that spell nothing, beside the special tokens: those that end a text need not be special.

    Raises:
        UserError: another kind of tokenizer.
    """

    def __init__(self, tokenizer: Any, silent: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        special = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        self._spelled = {i: token.content.encode() for i, token in added.items()}
        self._spelled.update(dict.fromkeys({*special, *silent}, b""))
        self._kinds, self._space = _decoder_kinds(tokenizer)

    def spell(self, token_id: int) -> bytes:
        """The bytes of one token; none for a special token and for an id that the tokenizer does not know."""
        if token_id not in self._spelled:
            token = self._tokenizer.convert_ids_to_tokens([token_id])[0]
            self._spelled[token_id] = b"" if token is None else self._bytes_of(token)
        return self._spelled[token_id]

    def offsets(self, ids: Sequence[int]) -> tuple[str, list[Offset]]:
        """The text that any token ids spell, and the characters of every token in it.

        The ids need not be what the tokenizer would make of the text: a model writes what it likes. The text is
        that of `decode(ids, skip_special_tokens=True)` with a first space kept; what is not UTF-8 becomes U+FFFD.
        The ranges cover the text in order. A special token has an empty one; every token of a split character
        has that character's whole range.
        """
        pieces: list[bytes] = []
        started = False
        for token_id in ids:
            piece = self.spell(int(token_id))
            pieces.append(b" " + piece if piece and started and not self._kinds else piece)
            started = started or bool(piece)
        text, char_of_byte = _decode_utf8(b"".join(pieces))
        offsets: list[Offset] = []
        at = 0
        for piece in pieces:
            start = char_of_byte[at]
            at += len(piece)
            offsets.append((start, char_of_byte[at - 1] + 1 if piece else start))
        return text, offsets

    def _bytes_of(self, token: str) -> bytes:
        if "ByteLevel" in self._kinds:
            # Like the decoder, take a token with foreign characters literally.
            known = all(char in _BYTE_OF_CHAR for char in token)
            return bytes(_BYTE_OF_CHAR[char] for char in token) if known else token.encode()
        if "ByteFallback" in self._kinds and re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
            return bytes([int(token[3:5], 16)])
        return (token.replace(self._space, " ") if self._space else token).encode()


def _decoder_kinds(tokenizer: Any) -> tuple[frozenset[str], str]:
    """Which decoding steps the tokenizer has, and the character that stands for a space ("" if none)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"spans need a fast tokenizer (a tokenizer.json), and {_name(tokenizer)} has none; set "
            "spans.chunker=fixed, or objective.w_span=0"
        )
    if backend.decoder is None:
        return frozenset(), ""
    step = json.loads(backend.decoder.__getstate__())
    steps = step["decoders"] if step["type"] == "Sequence" else [step]
    kinds = frozenset(step["type"] for step in steps)
    if "ByteLevel" in kinds:
        return kinds, ""
    for step in steps:
        if step["type"] == "Metaspace":
            return kinds, step["replacement"]
        if step["type"] == "Replace" and step["content"] == " " and "String" in step["pattern"]:
            return kinds, step["pattern"]["String"]
    found = ", ".join(sorted(kinds))
    raise UserError(
        f"spans need a byte-level or SentencePiece-like tokenizer: {_name(tokenizer)} has {found}; set "
        "spans.chunker=fixed, or objective.w_span=0"
    )


def _name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__


def _byte_of_char() -> dict[str, int]:
    """Byte-level BPE writes printable bytes as they are, the others as characters 256, 257, ... in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + k): b for k, b in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()


def _decode_utf8(data: bytes) -> tuple[str, list[int]]:
    """The text (U+FFFD for what is not UTF-8), and the character of every byte; last, the text's length."""
    chars: list[tuple[str, int]] = []  # a character, and how many bytes it took
    at = 0
    while at < len(data):
        try:
            valid, invalid = data[at:].decode(), 0
        except UnicodeDecodeError as error:
            valid, invalid = data[at : at + error.start].decode(), error.end - error.start
        chars += [(char, len(char.encode())) for char in valid]
        if invalid:
            chars.append(("\ufffd", invalid))
        at = at + len(valid.encode()) + invalid
    char_of_byte = [index for index, (_, size) in enumerate(chars) for _ in range(size)]
    return "".join(char for char, _ in chars), [*char_of_byte, len(chars)]
