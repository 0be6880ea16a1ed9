"""Conversations as a chat model reads them: laid out by the tokenizer's own template.

A rendering holds every special token that it needs, the one at its beginning too. So it is encoded with nothing
put around it and with its special tokens parsed, and a row whose own text spells one of them is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from mgsr.data.encoding import ids_behind, parsed_ids, shown_name
from mgsr.data.rows import Message, Row
from mgsr.runtime.errors import UserError

CHAT = "chat"
"""The prompt template that a tokenizer brings along."""

SPELLS = "with a special token in their own text"
NO_PREFIX = "with a prompt that the template changes once an answer follows (thoughts, trimmed text)"
"""Which rows are left out."""

_PROBE = Message("user", "Question 4917?"), Message("assistant", "Answer 7301.")


class Frame(NamedTuple):
    """What a template writes around texts.

    Attributes:
        end: id of the token behind an answer; None where there is none.
        tail: all that it writes behind an answer.
        lead: the text that it writes before an answer and not at the end of a prompt, such as an empty block of
            thoughts. A model is taught it, as the template has it, and it is no part of the answer.
        reserved: ids that no text of a row may spell, as they would begin or end a turn.
    """

    end: int | None
    tail: str
    lead: str
    reserved: frozenset[int]


def template_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The Jinja text of a tokenizer's template, of several the one named default; empty where there is none."""
    held = tokenizer.chat_template
    return str((held.get("default") if isinstance(held, dict) else held) or "")


def turns_of(row: Row) -> tuple[Message, ...]:
    """The turns before the answer: the row's own, or one of the user's that holds instruction and input."""
    if row.messages:
        return row.messages
    parts = [row.instruction, row.input] if row.input.strip() else [row.instruction]
    return (Message("user", "\n\n".join(parts)),)


def prompt_text(row: Row, tokenizer: PreTrainedTokenizerBase) -> str:
    """The row's turns and the beginning of the answer's turn.

    Raises:
        UserError: the template does not take these turns.
    """
    return _rendered(turns_of(row), tokenizer, row, prompt=True)


def frame_of(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """What the tokenizer's template writes around texts, learned from a question and its answer.

    Raises:
        UserError: the tokenizer has no template, or it is broken, or writes no text of a turn.
    """
    if not template_text(tokenizer):
        raise UserError(
            f"the tokenizer {shown_name(tokenizer)} has no chat template: put one into its folder "
            "(chat_template.jinja), or take another prompt template"
        )
    asked = _rendered(_PROBE[:1], tokenizer, None, prompt=True)
    whole = _rendered(_PROBE, tokenizer, None, prompt=False)
    if _PROBE[0].content not in asked or _PROBE[1].content not in whole:
        raise UserError(
            f"data.template=chat: the chat template of the tokenizer {shown_name(tokenizer)} leaves out what a "
            "turn says; mend it, or name another by data.chat_template"
        )
    tail = whole.rpartition(_PROBE[1].content)[2]
    before = whole[len(asked) :].partition(_PROBE[1].content)[0] if whole.startswith(asked) else ""
    lead = str(tokenizer.decode(list(parsed_ids(before, tokenizer)), skip_special_tokens=True)).strip()
    added = {index: token for index, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    special = {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}
    marks = special | added.keys()
    end = next((index for index in parsed_ids(tail, tokenizer) if index in marks), None)
    written = {index for index in (*parsed_ids(asked, tokenizer), end) if index in marks}
    # what a vocabulary lacks is no forged turn
    unknown = {tokenizer.unk_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id}
    return Frame(end, tail, lead, frozenset((written | special) - unknown))


def spells_a_turn(row: Row, tokenizer: PreTrainedTokenizerBase, reserved: frozenset[int]) -> bool:
    """Whether a text of the row would be read as a token that begins or ends a turn."""
    texts = [turn.content for turn in turns_of(row)]
    return not reserved.isdisjoint(parsed_ids("\n".join([*texts, row.output]), tokenizer))


def answer_ids(
    row: Row, prompt: str, tokenizer: PreTrainedTokenizerBase, frame: Frame, end: int
) -> tuple[tuple[int, ...], bool] | None:
    """The ids that follow the prompt where the row's answer is rendered too, up to the end token.

    Args:
        row: as far as it was not cut; prompt: what `prompt_text` gives of it.
        end: closes the ids, in the place of the template's own end token or of all that follows the answer.

    Returns:
        The ids, and whether they were encoded together with the prompt; None where the prompt is no prefix.

    Raises:
        UserError: the template does not take these turns.
    """
    whole = _rendered((*turns_of(row), Message("assistant", row.output)), tokenizer, row, prompt=False)
    if not whole.startswith(prompt):
        return None
    rest = whole[len(prompt) :]
    if frame.end is None:
        rest = rest.removesuffix(frame.tail)
    ids, together = ids_behind(rest, prompt, tokenizer, encode=parsed_ids)
    if frame.end in ids:
        ids = ids[: ids.index(frame.end)]
    return (*ids, end), together


def without_oldest_turns(row: Row, fits: Callable[[Row], bool]) -> Row:
    """As many of the newest turns as fit, from a turn of the user on, behind the system's turn."""
    first = 1 if row.messages and row.messages[0].role == "system" else 0
    starts = [index for index, turn in enumerate(row.messages) if turn.role == "user"]
    for start in starts[1:]:
        shorter = replace(row, messages=(*row.messages[:first], *row.messages[start:]))
        if fits(shorter) or start == starts[-1]:
            return shorter
    return row


def with_instruction(row: Row, text: str) -> Row:
    """The row with another instruction, which is the last turn of the user's in a conversation."""
    last = max((index for index, turn in enumerate(row.messages) if turn.role == "user"), default=None)
    messages = list(row.messages)
    if last is not None:
        messages[last] = Message("user", text)
    return replace(row, instruction=text, messages=tuple(messages))


def _rendered(
    turns: Sequence[Message], tokenizer: PreTrainedTokenizerBase, row: Row | None, *, prompt: bool
) -> str:
    conversation = [turn._asdict() for turn in turns]
    try:
        return str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt))
    except Exception as error:  # Jinja's own, those that a template raises, and those of its expressions
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        line = getattr(error, "lineno", None)
        where, what, remedy = ("data.template=chat", "a question and its answer", "mend it")
        if row is not None:
            where, what, remedy = (row.where or f"row {row.id}", "its turns", "change the row")
        raise UserError(
            f"{where}: the chat template does not take {what} ({f'line {line}: ' if line else ''}{reason}); "
            f"{remedy}, or name another template by data.chat_template"
        ) from error
