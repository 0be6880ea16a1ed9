"""Teachers, students and tokenizers as the configuration names them, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from mgsr.config.schema import DataConfig, ExperimentConfig, ModelConfig, StudentConfig
from mgsr.data.prompts import pad_id, render, require_eos
from mgsr.data.rows import Row
from mgsr.data.tokenizer import train_tokenizer
from mgsr.models.building import build_causal_lm
from mgsr.models.folder_checks import ANEW
from mgsr.models.loading import DTYPES, load_causal_lm, load_tokenizer
from mgsr.models.lora import add_lora
from mgsr.models.output_layer import check_output_head
from mgsr.models.pruning import prune_depth
from mgsr.models.vocabulary import id_count, require_shared_ids
from mgsr.runtime.errors import UserError
from mgsr.runtime.progress import say


def quiet_transformers() -> None:
    """Have transformers show no bars and no warnings; what they warn of is decided in this package."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def say_of_namesakes(config: ExperimentConfig) -> None:
    """Say of a source that is a word of the configuration and also the name of a folder that the word is meant."""
    for name, source in (("teacher", config.teacher.source), ("student", config.student.source)):
        if source in ("init", "teacher") and Path(source).is_dir():
            say(f"{name}.source={source}: not the folder of that name, which is written ./{source}")


def build_tokenizer(config: ExperimentConfig, model: ModelConfig, rows: Sequence[Row]) -> PreTrainedTokenizerBase:
    """The tokenizer of a model: trained on `rows` where the model is `init`, loaded elsewhere.

    Raises:
        UserError: it cannot be loaded, or has no end-of-text token.
    """
    if model.source == "init":
        return train_tokenizer(init_texts(rows, config.data), vocab_size=config.data.synthetic.vocab_size)
    tokenizer = configured_tokenizer(model)
    require_eos(tokenizer)
    return tokenizer


def init_texts(rows: Sequence[Row], data: DataConfig) -> list[str]:
    """What a tokenizer is trained on: prompts and references."""
    return [text for row in rows for text in (render(row, data.template), *row.references)]


def configured_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that comes from elsewhere.

    Raises:
        UserError: it cannot be loaded.
    """
    return load_tokenizer(
        model.source,
        gguf_file=model.gguf_file or None,
        revision=model.revision or None,
        trust_remote_code=model.trust_remote_code,
    )


def check_tokenizers(config: ExperimentConfig) -> None:
    """See, before anything is trained, that two tokenizers from elsewhere number alike.

    Raises:
        UserError: they disagree, or one cannot be loaded.
    """
    if _has_two_tokenizers(config):
        quiet_transformers()
        require_shared_ids(configured_tokenizer(config.teacher), configured_tokenizer(config.student))


def _has_two_tokenizers(config: ExperimentConfig) -> bool:
    teacher, student = config.teacher.source, config.student.source
    # only the student may be made of the teacher: a teacher of that name is a folder
    return teacher not in ("", "init", student) and student not in ("", "init", "teacher")


def with_end_token(config: ExperimentConfig) -> ExperimentConfig:
    """With `data.end_token` named where it is the student's end of text and the teacher's own is another."""
    if config.data.end_token or not _has_two_tokenizers(config):
        return config
    own, end = (configured_tokenizer(model).eos_token for model in (config.teacher, config.student))
    return config if own == end else replace(config, data=replace(config.data, end_token=str(end)))


def build_model(
    config: ExperimentConfig, model: ModelConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> PreTrainedModel:
    """A model on the CPU: made from its `architecture` with `seed` (in train mode), or loaded (in eval mode).

    Raises:
        UserError: it cannot be loaded or made, or its output layer is not a plain product.
    """
    if model.source == "init":
        return build_initial(
            config,
            model,
            vocab_size=id_count(tokenizer),
            eos_token_id=require_eos(tokenizer),
            pad_token_id=pad_id(tokenizer),
            seed=seed,
        )
    return load_source(model)


def load_source(model: ModelConfig) -> PreTrainedModel:
    """A model that comes from elsewhere, on the CPU and in eval mode, as `model` configures it.

    Raises:
        UserError: it cannot be loaded, or its output layer is not a plain product.
    """
    loaded = load_causal_lm(
        model.source,
        gguf_file=model.gguf_file or None,
        revision=model.revision or None,
        dtype=model.dtype,
        attn_implementation=model.attn_implementation or None,
        trust_remote_code=model.trust_remote_code,
    )
    check_output_head(loaded)
    return loaded


def load_cached(folder: Path, model: ModelConfig) -> PreTrainedModel:
    """A model that lies in the cache, as `model` configures it.

    Raises:
        UserError: it is damaged.
    """
    try:
        return load_causal_lm(
            str(folder),
            dtype=model.dtype,
            attn_implementation=model.attn_implementation or None,
            trust_remote_code=model.trust_remote_code,
        )
    except UserError as error:
        raise UserError(
            f"{str(error).replace(ANEW, 'it is a copy')}; delete {folder}, and it is made again"
        ) from None


def build_initial(
    config: ExperimentConfig,
    model: ModelConfig,
    *,
    vocab_size: int,
    eos_token_id: int,
    pad_token_id: int,
    seed: int,
) -> PreTrainedModel:
    """A model of `source: init`, from its `architecture`."""
    shape = model.architecture
    return build_causal_lm(
        shape.family,
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads or None,
        intermediate_size=shape.intermediate_size or None,
        tie_word_embeddings=shape.tie_word_embeddings,
        dropout=shape.dropout,
        initializer_range=shape.initializer_range,
        dtype=model.dtype,
        attn_implementation=model.attn_implementation or None,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        max_position_embeddings=config.data.max_length + 8,
        seed=seed,
    )


def build_student(
    config: ExperimentConfig,
    student: StudentConfig,
    teacher: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
) -> PreTrainedModel:
    """The student without adapters: a depth-pruned copy of the teacher, or a model of its own, pruned or whole.

    Raises:
        UserError: as `build_model`; or `keep_layers` names layers that are not there.
    """
    if student.source == "teacher":
        assert teacher is not None
        layers = student.keep_layers or range(teacher.config.num_hidden_layers)
        pruned = prune_depth(teacher, list(layers))
        # the teacher may be of another type
        return pruned.to(dtype=DTYPES[student.dtype])  # type: ignore[call-arg]
    model = build_model(config, student, tokenizer, seed=seed)
    return prune_depth(model, student.keep_layers) if student.keep_layers else model


def with_adapters(student: Any, config: ExperimentConfig) -> Any:
    """The student as it is trained: itself, or with low-rank adapters on it."""
    lora = config.student.lora
    if not lora.r:
        return student
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return add_lora(
            student,
            r=lora.r,
            alpha=lora.alpha,
            dropout=lora.dropout,
            target_modules=lora.target_modules or None,
        )
