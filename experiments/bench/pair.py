"""A teacher, a student and prompts: the demo's, made once and cached, or any two model folders and a data file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mgsr import models
from mgsr.config.load import load_config
from mgsr.config.schema import DataConfig, ExperimentConfig
from mgsr.data.encoding import pad_id, require_eos
from mgsr.data.prompts import Example
from mgsr.data.row_files import read_rows
from mgsr.data.splits import encode, read_split
from mgsr.runtime.devices import settle
from mgsr.scrg import Prompt
from mgsr.training.sft import Prepared, prepare_student, prepare_teacher, shared_vocabulary

CONFIG = "configs/demo.yaml"
OVERRIDES = ("run_root=runs/bench", "experiment=bench")


@dataclass
class Pair:
    """What a round of text needs; `examples` are the rows of a folder pair."""

    teacher: Any
    student: Any
    tokenizer: Any
    prompts: Sequence[Prompt]
    vocab_size: int
    max_new_tokens: int
    batch_size: int
    examples: Sequence[Example] = ()

    @property
    def eos(self) -> int:
        return require_eos(self.tokenizer)

    @property
    def pad(self) -> int:
        return pad_id(self.tokenizer)


def demo_config(*overrides: str) -> ExperimentConfig:
    return load_config(CONFIG, [*OVERRIDES, *overrides])


def teacher_of(config: ExperimentConfig) -> Prepared:
    """The teacher in the type that it computes in, not that of its file: the same for all sides."""
    teacher = prepare_teacher(config)
    assert teacher is not None
    settle(teacher.model)
    return teacher


def demo_pair(prompts: int = 256) -> Pair:
    """The demo's fine-tuned models on its training prompts."""
    config = demo_config()
    train = read_split(config.data, "train")
    teacher = teacher_of(config)
    student = prepare_student(config, teacher, train)
    examples = encode(train[:prompts], student.tokenizer, config.data, "prompts").examples
    return Pair(
        teacher.model.eval(),
        student.model.eval(),
        student.tokenizer,
        [(e.id, e.prompt_ids) for e in examples],
        shared_vocabulary(teacher, student),
        config.scrg.max_new_tokens,
        batch_size=64,
    )


def folder_pair(teacher: str, student: str, data: str, *, prompts: int, max_new_tokens: int = 64) -> Pair:
    """Two transformers folders on the first prompts of a data file, Alpaca template."""
    tokenizer = models.load_tokenizer(student)
    pair = models.load_causal_lm(teacher).eval(), models.load_causal_lm(student).eval()
    lengths = DataConfig(max_length=192, max_prompt_length=128)
    examples = encode(read_rows(data)[:prompts], tokenizer, lengths, data).examples
    return Pair(
        *pair,
        tokenizer,
        [(e.id, e.prompt_ids) for e in examples],
        models.shared_vocab_size(models.load_tokenizer(teacher), tokenizer, *pair),
        max_new_tokens,
        batch_size=32,
        examples=examples,
    )
