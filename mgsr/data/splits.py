"""What a run reads: rows, their tokens, their spans; and the annotator for text still to be written."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mgsr.config.schema import DataConfig, SpansConfig
from mgsr.data.annotate import Annotation, SpanAnnotator
from mgsr.data.prompts import EncodedRows, encode_rows, told_left_out
from mgsr.data.rows import Row, load_hub_rows, read_rows
from mgsr.data.synthetic import SPLITS, generate_rows
from mgsr.runtime.errors import ConfigError
from mgsr.runtime.progress import say

SYNTHETIC = "synthetic"
# no name of a data set on the hub ends so, and files that are not there would be asked for there for half a minute
_FILES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".xlsx", ".yaml", ".gz", ".zip")


def read_split(config: DataConfig, split: str) -> list[Row]:
    """Rows of a split: `train`, `dev`, `test`, the name of a further test set, or `teacher`.

    `teacher` is what the teacher is fine-tuned on: a larger set of its own where the data are synthetic, the
    training rows elsewhere.

    Raises:
        ConfigError: the configuration names no file for a split whose training rows are a file.
        UserError: a file or a hub data set that cannot be read, or a row that cannot be used.
    """
    if split in config.test_sets:
        return _limited(read_rows(config.test_sets[split]), config.test_limit)
    assert split in SPLITS, split
    source = {"dev": config.dev, "test": config.test}.get(split) or config.train
    limit = {"dev": config.dev_limit, "test": config.test_limit}.get(split, config.train_limit)
    if source == SYNTHETIC:
        sizes = config.synthetic
        count = {
            "teacher": sizes.teacher_rows,
            "train": sizes.train_rows,
            "dev": sizes.dev_rows,
            "test": sizes.test_rows,
        }
        return _limited(generate_rows(split, count[split], sizes.seed), limit)
    split = "train" if split == "teacher" else split
    if is_file(source):
        if split != "train" and source == config.train:
            raise ConfigError(
                f"`data.{split}` is empty and data.train is a file; give data.{split}=FILE", "data.train"
            )
        return _limited(read_rows(source), limit)
    cut = config.hub_split
    return _limited(load_hub_rows(source, dev=cut.dev, test=cut.test, seed=cut.seed)[split], limit)


def is_file(source: str) -> bool:
    """A local file rather than a hub id: it exists, or its name ends like one or has more than one slash."""
    return Path(source).exists() or source.lower().endswith(_FILES) or source.count("/") > 1


def _limited(rows: list[Row], limit: int) -> list[Row]:
    return rows[:limit] if limit else rows


def rows_fingerprint(rows: Sequence[Row]) -> str:
    """Changes with any text of the rows."""
    digest = hashlib.sha256()
    for row in rows:
        turns = (tuple(map(tuple, row.messages)),) if row.messages else ()
        digest.update(repr((row.instruction, row.input, row.references, *turns)).encode())
    return digest.hexdigest()[:16]


def encode_quietly(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> EncodedRows:
    """Encode rows by the configured template, lengths and end token.

    Raises:
        ConfigError: the tokenizer has no such end token.
        UserError: the template leaves no room for a row, or takes none of them.
    """
    return encode_rows(
        rows,
        tokenizer,
        template=config.template,
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
        end_token=config.end_token,
    )


def encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, config: DataConfig, what: str) -> EncodedRows:
    """As `encode_quietly`, and print how many rows of `what` were cut, left out, or encoded in two pieces."""
    encoded = encode_quietly(rows, tokenizer, config)
    if encoded.truncated_prompts or encoded.truncated_responses:
        say(
            f"{what}: {encoded.truncated_prompts} of {len(rows)} prompts cut to {config.max_prompt_length} "
            f"tokens, {encoded.truncated_responses} responses cut so that both fit {config.max_length}"
        )
    if encoded.left_out:
        count = sum(encoded.left_out.values())
        say(f"{what}: {count} of {len(rows)} rows left out: {told_left_out(encoded.left_out)}")
    if encoded.apart:
        say(
            f"{what}: {encoded.apart} of {len(rows)} responses encoded apart from their prompts, as a token would "
            "reach from one into the other"
        )
    return encoded


def build_annotation(
    tokenizer: PreTrainedTokenizerBase,
    config: SpansConfig,
    *,
    seed: int,
    cache_file: Path | None,
    wanted: bool,
    stop_ids: Collection[int] = (),
) -> Annotation:
    """The configured chunker, with its cache; without one where the span term has no weight.

    Args:
        stop_ids: tokens that end a text and spell none of it.
    """
    if not wanted:
        return Annotation(None)

    def annotator(cache: Path | None) -> SpanAnnotator:
        return SpanAnnotator(
            tokenizer,
            chunker=config.chunker,
            overlap=config.overlap,
            fixed_length=config.fixed_length,
            seed=seed,
            random_lengths=config.random_lengths,
            cache_file=cache,
            silent=stop_ids,
        )

    return Annotation(annotator(None), annotator(cache_file))
