"""What can be known to be wrong before the first stage of a run: one list, for `train`, `ablate` and `doctor`.

No weight is read and nothing is written. Rows are encoded only where a limit might be passed.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedTokenizerBase

from mgsr.config.checks import check_device
from mgsr.config.schema import DataConfig, ExperimentConfig, ModelConfig
from mgsr.data.chat import CHAT
from mgsr.data.chunkers import build_chunker
from mgsr.data.prompts import Example
from mgsr.data.rows import Row
from mgsr.data.splits import encode_quietly, read_split
from mgsr.data.templates import render
from mgsr.models.chat_template import run_template
from mgsr.models.from_config import (
    build_initial,
    build_tokenizer,
    check_tokenizers,
    configured_ends,
    quiet_transformers,
    with_adapters,
    with_end_token,
)
from mgsr.models.loading import shape_of_causal_lm
from mgsr.models.output_layer import position_limit
from mgsr.models.pruning import pruned_config
from mgsr.models.vocabulary import knows_all_ids, logits_width, written_vocab_size
from mgsr.runtime.devices import check_compiler, working_device
from mgsr.runtime.errors import UserError
from mgsr.runtime.progress import say

Rows = Mapping[str, Sequence[Row]]


def check_run(config: ExperimentConfig, rows: Rows) -> None:
    """Go through the list and stop at the first thing that is wrong.

    Args:
        rows: by split.

    Raises:
        UserError: as one line, what is wrong and what to do.
    """
    for section, check in checks(config, rows):
        try:
            check()
        except UserError as error:
            if section not in ("teacher", "student"):
                raise
            raise UserError(f"{section}: {error}") from error


def checks(config: ExperimentConfig, rows: Rows) -> list[tuple[str, Callable[[], None]]]:
    """The list: what is looked at, and a function that raises a UserError.

    Args:
        rows: by split; a split that could not be read is left out.
    """
    quiet_transformers()
    shapes: dict[str, Any] = {}
    return [
        ("device", lambda: _check_device(config)),
        ("packages", lambda: _check_packages(config)),
        ("tokenizers", lambda: check_tokenizers(config)),
        ("prompts", lambda: _check_prompts(config, rows)),
        ("teacher", lambda: _look_at_teacher(config, shapes)),
        ("student", lambda: _look_at_student(config, shapes)),
        ("lengths", lambda: _check_texts(config, rows, shapes)),
    ]


def _check_device(config: ExperimentConfig) -> None:
    device = working_device(config.trainer.accelerator)
    check_device(config, device.type)
    if config.trainer.compile:
        check_compiler(device)


def _check_packages(config: ExperimentConfig) -> None:
    if config.student.lora.r and importlib.util.find_spec("peft") is None:
        raise UserError("`student.lora` needs peft: pip install 'peft>=0.19,<1', or set student.lora.r=0")
    writes = config.scrg.enabled and config.scrg.backend == "vllm"
    if writes and importlib.util.find_spec("vllm") is None:
        raise UserError(
            "`scrg.backend=vllm` needs vLLM: pip install 'vllm>=0.11,<0.30', or set scrg.backend=transformers"
        )
    spans = config.spans
    parses = "spacy" in (spans.chunker, spans.random_lengths if spans.chunker == "random" else "")
    if config.objective.w_span > 0 and parses:
        build_chunker("spacy")


def _check_prompts(config: ExperimentConfig, rows: Rows) -> None:
    """See that the template takes every row: those of the test sets are read long after training has begun."""
    data = config.data
    if data.template != CHAT:
        for some in rows.values():
            for row in some:
                render(row, data.template)
        return
    if "strftime_now" in run_template(config):
        say("the chat template writes the date of today: a run of another day has other prompts")
    teachers = config.student.source in ("init", "teacher") and config.teacher.source
    model: ModelConfig = config.teacher if teachers else config.student
    own = read_split(data, "teacher" if teachers else "train") if model.source == "init" else ()
    tokenizer = build_tokenizer(config, model, own)
    try:
        for some in rows.values():
            encode_quietly(some, tokenizer, data)
    except UserError as error:
        if data.chat_template in ("", "teacher"):
            raise
        raise UserError(f"data.chat_template={data.chat_template}: {error}") from error


def _look_at_teacher(config: ExperimentConfig, shapes: dict[str, Any]) -> None:
    if config.teacher.source:
        shapes["teacher"] = _shape_of(config, config.teacher)


def _look_at_student(config: ExperimentConfig, shapes: dict[str, Any]) -> None:
    student = config.student
    if student.source != "teacher":
        shapes["student"] = _shape_of(config, student)
    origin = shapes.get("student", shapes.get("teacher"))
    if student.keep_layers and origin is not None:
        pruned_config(origin.config, student.keep_layers)
    if student.lora.r and origin is not None:
        with torch.device("meta"):
            with_adapters(origin, config)


def _shape_of(config: ExperimentConfig, model: ModelConfig) -> Any:
    """The model without its content."""
    if model.source == "init":
        with FakeTensorMode():
            made = build_initial(
                config,
                model,
                vocab_size=config.data.synthetic.vocab_size,
                eos_token_id=1,
                pad_token_id=0,
                seed=0,
            )
        needs = sum(weight.numel() * weight.element_size() for weight in made.parameters())
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needs > memory:
            raise UserError(
                f"a {model.architecture.family} of hidden_size {model.architecture.hidden_size} and "
                f"{model.architecture.num_layers} layers takes {needs / 1e9:.0f} GB, and this machine has "
                f"{memory / 1e9:.0f}: lower its architecture's sizes"
            )
        return made
    return shape_of_causal_lm(
        model.source,
        gguf_file=model.gguf_file or None,
        revision=model.revision or None,
        dtype=model.dtype,
        attn_implementation=model.attn_implementation or None,
        trust_remote_code=model.trust_remote_code,
        download=False,
    )


def _check_texts(config: ExperimentConfig, rows: Rows, shapes: Mapping[str, Any]) -> None:
    """Positions and embeddings for every row, and for what is written to it.

    Args:
        shapes: of teacher and student, as far as they could be had.
    """
    data, written = config.data, config.evaluation.max_new_tokens
    in_rounds = config.scrg.max_new_tokens if config.scrg.enabled else 0
    most = max(data.max_length, data.max_prompt_length + max(in_rounds, written))
    known: dict[str, PreTrainedTokenizerBase] = {}
    for name, shape in shapes.items():
        model: ModelConfig = getattr(config, name)
        limit = position_limit(shape)
        enough = limit is None or limit >= most
        if model.source == "init":
            if enough and not data.end_token:
                # its embedding is made for its tokenizer
                continue
            source = config.teacher if config.teacher.source else model
            split = "teacher" if config.teacher.source else "train"
            tokenizer = known.get("teacher") or build_tokenizer(config, source, read_split(data, split))
        else:
            tokenizer = build_tokenizer(config, model, ())
        known[name] = tokenizer
        _check_end(name, shape, tokenizer, with_end_token(config).data)
        if enough and knows_all_ids(shape, tokenizer):
            continue
        for split, some in rows.items():
            trains = split == "train"
            check_texts(
                name,
                shape,
                tokenizer,
                encode_quietly(some, tokenizer, data).examples,
                new_tokens=in_rounds if trains else written,
                key="scrg.max_new_tokens" if trains else "evaluation.max_new_tokens",
                answers=split in ("train", "dev"),
            )


def _check_end(name: str, model: Any, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> None:
    """See that a model has an embedding of the end token. Padding takes what it has."""
    try:
        width = written_vocab_size(tokenizer, model)
        configured_ends(data, [model], [tokenizer], width)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def check_texts(
    name: str,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    new_tokens: int,
    key: str,
    answers: bool = False,
) -> None:
    """See that a model has a position and an embedding for every token that it will read or write.

    Args:
        name: of the model, for the message; model: on any device, also without content.
        new_tokens: that are written to a prompt; key: where that number is set.
        answers: the answers of the examples are read too.

    Raises:
        UserError: it has not; the first such row is named.
    """
    limit, width = position_limit(model), logits_width(model)
    for example in examples:
        where = example.where or f"row {example.id}"
        read = example.response_ids if answers else ()
        ids = (*example.prompt_ids, *read)
        if ids and max(ids) >= width:
            token = tokenizer.convert_ids_to_tokens(max(ids))
            raise UserError(
                f"{name}: {where} has the token `{token}` of id {max(ids)}, and its embedding has {width} rows: "
                "take a tokenizer and weights that belong together"
            )
        prompt, most = len(example.prompt_ids), max(new_tokens, len(read))
        if limit is not None and prompt + most > limit:
            raise UserError(
                f"{name}: {where} takes {prompt} tokens and its answer up to {most}, and the model has {limit} "
                f"positions: {_shorter(key if new_tokens == most else 'data.max_length', prompt < limit)}"
            )


def _shorter(key: str, answer: bool) -> str:
    """What to lower: a key of the configuration, or an option of `mgsr evaluate`; `answer`: less of it may do."""
    prompt = "shorten the texts, or take a shorter --template"
    if not key.startswith("--"):
        prompt = "lower data.max_prompt_length"
    return f"lower {key}, or {prompt}" if answer else prompt
