"""From rows to token ids: prompt templates, truncation, and the end token.

Texts are encoded with their special tokens split: a row that spells out ``</s>`` gets the characters, never
the token. So an end token stands at the end of a response and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from mgsr.data.encoding import front_ids, ids_behind, longest_prefix, plain_ids
from mgsr.data.rows import Row
from mgsr.runtime.errors import ConfigError, UserError, did_you_mean


@dataclass(frozen=True)
class Template:
    """Two layouts with the places ``{instruction}`` and ``{input}``; both end with the response header."""

    with_input: str
    without_input: str


TEMPLATES = {
    # Taori et al. 2023 (Stanford Alpaca).
    "alpaca": Template(
        with_input=(
            "Below is an instruction that describes a task, paired with an input that provides "
            "further context. Write a response that appropriately completes the request.\n\n"
            "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        ),
        without_input=(
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\n{instruction}\n\n### Response:\n"
        ),
    ),
    # Three tokens of frame, for models with a small vocabulary. It ends with a line break and not with a
    # space: byte-level vocabularies attach a space to the word after it.
    "plain": Template(with_input="{instruction}\n{input}\n=>\n", without_input="{instruction}\n=>\n"),
}


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a prompt and the text that they spell, ready for a response to follow.

    `truncated`: some of the row was cut.
    """

    ids: tuple[int, ...]
    text: str
    truncated: bool


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
        where: the row's ``file:line``.
        prompt_truncated: part of the instruction or the input was cut.
        response_truncated: the response was cut, so no end token stands in it.
    """

    id: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    references: tuple[str, ...]
    category: str = ""
    where: str = ""
    prompt_truncated: bool = False
    response_truncated: bool = False


@dataclass(frozen=True)
class EncodedRows:
    """Examples in the order of their rows, and how many prompts and responses had to be cut.

    `apart` counts the responses that were encoded without their prompts, see `EncodedResponse`.
    """

    examples: tuple[Example, ...]
    truncated_prompts: int
    truncated_responses: int
    apart: int = 0


def render(row: Row, template: str = "alpaca") -> str:
    """The prompt as text, up to and including the response header.

    A blank input takes the layout without one.

    Raises:
        ConfigError: no template has that name.

    >>> render(Row(0, "Say the opposite.", "The cat is big.", ("The cat is small.",)), "plain")
    'Say the opposite.\\nThe cat is big.\\n=>\\n'
    """
    if template not in TEMPLATES:
        raise ConfigError(
            f"no prompt template {template!r}; take one of {', '.join(TEMPLATES)}"
            + did_you_mean(template, TEMPLATES)
        )
    layouts = TEMPLATES[template]
    layout = layouts.with_input if row.input.strip() else layouts.without_input
    return layout.format(instruction=row.instruction, input=row.input)


def require_eos(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the end-of-text token.

    Raises:
        UserError: the tokenizer has none, so no response could ever end.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer {_name(tokenizer)} has no end-of-text token; "
            "set `eos_token` in its tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def end_id(tokenizer: PreTrainedTokenizerBase, token: str = "") -> int:
    """The id that closes every training target: of `token`, or of the end-of-text token where that is empty.

    Raises:
        ConfigError: the tokenizer has no such token, or it is ordinary text, which answers hold too.
        UserError: see `require_eos`.
    """
    if not token:
        return require_eos(tokenizer)
    found = tokenizer.get_vocab().get(token)
    marks = sorted({*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())})
    if found is None or token not in marks:
        what = "is ordinary text of" if found is not None else "is no token of"
        raise ConfigError(
            f"`data.end_token` {token!r} {what} the tokenizer {_name(tokenizer)}; take one of "
            f"{', '.join(marks[:8])}{did_you_mean(token, marks)}"
        )
    return int(found)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to fill a batch with: the padding token's, or the end-of-text token's where there is none.

    Masks tell padding from text, so the two may share an id. A model that does not have this id takes another
    one: see `mgsr.models.TextEnds`.
    """
    return require_eos(tokenizer) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or type(tokenizer).__name__


