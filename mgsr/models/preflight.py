"""What can be known to be wrong before the first stage of a run: one list, for `train`, `ablate` and `doctor`.

No weight is read and nothing is written. Rows are encoded only where a limit might be passed.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedTokenizerBase

from mgsr.config.checks import check_device
from mgsr.config.origin import about
from mgsr.config.schema import DataConfig, ExperimentConfig, ModelConfig
from mgsr.data.chat import CHAT
from mgsr.data.chunkers import build_chunker
from mgsr.data.rows import Row
from mgsr.data.splits import answered_data, encode_quietly, read_split
from mgsr.data.templates import render
from mgsr.models.chat_template import run_template
from mgsr.models.from_config import (
    build_initial,
    build_tokenizer,
    check_tokenizers,
    configured_ends,
    quiet_transformers,
    source_options,
    with_adapters,
    with_end_token,
)
from mgsr.models.loading import shape_of_causal_lm
from mgsr.models.output_layer import output_head, position_limit
from mgsr.models.preflight_objective import check_objective, has_own_function, width_of_run
from mgsr.models.pruning import decoder_layers, pruned_config
from mgsr.models.vocabulary import (
    check_shared,
    check_texts,
    id_count,
    knows_all_ids,
    logits_width,
    shared_vocab_size,
    written_vocab_size,
)
from mgsr.runtime.devices import check_compiler, working_device
from mgsr.runtime.errors import UserError
from mgsr.runtime.progress import say

Rows = Mapping[str, Sequence[Row]]


class Size(NamedTuple):
    """Numbers of decoder layers and of parameters."""

    layers: int
    parameters: int


# keys of a model, besides its source, that a message about it may quote
_TOLD = ("gguf_file", "revision", "attn_implementation")


def check_run(config: ExperimentConfig, rows: Rows) -> dict[str, Size]:
    """Go through the list and stop at the first thing that is wrong.

    Args:
        rows: by split.

    Returns:
        What `checks` finds of the models.

    Raises:
        UserError: as one line, what is wrong and what to do.
    """
    sizes: dict[str, Size] = {}
    for _, check in checks(config, rows, sizes):
        check()
    return sizes


def checks(config: ExperimentConfig, rows: Rows, sizes: dict[str, Size]) -> list[tuple[str, Callable[[], None]]]:
    """The list: what is looked at, and a function that raises a UserError.

    Args:
        rows: by split; a split that could not be read is left out.
        sizes: is filled with those of teacher and student as they come from their sources; of `student` only
            where it is a model of its own.
    """
    quiet_transformers()
    # gone with the list: no model without content outlives the checks
    shapes: dict[str, Any] = {}
    return [
        ("device", lambda: _check_device(config)),
        ("packages", lambda: _check_packages(config)),
        ("teacher", lambda: _look_at_teacher(config, shapes, sizes)),
        ("student", lambda: _look_at_student(config, shapes, sizes)),
        ("tokenizers", lambda: _check_tokenizers(config)),
        ("objective", lambda: _check_objective(config, shapes)),
        ("prompts", lambda: _check_prompts(config, rows)),
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


def check_objective_of(config: ExperimentConfig) -> None:
    """The part of the list that differs from arm to arm and needs no rows.

    Raises:
        UserError: as `check_run`.
    """
    shapes: dict[str, Any] = {}
    if has_own_function(config.objective):
        quiet_transformers()
        _look_at_teacher(config, shapes, {})
        _look_at_student(config, shapes, {})
    _check_objective(config, shapes)


def _check_objective(config: ExperimentConfig, shapes: Mapping[str, Any]) -> None:
    own = has_own_function(config.objective)
    check_objective(config.objective, width_of_run(config, shapes) if own else None)


def _check_tokenizers(config: ExperimentConfig) -> None:
    with about("", "teacher.source", "student.source"):
        check_tokenizers(config)


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


def _look_at_teacher(config: ExperimentConfig, shapes: dict[str, Any], sizes: dict[str, Size]) -> None:
    if config.teacher.source:
        shapes["teacher"] = _placed_shape(config, "teacher", sizes)


def _look_at_student(config: ExperimentConfig, shapes: dict[str, Any], sizes: dict[str, Size]) -> None:
    student = config.student
    if student.source != "teacher":
        shapes["student"] = _placed_shape(config, "student", sizes)
    origin = shapes.get("student", shapes.get("teacher"))
    if student.keep_layers and origin is not None:
        with about("`student.keep_layers`: ", "student.keep_layers"):
            decoder_layers(origin)
            pruned_config(origin.config, student.keep_layers)
    if student.lora.r and origin is not None:
        with about("`student.lora`: ", "student.lora"), torch.device("meta"):
            # one of their own: adapters change a model, and a copy of one without content is undefined
            with_adapters(_shape_of(config, config.student if "student" in shapes else config.teacher), config)


def _placed_shape(config: ExperimentConfig, role: str, sizes: dict[str, Size]) -> Any:
    """The model without its content; what is wrong with it is told with the key that says so."""
    model: ModelConfig = getattr(config, role)
    try:
        shape = _shape_of(config, model)
        output_head(shape)
    except UserError as error:
        own = [name for name in _TOLD if (value := getattr(model, name)) and value in str(error)]
        whole = (own or ["architecture" if model.source == "init" else "source"])[0]
        quoted = [f"{whole}.{item.name}" for item in fields(model.architecture) if item.name in str(error)]
        named = quoted if whole == "architecture" and quoted else [whole]
        with about(f"`{role}.{whole}`: ", *(f"{role}.{name}" for name in named)):
            raise
    layers = shape.config.get_text_config(decoder=True).num_hidden_layers
    sizes[role] = Size(layers, sum(weight.numel() for weight in shape.parameters()))
    return shape


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
    return shape_of_causal_lm(model.source, **source_options(model), download=False)


def _check_texts(config: ExperimentConfig, rows: Rows, shapes: Mapping[str, Any]) -> None:
    """Positions and embeddings for every row, and for what is written to it.

    Args:
        shapes: of teacher and student, as far as they could be had.
    """
    data, written = config.data, config.evaluation.max_new_tokens
    answered = answered_data(data, config.evaluation)
    in_rounds = config.scrg.max_new_tokens if config.scrg.enabled else 0
    most = max(data.max_length, data.max_prompt_length + in_rounds, answered.max_prompt_length + written)
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
            if split in ("train", "dev"):
                examples = encode_quietly(some, tokenizer, data).examples
                new = in_rounds if split == "train" else 0
                key = "scrg.max_new_tokens"
                check_texts(name, shape, tokenizer, examples, new_tokens=new, key=key, answers=True)
            if split != "train":
                examples = encode_quietly(some, tokenizer, answered).examples
                key = "evaluation.max_new_tokens"
                check_texts(name, shape, tokenizer, examples, new_tokens=written, key=key)
    if {"teacher", "student"} <= known.keys():
        teacher, student = known["teacher"], known["student"]
        shared = shared_vocab_size(teacher, student, shapes["teacher"], shapes["student"])
        if id_count(student) > shared:
            width = logits_width(shapes["teacher"])
            for split, some in rows.items():
                answers = split in ("train", "dev")
                examples = encode_quietly(some, student, data if answers else answered).examples
                check_shared(student, examples, shared=shared, width=width, answers=answers)


def _check_end(name: str, model: Any, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> None:
    """See that a model has an embedding of the end token. Padding takes what it has."""
    try:
        width = written_vocab_size(tokenizer, model)
        configured_ends(data, [model], [tokenizer], width)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
