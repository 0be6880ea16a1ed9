"""From rows to token ids: prompt templates, truncation, and the end token.

An end token stands at the end of a response and nowhere else. Texts are encoded with their special tokens split:
a row that spells out ``</s>`` gets the characters, never the token. Only the template `chat`, the tokenizer's own,
writes such tokens itself: see `mgsr.data.chat`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from mgsr.data import chat
from mgsr.data.chat import CHAT
from mgsr.data.encoding import (
    front_ids,
    ids_behind,
    longest_prefix,
    parsed_ids,
    plain_ids,
    require_eos,
    shown_name,
)
from mgsr.data.rows import Row
from mgsr.data.templates import render
from mgsr.runtime.errors import ConfigError, UserError, did_you_mean


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a prompt and the text that they spell, ready for a response to follow.

    `truncated`: some of the row was cut; `row` is what is left of it.
    """

    ids: tuple[int, ...]
    text: str
    truncated: bool
    row: Row


class EncodedResponse(NamedTuple):
    """Token ids of a response, the end token included unless it was cut (`truncated`).

    `apart`: a token would have reached over its beginning, so it was encoded without its prompt.
    """

    ids: tuple[int, ...]
    truncated: bool
    apart: bool


@dataclass(frozen=True)
class Example:
    """One row as token ids.

    Attributes:
        id: the row's id, which keys its random draws.
        prompt_ids: the prompt, special tokens at its front included.
        response_ids: the first reference, the end token included unless it was cut.
        references: every right answer, as text and never cut.
        category: the row's category.
        is_right: see `Row`.
        where: the row's ``file:line``.
        prompt_truncated: part of the instruction or the input was cut.
        response_truncated: the response was cut, so no end token stands in it.
        within: neither is longer than what training reads.
    """

    id: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    references: tuple[str, ...]
    category: str = ""
    where: str = ""
    prompt_truncated: bool = False
    response_truncated: bool = False
    within: bool = True
    is_right: Callable[[str], bool] | None = field(default=None, compare=False)


TOO_LONG = "too long"
"""Why a row is left out."""


@dataclass(frozen=True)
class EncodedRows:
    """Examples in the order of their rows, and how many prompts and responses had to be cut.

    `apart` counts the responses that were encoded without their prompts, see `EncodedResponse`.
    `left_out`: which rows are no examples -> how many; the template `chat` and `data.too_long` leave some out.
    """

    examples: tuple[Example, ...]
    truncated_prompts: int
    truncated_responses: int
    apart: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)


def end_id(tokenizer: PreTrainedTokenizerBase, token: str = "", template: str = "") -> int:
    """The id that closes every training target.

    It is that of `token`; where that is empty, of the token that the template `chat` writes behind an answer; and
    with every other template, or where it writes none, of the end-of-text token.

    Raises:
        ConfigError: the tokenizer has no such token, or it is ordinary text, which answers hold too.
        UserError: see `require_eos` and `mgsr.data.chat.frame_of`.
    """
    if not token:
        end = chat.frame_of(tokenizer).end if template == CHAT else None
        return require_eos(tokenizer) if end is None else end
    found = tokenizer.get_vocab().get(token)
    marks = sorted({*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())})
    if found is None or token not in marks:
        what = "is ordinary text of" if found is not None else "is no token of"
        raise ConfigError(
            f"`data.end_token` {token!r} {what} the tokenizer {shown_name(tokenizer)}; take one of "
            f"{', '.join(marks[:8])}{did_you_mean(token, marks)}"
        )
    return int(found)


def encode_prompt(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str = "alpaca",
    max_prompt_length: int = 256,
    front: tuple[int, ...] | None = None,
) -> EncodedPrompt:
    """Encode a prompt in at most `max_prompt_length` tokens.

    Special tokens go to the front where the tokenizer puts them there; none ever follows the header. The template
    `chat` writes its own ones.

    A prompt that is too long is cut between two tokens. First the right end of the input goes, then all of the
    input with its heading, then the right end of the instruction. Of a conversation the oldest turns go first,
    then the right end of the user's last turn. The response header always stays, and so does the system's turn.
    `front` is what `front_ids` gives, if known.

    Raises:
        UserError: the template's frame leaves no room for one token of the instruction; or it refuses the row.
        ConfigError: no template has that name.
    """
    before = front_ids(tokenizer) if front is None and template != CHAT else front or ()

    def encoded(candidate: Row, *, truncated: bool = True) -> EncodedPrompt:
        if template == CHAT:
            text = chat.prompt_text(candidate, tokenizer)
            return EncodedPrompt(parsed_ids(text, tokenizer), text, truncated, candidate)
        text = render(candidate, template)
        return EncodedPrompt(before + plain_ids(text, tokenizer), text, truncated, candidate)

    def fits(candidate: Row) -> bool:
        return len(encoded(candidate).ids) <= max_prompt_length

    whole = encoded(row, truncated=False)
    if len(whole.ids) <= max_prompt_length:
        return whole
    shorter = chat.without_oldest_turns(row, fits)
    kept = longest_prefix(row.input, tokenizer, lambda text: fits(replace(shorter, input=text)))
    shorter = replace(shorter, input=kept)
    if not kept.strip() and not fits(shorter):
        inner = shorter
        kept = longest_prefix(row.instruction, tokenizer, lambda text: fits(chat.with_instruction(inner, text)))
        if not kept:
            frame = len(encoded(chat.with_instruction(shorter, "")).ids)
            alone = "and the other turns take" if len(shorter.messages) > 1 else "alone takes"
            raise UserError(
                f"{row.where or f'row {row.id}'}: the `{template}` template {alone} {frame} tokens, so "
                f"none of the instruction fits into max_prompt_length {max_prompt_length}; raise it"
            )
        shorter = chat.with_instruction(shorter, kept)
    return encoded(shorter)