def encode_prompt(
    row: Row, tokenizer: PreTrainedTokenizerBase, *, template: str = "alpaca", max_prompt_length: int = 256
) -> EncodedPrompt:
    """Encode a prompt in at most `max_prompt_length` tokens.

    Special tokens go to the front where the tokenizer puts them there; none ever follows the header. A prompt
    that is too long is cut between two tokens. First the right end of the input goes, then all of the input
    with its heading, then the right end of the instruction. The response header always stays.

    Raises:
        UserError: the template's frame leaves no room for one token of the instruction.
        ConfigError: no template has that name.
    """
    front = front_ids(tokenizer)

    def encoded(candidate: Row, *, truncated: bool = True) -> EncodedPrompt:
        text = render(candidate, template)
        return EncodedPrompt(front + plain_ids(text, tokenizer), text, truncated)

    def fits(candidate: Row) -> bool:
        return len(encoded(candidate).ids) <= max_prompt_length

    whole = encoded(row, truncated=False)
    if len(whole.ids) <= max_prompt_length:
        return whole
    kept = longest_prefix(row.input, tokenizer, lambda text: fits(replace(row, input=text)))
    shorter = replace(row, input=kept)
    if not kept.strip() and not fits(shorter):
        kept = longest_prefix(row.instruction, tokenizer, lambda text: fits(replace(shorter, instruction=text)))
        if not kept:
            frame = len(encoded(replace(shorter, instruction="")).ids)
            raise UserError(
                f"{row.where or f'row {row.id}'}: the `{template}` template alone takes {frame} tokens, so "
                f"none of the instruction fits into max_prompt_length {max_prompt_length}; raise it"
            )
        shorter = replace(shorter, instruction=kept)
    return encoded(shorter)


def encode_response(
    text: str, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, prompt: str = "", end: int | None = None
) -> EncodedResponse:
    """Encode a response behind its prompt, and end it.

    No special token is put before it. The end token is appended; a response that leaves no room for it is cut
    to `max_tokens` and goes without, for it does not end there.

    Args:
        prompt: the text that the response follows, as far as it was not cut.
        end: the id of the end token, by default that of the end of text.

    Raises:
        ValueError: `max_tokens` is below 1.
        UserError: see `require_eos`.
    """
    if max_tokens < 1:
        raise ValueError(f"a response needs at least 1 token, got max_tokens={max_tokens}")
    written, together = ids_behind(text, prompt, tokenizer)
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
) -> EncodedRows:
    """Encode rows, prompt and response together in at most `max_length` tokens.

    Args:
        end_token: see `end_id`.

    Raises:
        ConfigError: `max_prompt_length` leaves no room for a response; an unknown template or end token.
        UserError: see `encode_prompt` and `require_eos`.
    """
    if not 0 < max_prompt_length < max_length:
        raise ConfigError(
            f"max_prompt_length {max_prompt_length} must lie between 0 and max_length {max_length}; "
            "leave at least 1 token for the response"
        )
    examples, apart, end = [], 0, end_id(tokenizer, end_token)
    for row in rows:
        prompt = encode_prompt(row, tokenizer, template=template, max_prompt_length=max_prompt_length)
        room = max_length - len(prompt.ids)
        response = encode_response(row.output, tokenizer, max_tokens=room, prompt=prompt.text, end=end)
        apart += response.apart
        examples.append(
            Example(
                id=row.id,
                prompt_ids=prompt.ids,
                response_ids=response.ids,
                references=row.references,
                category=row.category,
                where=row.where,
                prompt_truncated=prompt.truncated,
                response_truncated=response.truncated,
            )
        )
    return EncodedRows(
        examples=tuple(examples),
        truncated_prompts=sum(example.prompt_truncated for example in examples),
        truncated_responses=sum(example.response_truncated for example in examples),
        apart=apart,
    )


def decode(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int], stop_ids: Iterable[int] = ()) -> str:
    """Token ids as text, special tokens left out, and a stop token at the end even where it is not special."""
    written = list(ids)
    if written and written[-1] in stop_ids:
        del written[-1]
    return str(tokenizer.decode(written, skip_special_tokens=True))
