"""The chat template of a run: one for both models, whoever's it is.

Both tokenizers are given it as they are built, so that training, rounds of text, evaluation and the export read
the same ids.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mgsr.config.schema import ExperimentConfig, ModelConfig
from mgsr.data.chat import CHAT, template_text
from mgsr.models.loading import load_tokenizer
from mgsr.runtime.errors import ConfigError, did_you_mean
from mgsr.runtime.files import read_regular

_TEACHER = "teacher"
# the tokens that a template may write by their roles
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


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


def has_two_tokenizers(config: ExperimentConfig) -> bool:
    """Whether teacher and student bring a tokenizer each from elsewhere."""
    teacher, student = config.teacher.source, config.student.source
    # only the student may be made of the teacher: a teacher of that name is a folder
    return teacher not in ("", "init", student) and student not in ("", "init", "teacher")


def run_template(config: ExperimentConfig) -> str:
    """The Jinja text that `data.template=chat` renders by; empty with another template.

    It is the student's tokenizer's unless `data.chat_template` names the teacher's or a file. Where it writes a
    token by its role and teacher and student have different ones there, the token of its owner is written into it.

    Raises:
        ConfigError: there is none, or the file cannot be read.
        UserError: a tokenizer cannot be loaded.
    """
    if config.data.template != CHAT:
        return ""
    named = config.data.chat_template
    teachers = named == _TEACHER or (config.student.source in ("init", "teacher") and config.teacher.source)
    owner, other = (config.teacher, config.student) if teachers else (config.student, config.teacher)
    text = _of_file(named) if named not in ("", _TEACHER) else _of_tokenizer(config, owner)
    roles = [role for role in _ROLES if role in text]
    if not roles or not has_two_tokenizers(config):
        return text
    own, theirs = (configured_tokenizer(model).special_tokens_map for model in (owner, other))
    # behind a block Jinja drops one line break
    return (
        "".join(
            f"{{% set {role} = {json.dumps(own.get(role, ''), ensure_ascii=False)} %}}\n"
            for role in roles
            if own.get(role) != theirs.get(role)
        )
        + text
    )


def _of_tokenizer(config: ExperimentConfig, owner: ModelConfig) -> str:
    role = "teacher" if owner is config.teacher else "student"
    if not owner.source:
        raise ConfigError(f"`data.chat_template={_TEACHER}` and `teacher.source` is empty", "data.chat_template")
    if owner.source == "init":
        raise ConfigError(
            f"`data.template={CHAT}`: the {role}'s tokenizer is trained on the rows and has no chat template; set "
            "data.template=plain, or name the file of a Jinja template by data.chat_template",
            *("data.template", "data.chat_template"),
        )
    tokenizer = configured_tokenizer(owner)
    text = template_text(tokenizer)
    if not text:
        several = isinstance(tokenizer.chat_template, dict) and tokenizer.chat_template
        what = f"no chat template named default, only {', '.join(several)}" if several else "no chat template"
        teachers = f"data.chat_template={_TEACHER}, or " if role == "student" and config.teacher.source else ""
        raise ConfigError(
            f"`data.template={CHAT}`: the {role}'s tokenizer ({owner.source}) has {what}; set {teachers}"
            "data.chat_template=FILE, the file of a Jinja template",
            *("data.template", "data.chat_template"),
        )
    return text


def _of_file(name: str) -> str:
    key = f"`data.chat_template` {name!r}"
    try:
        text = read_regular(Path(name)).decode()
    except FileNotFoundError:
        raise ConfigError(
            f"{key}: no such file; name one with a Jinja template, `{_TEACHER}`, or nothing for the student's"
            + did_you_mean(name, [_TEACHER]),
            "data.chat_template",
        ) from None
    except OSError as error:
        raise ConfigError(f"{key}: cannot be read ({error.strerror}); name a file", "data.chat_template") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{key}: is no text (not UTF-8); name another file", "data.chat_template") from None
    if not text.strip():
        raise ConfigError(f"{key}: is empty; put a Jinja template into it", "data.chat_template")
    return text