def encode_response(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    prompt: str = "",
    prompt_ids: tuple[int, ...] | None = None,
    end: int | None = None,
) -> EncodedResponse:
    """Encode a response behind its prompt, and end it.

    No special token is put before it. The end token is appended; a response that leaves no room for it is cut
    to `max_tokens` and goes without, for it does not end there.

    Args:
        prompt: the text that the response follows, as far as it was not cut; `prompt_ids` are its ids, if known.
        end: the id of the end token, by default that of the end of text.

    Raises:
        ValueError: `max_tokens` is below 1.
        UserError: see `require_eos`.
    """
    if max_tokens < 1:
        raise ValueError(f"a response needs at least 1 token, got max_tokens={max_tokens}")
    written, together = ids_behind(text, prompt, tokenizer, before_ids=prompt_ids)
    ids = (*written, require_eos(tokenizer) if end is None else end)
    return EncodedResponse(ids[:max_tokens], len(ids) > max_tokens, not together)


def encode_rows(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str = "alpaca",
    max_length: int = 512,
    max_prompt_length: int = 256,
    end_token: str = "",
    too_long: str = "cut",
) -> EncodedRows:
    """Encode rows, prompt and response together in at most `max_length` tokens.

    With the template `chat` rows are left out whose text spells a token of the template, and those whose prompt is
    no prefix of their rendering with the answer.

    Args:
        end_token: see `end_id`.
        too_long: `leave_out` takes no row that would have to be cut.

    Raises:
        ConfigError: `max_prompt_length` leaves no room for a response; an unknown template or end token.
        UserError: every row is left out; see also `encode_prompt` and `end_id`.
    """
    if not 0 < max_prompt_length < max_length:
        raise ConfigError(
            f"max_prompt_length {max_prompt_length} must lie between 0 and max_length {max_length}; "
            "leave at least 1 token for the response"
        )
    examples, apart, end = [], 0, end_id(tokenizer, end_token, template)
    frame = chat.frame_of(tokenizer) if template == CHAT else None
    front = front_ids(tokenizer) if frame is None else ()
    left_out: Counter[str] = Counter()
    for row in rows:
        if frame is not None and chat.spells_a_turn(row, tokenizer, frame.reserved | {end}):
            left_out[chat.SPELLS] += 1
            continue
        prompt = encode_prompt(row, tokenizer, template=template, max_prompt_length=max_prompt_length, front=front)
        room = max_length - len(prompt.ids)
        if frame is None:
            behind = prompt.ids[len(front) :]
            response = encode_response(
                row.output, tokenizer, max_tokens=room, prompt=prompt.text, prompt_ids=behind, end=end
            )
        else:
            answer = chat.answer_ids(prompt.row, prompt.text, tokenizer, frame, end)
            if answer is None:
                left_out[chat.NO_PREFIX] += 1
                continue
            response = EncodedResponse(answer[0][:room], len(answer[0]) > room, not answer[1])
        if too_long == "leave_out" and (prompt.truncated or response.truncated):
            left_out[TOO_LONG] += 1
            continue
        apart += response.apart
        examples.append(
            Example(
                id=row.id,
                prompt_ids=prompt.ids,
                response_ids=response.ids,
                references=row.references,
                category=row.category,
                is_right=row.is_right,
                where=row.where,
                prompt_truncated=prompt.truncated,
                response_truncated=response.truncated,
            )
        )
    if left_out and not examples:
        if set(left_out) == {TOO_LONG}:
            raise UserError(
                f"all rows are longer than data.max_prompt_length {max_prompt_length} and data.max_length "
                f"{max_length}: raise them, or set data.too_long=cut"
            )
        raise UserError(
            f"the chat template of the tokenizer {shown_name(tokenizer)} leaves all rows out: "
            f"{told_left_out(left_out)}; name another template by data.chat_template"
        )
    return EncodedRows(
        examples=tuple(examples),
        truncated_prompts=sum(example.prompt_truncated for example in examples),
        truncated_responses=sum(example.response_truncated for example in examples),
        apart=apart,
        left_out=dict(left_out),
    )


def told_left_out(left_out: Mapping[str, int]) -> str:
    """Which rows are left out, and how many."""
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items())
