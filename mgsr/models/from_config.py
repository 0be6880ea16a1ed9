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
from mgsr.data.chat import CHAT, turns_of
from mgsr.data.encoding import pad_id, require_eos
from mgsr.data.prompts import end_id
from mgsr.data.rows import Row
from mgsr.data.splits import read_split
from mgsr.data.templates import render
from mgsr.data.tokenizer import train_tokenizer
from mgsr.models.building import build_causal_lm
from mgsr.models.chat_template import configured_tokenizer, has_two_tokenizers, run_template
from mgsr.models.folder_checks import ANEW
from mgsr.models.loading import DTYPES, load_causal_lm
from mgsr.models.lora import add_lora
from mgsr.models.output_layer import check_output_head
from mgsr.models.pruning import prune_depth
from mgsr.models.stop_ids import TextEnds, text_ends
from mgsr.models.vocabulary import id_count, require_shared_ids
from mgsr.runtime.devices import TYPES, computing_dtype, placed
from mgsr.runtime.errors import UserError
from mgsr.runtime.progress import say
from mgsr.runtime.ranks import is_first


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
    """The tokenizer of a model, with the run's chat template: trained on `rows` for `init`, loaded elsewhere.

    Raises:
        UserError: it cannot be loaded, has no end-of-text token, or the run has no chat template that it needs.
    """
    template = run_template(config)
    if model.source == "init":
        texts = _init_texts(rows, config.data)
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(texts, vocab_size=config.data.synthetic.vocab_size)
    else:
        tokenizer = configured_tokenizer(model)
        require_eos(tokenizer)
    if template:
        tokenizer.chat_template = template
    return tokenizer


def _init_texts(rows: Sequence[Row], data: DataConfig) -> list[str]:
    """What a tokenizer is trained on: prompts and references. A chat template is rendered by a tokenizer only."""

    def asked(row: Row) -> list[str]:
        return [turn.content for turn in turns_of(row)] if data.template == CHAT else [render(row, data.template)]

    return [text for row in rows for text in (*asked(row), *row.references)]


def check_tokenizers(config: ExperimentConfig) -> None:
    """See, before anything is trained, that two tokenizers number alike.

    Raises:
        UserError: they disagree, or one cannot be loaded.
    """
    teacher, student = config.teacher, config.student
    made = teacher.source == "init" and student.source not in ("", "init", "teacher")
    if made or has_two_tokenizers(config):
        quiet_transformers()
        rows = read_split(config.data, "teacher") if made else ()
        own = build_tokenizer(config, teacher, rows) if made else configured_tokenizer(teacher)
        require_shared_ids(own, configured_tokenizer(student))


def with_end_token(config: ExperimentConfig) -> ExperimentConfig:
    """With `data.end_token` named where it is the student's own end token and the teacher's own is another."""
    if config.data.end_token or not has_two_tokenizers(config):
        return config
    both = (build_tokenizer(config, model, ()) for model in (config.teacher, config.student))
    own, end = (each.convert_ids_to_tokens(end_id(each, template=config.data.template)) for each in both)
    return config if own == end else replace(config, data=replace(config.data, end_token=str(end)))


def configured_ends(data: DataConfig, models: Sequence[Any], tokenizers: Sequence[Any], size: int) -> TextEnds:
    """Where the texts of models end, as the configuration says.

    Args:
        tokenizers: the student's first; size: ids that all of the models can read and write, from 0.
    """
    return text_ends(
        tokenizers[0],
        models,
        vocab_size=size,
        end_token=data.end_token,
        template=data.template,
        others=tokenizers,
    )


def build_model(
    config: ExperimentConfig, model: ModelConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> PreTrainedModel:
    """A model on the CPU: made from its `architecture` with `seed` (in train mode), or loaded (in eval mode).

    What is loaded may be in the type of its file yet, see `stays_stored`.

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
    return load_source(model, as_stored=stays_stored(config, model))


def source_options(model: ModelConfig) -> dict[str, Any]:
    """How a model that comes from elsewhere is read."""
    return {
        "gguf_file": model.gguf_file or None,
        "revision": model.revision or None,
        "dtype": model.dtype,
        "attn_implementation": model.attn_implementation or None,
        "trust_remote_code": model.trust_remote_code,
    }


def load_source(model: ModelConfig, *, as_stored: bool = False) -> PreTrainedModel:
    """A model that comes from elsewhere, on the CPU and in eval mode, as `model` configures it.

    Raises:
        UserError: it cannot be loaded, or its output layer is not a plain product.
    """
    loaded = load_causal_lm(model.source, **source_options(model), as_stored=as_stored)
    if is_first():
        try:
            check_output_head(loaded)
        except UserError:
            # a file's own type may be too narrow for it: this makes a copy for as long as it takes
            with placed(torch.device("cpu"), loaded):
                check_output_head(loaded)
    return loaded


def stays_stored(config: ExperimentConfig, model: ModelConfig) -> bool:
    """Whether a model's weights may keep their file's type until they are where they compute.

    Not where the student is made or cut of them, or adapters of their type go on them; nor in float64, to which
    Lightning turns what it finds.
    """
    student = config.student
    settled = student.source == "teacher" or (model is student and (student.lora.r > 0 or student.keep_layers))
    return not settled and config.trainer.precision != "64-true"


def try_student(config: ExperimentConfig) -> None:
    """Read a student from elsewhere once before the teacher is fine-tuned: hours later is late to find it broken.

    Raises:
        UserError: its weights cannot be used.
    """
    if config.student.source not in ("init", "teacher"):
        load_source(config.student, as_stored=True)


def load_cached(folder: Path, model: ModelConfig, *, as_stored: bool = False) -> PreTrainedModel:
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
            as_stored=as_stored,
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


def teacher_dtype(config: ExperimentConfig, device: torch.device) -> torch.dtype | None:
    """What the frozen teacher's weights are in, by `teacher.frozen_dtype`; None: as they are."""
    asked = config.teacher.frozen_dtype
    return computing_dtype(config.trainer.precision, device) if asked == "auto" else DTYPES[asked]


def frozen(model: Any, dtype: torch.dtype | None) -> Any:
    """`model`, whose floating-point weights compute in `dtype` from here on; None: as they are.

    They get it where they compute (`mgsr.runtime.devices.move`): until then they lie in a mapped file. Buffers
    that no folder of a model has keep their type, such as the frequencies of rotary positions.
    """
    if dtype is not None:
        setattr(model, TYPES, {name: dtype for name, _ in model.named_parameters(remove_duplicate=False)})
        for module in model.modules():
            for name, buffer in module._buffers.items():
                aside = name in module._non_persistent_buffers_set
                if buffer is not None and not aside and buffer.is_floating_point():
                    module._buffers[name] = buffer.to(dtype)
    return model


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
