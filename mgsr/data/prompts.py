"""From rows to token ids: prompt templates, truncation, and the end-of-text token.

Texts are encoded with their special tokens split: a row that spells out ``</s>`` gets the characters, never
the token. So an end-of-text id stands at the end of a response and nowhere else.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

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
    """Token ids of a prompt, ready for a response to follow; `truncated` when some of the row was cut."""

    ids: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True)
class Example:
    """One row as token ids.

    Attributes:
        id: the row's id, which keys its random draws.
        prompt_ids: the prompt, special tokens at its front included.
        response_ids: the first reference, end-of-text included unless it was cut.
        references: every right answer, as text and never cut.
        category: the row's category.
        where: the row's ``file:line``.
        prompt_truncated: part of the instruction or the input was cut.
        response_truncated: the response was cut, so no end-of-text stands in it.
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
    """Examples in the order of their rows, and how many prompts and responses had to be cut."""

    examples: tuple[Example, ...]
    truncated_prompts: int
    truncated_responses: int


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
            f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} has no end-of-text token; "
            "set `eos_token` in its tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to fill a batch with: the padding token's, or the end-of-text token's where there is none.

    Masks tell padding from text, so the two may share an id.
    """
    return require_eos(tokenizer) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def front_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The special tokens that the tokenizer puts before a text (Llama, OPT: one; GPT-2: none).

    Raises:
        ValueError: a text is encoded otherwise between special tokens than alone.
    """
    bare = tokenizer.encode("a", add_special_tokens=False)
    framed = tokenizer.encode("a", add_special_tokens=True)
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return tuple(framed[:start])
    raise ValueError(f"the special tokens of {tokenizer.name_or_path!r} change the text between them: {framed}")


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

    def encoded(candidate: Row) -> tuple[int, ...]:
        return front + _plain_ids(render(candidate, template), tokenizer)

    def fits(candidate: Row) -> bool:
        return len(encoded(candidate)) <= max_prompt_length

    ids = encoded(row)
    if len(ids) <= max_prompt_length:
        return EncodedPrompt(ids, truncated=False)
    kept = _longest_prefix(row.input, tokenizer, lambda text: fits(replace(row, input=text)))
    shorter = replace(row, input=kept)
    if not kept.strip() and not fits(shorter):
        kept = _longest_prefix(row.instruction, tokenizer, lambda text: fits(replace(shorter, instruction=text)))
        if not kept:
            frame = len(encoded(replace(shorter, instruction="")))
            raise UserError(
                f"{row.where or f'row {row.id}'}: the `{template}` template alone takes {frame} tokens, so "
                f"none of the instruction fits into max_prompt_length {max_prompt_length}; raise it"
            )
        shorter = replace(shorter, instruction=kept)
    return EncodedPrompt(encoded(shorter), truncated=True)


def encode_response(
    text: str, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> tuple[tuple[int, ...], bool]:
    """Encode a response and end it: (ids, truncated).

    No special token is put before it. The end-of-text id is appended; a response that leaves no room for it
    is cut to `max_tokens` and goes without, for it does not end there.

    Raises:
        ValueError: `max_tokens` is below 1.
        UserError: the tokenizer has no end-of-text token.
    """
    if max_tokens < 1:
        raise ValueError(f"a response needs at least 1 token, got max_tokens={max_tokens}")
    ids = (*_plain_ids(text, tokenizer), require_eos(tokenizer))
    return ids[:max_tokens], len(ids) > max_tokens


def encode_rows(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str = "alpaca",
    max_length: int = 512,
    max_prompt_length: int = 256,
) -> EncodedRows:
    """Encode rows, prompt and response together in at most `max_length` tokens.

    Raises:
        ConfigError: `max_prompt_length` leaves no room for a response; an unknown template.
        UserError: see `encode_prompt` and `require_eos`.
    """
    if not 0 < max_prompt_length < max_length:
        raise ConfigError(
            f"max_prompt_length {max_prompt_length} must lie between 0 and max_length {max_length}; "
            "leave at least 1 token for the response"
        )
    examples = []
    for row in rows:
        prompt = encode_prompt(row, tokenizer, template=template, max_prompt_length=max_prompt_length)
        response_ids, cut = encode_response(row.output, tokenizer, max_tokens=max_length - len(prompt.ids))
        examples.append(
            Example(
                id=row.id,
                prompt_ids=prompt.ids,
                response_ids=response_ids,
                references=row.references,
                category=row.category,
                where=row.where,
                prompt_truncated=prompt.truncated,
                response_truncated=cut,
            )
        )
    return EncodedRows(
        examples=tuple(examples),
        truncated_prompts=sum(example.prompt_truncated for example in examples),
        truncated_responses=sum(example.response_truncated for example in examples),
    )


def _plain_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    # verbose=False: a text beyond the model's length is cut here, so the tokenizer need not warn of it.
    return tuple(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False))


def _longest_prefix(text: str, tokenizer: PreTrainedTokenizerBase, fits: Callable[[str], bool]) -> str:
    """The longest prefix of whole tokens that fits, found by bisection; empty when none does."""
    ends = _token_ends(text, tokenizer)
    kept = bisect_left(range(1, len(ends) + 1), True, key=lambda count: not fits(text[: ends[count - 1]]))
    return text[: ends[kept - 1]] if kept else ""


def _token_ends(text: str, tokenizer: PreTrainedTokenizerBase) -> Sequence[int]:
    """Where, in characters, the tokens of a text end; every character where the tokenizer cannot tell."""
    if not text or not tokenizer.is_fast:
        return range(1, len(text) + 1)
    encoding = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    return sorted({int(end) for _, end in encoding["offset_mapping"]} - {0})


def decode(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> str:
    """Token ids as text, special tokens left out."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))
