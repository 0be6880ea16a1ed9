"""What a run reads: rows, their tokens, their spans; and the annotator for text still to be written."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mgsr.config.schema import DataConfig, EvaluationConfig, FieldsConfig, SpansConfig
from mgsr.data.annotate import Annotation, SpanAnnotator
from mgsr.data.prompts import EncodedRows, Example, encode_rows, told_left_out
from mgsr.data.row_files import read_rows
from mgsr.data.row_hub import Read, hub_splits, is_file
from mgsr.data.rows import Row, split_rows
from mgsr.data.synthetic import SPLITS, generate_rows
from mgsr.runtime.progress import say
from mgsr.runtime.wording import plural

SYNTHETIC = "synthetic"


def read_split(config: DataConfig, split: str) -> list[Row]:
    """Rows of a split: `train`, `dev`, `test`, the name of a further test set, or `teacher`.

    `teacher` is what the teacher is fine-tuned on: a larger set of its own where the data are synthetic, the
    training rows elsewhere. Dev and test rows that nobody gives are cut from the training rows by `split_rows`.

    Raises:
        UserError: a file or a hub data set that cannot be read, a row that cannot be used, or too few rows to cut.
    """
    if split in config.test_sets:
        return _limited(read_rows(config.test_sets[split], fields=config.fields, strict=False), config.test_limit)
    assert split in SPLITS, split
    given = {"dev": config.dev, "test": config.test}
    own = {name for name, source in given.items() if source and not _is_same(source, config.train)}
    source = given[split] if split in own else config.train
    limit = {"dev": config.dev_limit, "test": config.test_limit}.get(split, config.train_limit)
    if source == SYNTHETIC:
        sizes = config.synthetic
        count = {
            "teacher": sizes.teacher_rows,
            "train": sizes.train_rows,
            "dev": sizes.dev_rows,
            "test": sizes.test_rows,
        }
        return _limited(generate_rows(split, count[split], sizes.seed, sizes.families), limit)
    split = "train" if split == "teacher" else split
    found = _readers(source, split if split in own else "train", config.fields, strict=split not in own)
    if split != "train" and split in found:
        return _limited(found[split](), limit)
    # of another source both are cut, as it is no matter what else is given here
    there = {*found} if split in own else {*found, *own}
    rows = found["train"]()
    cut = {name: 0 if name in there else _size(getattr(config.split, name), len(rows)) for name in given}
    alike = " and ".join(
        f"data.{name}" for name, given_source in given.items() if given_source and name not in own
    )
    what = "file" if is_file(source) else "data set"
    same = f" (other than data.train: {alike} named the same {what})" if alike else ""
    return _limited(split_rows(rows, **cut, seed=config.split.seed, same=same)[split], limit)


def _is_same(source: str, other: str) -> bool:
    if source == other or SYNTHETIC in (source, other):
        return source == other
    return Path(source).exists() and Path(other).exists() and Path(source).samefile(other)


def _readers(source: str, role: str, fields: FieldsConfig, *, strict: bool) -> dict[str, Read]:
    """Readers of the splits of a file, which has one, or of a hub data set."""
    if is_file(source):
        return {role: partial(read_rows, source, fields=fields, strict=strict)}
    return hub_splits(source, role, fields=fields, strict=strict)


def _size(wanted: int, count: int) -> int:
    return wanted if 3 * wanted <= count else max(1, count // 10)


def cut_splits(rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """Which of dev and test were cut from the training rows: they stand in the same source."""
    source = rows["train"][0].source if rows.get("train") else ""
    return [name for name in ("dev", "test") if source and rows.get(name) and rows[name][0].source == source]


def say_of_cut(rows: Mapping[str, Sequence[Row]]) -> None:
    """Say once which splits were cut from the training rows, and how many rows each has."""
    cut = cut_splits(rows)
    if cut:
        names, sizes = (" and ".join(each) for each in (cut, [f"{len(rows[name])} {name}" for name in cut]))
        say(
            f"{rows['train'][0].source}: no {names} rows are given, so {sizes} rows are cut from it by a fixed "
            f"rule (data.split) and {len(rows['train'])} are trained on"
        )


def _limited(rows: list[Row], limit: int) -> list[Row]:
    return rows[:limit] if limit else rows


def rows_fingerprint(rows: Sequence[Row]) -> str:
    """Changes with any text of the rows."""
    digest = hashlib.sha256()
    for row in rows:
        turns = (tuple(map(tuple, row.messages)),) if row.messages else ()
        # `ascii`: which characters `repr` escapes differs from one Python to the next
        digest.update(ascii((row.instruction, row.input, row.references, *turns)).encode())
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
        too_long=config.too_long,
    )


def answered_data(data: DataConfig, evaluation: EvaluationConfig) -> DataConfig:
    """How rows are read that are answered: all of them, their prompts to a limit of their own."""
    own = evaluation.max_prompt_length
    whole = replace(data, too_long="cut")
    return replace(whole, max_prompt_length=own, max_length=own + data.max_length) if own else whole


def encode_answered(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    evaluation: EvaluationConfig,
    what: str,
) -> list[Example]:
    """Rows that are to be answered, each with whether training would have read all of it."""
    found = encode(rows, tokenizer, answered_data(data, evaluation), what).examples
    if not evaluation.max_prompt_length:
        return list(found)

    def within(example: Example) -> bool:
        prompt, response = len(example.prompt_ids), len(example.response_ids)
        return prompt <= data.max_prompt_length and prompt + response <= data.max_length

    return [replace(example, within=within(example)) for example in found]


def encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, config: DataConfig, what: str) -> EncodedRows:
    """As `encode_quietly`, and print how many rows of `what` were cut, left out, or encoded in two pieces."""
    encoded = encode_quietly(rows, tokenizer, config)
    if encoded.truncated_prompts or encoded.truncated_responses:
        say(
            f"{what}: {encoded.truncated_prompts} of {plural(len(rows), 'prompt')} cut to "
            f"{config.max_prompt_length} tokens, {plural(encoded.truncated_responses, 'response')} cut so that "
            f"both fit {config.max_length}"
        )
    if encoded.left_out:
        count = sum(encoded.left_out.values())
        say(f"{what}: {count} of {plural(len(rows), 'row')} left out: {told_left_out(encoded.left_out)}")
    if encoded.apart:
        say(
            f"{what}: {encoded.apart} of {plural(len(rows), 'response')} encoded apart from their prompts, as "
            "a token would reach from one into the other"
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
