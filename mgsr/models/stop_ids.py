"""The tokens that end texts: one that closes every training target, and all that stop a model as it writes.

What a model was taught to end with stands in several places: its tokenizer, its config, and its generation_config,
which alone lists the token behind a chat turn. Teacher and student may differ in it over the same ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from mgsr.data.chat import CHAT, frame_of
from mgsr.data.encoding import pad_id
from mgsr.data.prompts import end_id
from mgsr.models.hub import one_line_errors
from mgsr.models.vocabulary import written_vocab_size
from mgsr.runtime.errors import UserError


@dataclass(frozen=True)
class TextEnds:
    """How texts in the ids of one tokenizer end, and what fills their batches.

    Attributes:
        stop_ids: any of them ends written text; the first is the end token, which closes training targets.
        pad_id: one that the models have. It is masked, so it may be any.
        note: what a user should know of them, in one line; empty where the tokenizer's end of text is alone.
        lead: text that a chat template has before every answer; it is taken off before an answer is measured.
    """

    stop_ids: tuple[int, ...]
    pad_id: int
    note: str = ""
    lead: str = ""

    @property
    def end_id(self) -> int:
        return self.stop_ids[0]

    def given_to(self, source: GenerationConfig | None) -> GenerationConfig:
        """The source's generation settings with these ids in them, so that `generate()` stops as we do."""
        settings = {} if source is None else source.to_dict()
        changed = GenerationConfig.from_dict(
            settings
            | {"eos_token_id": list(self.stop_ids), "pad_token_id": self.pad_id, "_from_model_config": False}
        )
        # published settings may contradict themselves (a temperature without sampling): they were read, and may
        # be written again
        changed._original_object_hash = hash(changed)
        return changed


def text_ends(
    tokenizer: PreTrainedTokenizerBase,
    models: Sequence[Any],
    *,
    vocab_size: int,
    end_token: str = "",
    template: str = "",
    others: Iterable[PreTrainedTokenizerBase] = (),
) -> TextEnds:
    """The end token, and every id that a tokenizer, a config or a generation_config names as an end.

    Left out is what the tokenizer does not have, what the models cannot write, and what is ordinary text: a
    `LlamaConfig()` says 2 whatever the tokenizer is.

    Args:
        tokenizer: the student's.
        models: all that write over its ids.
        vocab_size: ids that all of them can read and write, from 0.
        end_token, template: see `mgsr.data.prompts.end_id`.
        others: further tokenizers over the same ids, such as the teacher's.

    Raises:
        UserError: the end token is not among the ids that the models share.
    """
    end = end_id(tokenizer, end_token, template)
    if end >= vocab_size:
        raise UserError(
            f"the end token {_shown(tokenizer, end)} is outside the {vocab_size} ids that the models have: an "
            "embedding is narrower than its tokenizer; name another token by data.end_token"
        )
    named = {end: None} | {
        each: None
        for value in (
            *(one.eos_token_id for one in (tokenizer, *others)),
            *(config.eos_token_id for model in models for config in _configs(model)),
        )
        for each in _ids(value)
    }
    marks = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    stop = tuple(each for each in named if each in marks and each < vocab_size)
    left_out = [each for each in named if each not in stop]
    padding, lead = pad_id(tokenizer), frame_of(tokenizer).lead if template == CHAT else ""
    note = _note(tokenizer, stop, left_out)
    if lead:
        begins = f"the chat template begins every answer with {lead!r}: it is taught, and not measured"
        note = f"{note}; {begins}" if note else begins
    return TextEnds(stop, padding if padding < vocab_size else end, note, lead)


def kept_generation_config(folder: Path, model: Any, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """The generation settings that a run has written to `folder`; those of the model where older code wrote none.

    Raises:
        UserError: the file is broken.
    """
    if (folder / "generation_config.json").exists():
        with one_line_errors(str(folder)):
            return GenerationConfig.from_pretrained(folder)
    width = written_vocab_size(tokenizer, model)
    return text_ends(tokenizer, [model], vocab_size=width).given_to(model.generation_config)


def _configs(model: Any) -> list[Any]:
    """The config and the generation settings of a model."""
    text = model.config.get_text_config(decoder=True)
    found = [text, getattr(model, "generation_config", None)]
    return [config for config in found if getattr(config, "eos_token_id", None) is not None]


def _ids(value: Any) -> list[int]:
    """The ids that an `eos_token_id` names: one, several, or none."""
    if value is None:
        return []
    return [int(each) for each in value] if isinstance(value, list | tuple) else [int(value)]


def _note(tokenizer: PreTrainedTokenizerBase, stop: Sequence[int], left_out: Sequence[int]) -> str:
    if len(stop) == 1 and not left_out:
        return ""
    last = ", ".join(_shown(tokenizer, each) for each in stop)
    note = f"answers end with {_shown(tokenizer, stop[0])}; written text ends at {last}"
    if left_out:
        others = ", ".join(_shown(tokenizer, each) for each in left_out)
        note += f"; left out, as ordinary text or no token of these models: {others}"
    return note


def _shown(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    token = tokenizer.convert_ids_to_tokens(token_id) if 0 <= token_id < len(tokenizer) else None
    return f"id {token_id}" if token is None else f"`{token}` (id {token_id})"
