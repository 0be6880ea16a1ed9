"""Responses in token ids -> span ids, with every text's phrases found once.

They say which neighbouring tokens the span correlation pairs (Liu et al. 2024, arXiv 2407.10068, eq. 10).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgsr.data.chunkers import Chunker, build_chunker
from mgsr.data.collate import TrainingSequence
from mgsr.data.prompts import Example
from mgsr.data.spans import (
    OVERLAPS,
    Offset,
    Phrase,
    TokenSpeller,
    all_adjacent_spans,
    fixed_spans,
    random_spans,
    span_ids,
)
from mgsr.runtime.errors import UserError, did_you_mean
from mgsr.runtime.files import write_atomically
from mgsr.runtime.json_files import Each, ListOf, read_json

METHODS = ("spacy", "light", "fixed", "random", "all_adjacent")


class PhraseCache:
    """Asks the chunker once per text: kept in memory, and in one JSON file if `path` is given.

    The file holds {chunker fingerprint: {sha256 of the text: [[start, end, kind], ...]}}. It is written once
    per call that met new texts, through a temporary file beside it. What other processes wrote meanwhile is
    kept; if two write at the very same time the later stays, and the lost phrases are found again.

    Raises:
        UserError: `path` holds something else.
    """

    def __init__(self, chunker: Chunker, path: str | Path | None = None) -> None:
        self._chunker = chunker
        self._path = None if path is None else Path(path)
        self._known = self._read().get(chunker.fingerprint, {})

    def __call__(self, texts: Sequence[str]) -> list[list[Phrase]]:
        """The phrases of each text."""
        keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        fresh = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        if fresh:
            found = self._chunker.many(list(fresh.values()))
            self._known.update(zip(fresh, found, strict=True))
            self._write()
        return [self._known[key] for key in keys]

    def _read(self) -> dict[str, dict[str, list[Phrase]]]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            stored = read_json(
                self._path, Each(Each(ListOf(list))), "it is no phrase cache: delete it, or name another file"
            )
            return {
                name: {key: [Phrase(int(s), int(e), str(k)) for s, e, k in found] for key, found in texts.items()}
                for name, texts in stored.items()
            }
        except (ValueError, TypeError) as error:
            raise UserError(f"{self._path} is not a phrase cache: delete it, or name another file") from error

    def _write(self) -> None:
        if self._path is None:
            return
        stored = self._read()
        self._known = {**stored.get(self._chunker.fingerprint, {}), **self._known}
        stored[self._chunker.fingerprint] = self._known
        write_atomically(self._path, json.dumps(stored, separators=(",", ":")))


class SpanAnnotator:
    """Span ids for the tokens of responses.

    Args:
        tokenizer: the (fast) tokenizer that the ids belong to.
        chunker: `spacy`, `light` or a chunker object; or, to compare: `fixed` (runs of `fixed_length`
            tokens), `random` (spans as long as `random_lengths`'s, anywhere), `all_adjacent` (one span).
        overlap: which of nested phrases has the tokens, `outermost` or `innermost`.
        fixed_length: tokens of a run, for `fixed`.
        seed: for `random`.
        random_lengths: for `random`: `spacy`, `light` or a chunker object.
        cache_file: keeps phrases between runs, see `PhraseCache`.
        silent: ids that spell nothing, beside the special tokens.

    Raises:
        ValueError: an unknown name, or `fixed_length` below 1.
        UserError: what the chunker or the cache file needs is missing, or the tokenizer's kind is unknown.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        chunker: str | Chunker = "light",
        overlap: str = "outermost",
        fixed_length: int = 4,
        seed: int = 0,
        random_lengths: str | Chunker = "light",
        cache_file: str | Path | None = None,
        silent: Collection[int] = (),
    ) -> None:
        if isinstance(chunker, str) and chunker not in METHODS:
            raise ValueError(f"chunker must be one of {METHODS}, got {chunker!r}{did_you_mean(chunker, METHODS)}")
        if overlap not in OVERLAPS:
            raise ValueError(f"overlap must be one of {OVERLAPS}, got {overlap!r}")
        self._method = chunker if isinstance(chunker, str) else "phrases"
        self._overlap = overlap
        self._run = fixed_length
        self._seed = seed
        if chunker == "fixed":
            fixed_spans(0, fixed_length)  # refuses a run below 1
        self.fingerprint = f"fixed-{fixed_length}" if chunker == "fixed" else "all_adjacent"
        if self._method in ("fixed", "all_adjacent"):
            return
        source = random_lengths if chunker == "random" else chunker
        source = build_chunker(source) if isinstance(source, str) else source
        self._speller = TokenSpeller(tokenizer, silent)
        self._phrases = PhraseCache(source, cache_file)
        self.fingerprint = f"{source.fingerprint}/{overlap}"
        if self._method == "random":
            self.fingerprint = f"random-{seed}/{self.fingerprint}"

    def annotate(self, responses: Sequence[Sequence[int]]) -> list[list[int]]:
        """One list of span ids per response, as long as it; -1 = none, ids from 0 on within each response.

        Give many responses at once: phrases are found in batches, and a cache file is written once per call.

        Args:
            responses: token ids of each response, EOS included, no prompt and no padding.
        """
        if self._method == "fixed":
            return [fixed_spans(len(ids), self._run) for ids in responses]
        if self._method == "all_adjacent":
            return [all_adjacent_spans(len(ids)) for ids in responses]
        spelled = [self._speller.offsets(ids) for ids in responses]
        found = self._phrases([text for text, _ in spelled])
        return [self._ids(text, offsets, phrases) for (text, offsets), phrases in zip(spelled, found, strict=True)]

    def _ids(self, text: str, offsets: list[Offset], phrases: list[Phrase]) -> list[int]:
        ids = span_ids(phrases, offsets, text, overlap=self._overlap)
        if self._method != "random":
            return ids
        written = [index for index, (start, end) in enumerate(offsets) if end > start]
        return random_spans(ids, key=text, seed=self._seed, placeable=written[-1] + 1 if written else 0)


@dataclass(frozen=True)
class Annotation:
    """Spans for ground truth and for text still to be written; without an annotator there are none.

    Attributes:
        annotator: for written text, whose spans are kept with their round.
        cached: for ground truth; keeps phrases in a file between runs.
    """

    annotator: SpanAnnotator | None
    cached: SpanAnnotator | None = None

    def spans(self, responses: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        return _annotate(self.annotator, responses)

    def ground_truth(self, examples: Sequence[Example]) -> list[TrainingSequence]:
        spans = _annotate(self.cached or self.annotator, [example.response_ids for example in examples])
        return [
            TrainingSequence(example.id, tuple(example.prompt_ids), tuple(example.response_ids), ids, True)
            for example, ids in zip(examples, spans, strict=True)
        ]


def _annotate(annotator: SpanAnnotator | None, responses: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    if annotator is None:
        return [(-1,) * len(ids) for ids in responses]
    return [tuple(ids) for ids in annotator.annotate(responses)]
