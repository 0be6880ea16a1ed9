"""From text to token ids, as the tokenizer at hand cuts text: SentencePiece, byte-level, or by words.

A response is encoded together with its prompt, as the model will meet it. A SentencePiece tokenizer puts a space
before every text that it encodes alone, so such a response would begin with a token that no model writes there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from mgsr.runtime.errors import UserError

# what may stand before a text so that the tokenizer takes it for the middle of one
_ANCHORS = ("\n", ":", "a", "0")


def plain_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids of a text with no special token around it; special tokens that it spells out are split."""
    # verbose=False: a text beyond the model's length is cut here, so the tokenizer need not warn of it.
    return tuple(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False))


def parsed_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids of a text with no special token around it; special tokens that it spells out are those tokens."""
    return tuple(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False, verbose=False))


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


def ids_behind(
    text: str,
    before: str,
    tokenizer: PreTrainedTokenizerBase,
    encode: Callable[[str, PreTrainedTokenizerBase], tuple[int, ...]] = plain_ids,
    before_ids: tuple[int, ...] | None = None,
) -> tuple[tuple[int, ...], bool]:
    """The ids of `text` where it follows `before`, and whether the two could be encoded together.

    They could not where a token would reach over the border: the text is then encoded alone, without the space
    that some tokenizers put before one.

    Args:
        before_ids: those of `before`, where they are known.
    """
    for anchor in (before, *_ANCHORS):
        known = before_ids if anchor == before else None
        front = encode(anchor, tokenizer) if known is None else known
        whole = encode(anchor + text, tokenizer)
        if whole[: len(front)] == front and (front or anchor == before):
            return whole[len(front) :], anchor == before
    return encode(text, tokenizer), False


def longest_prefix(text: str, tokenizer: PreTrainedTokenizerBase, fits: Callable[[str], bool]) -> str:
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


def shown_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """What messages call a tokenizer."""
    return str(tokenizer.name_or_path or type(tokenizer).__name__)


def require_eos(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the end-of-text token.

    Raises:
        UserError: the tokenizer has none, so no response could ever end.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer {shown_name(tokenizer)} has no end-of-text token; "
            "set `eos_token` in its tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to fill a batch with: the padding token's, or the end-of-text token's where there is none.

    Masks tell padding from text, so the two may share an id. A model that does not have this id takes another
    one: see `mgsr.models.TextEnds`.
    """
    return require_eos(tokenizer) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def decode(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int], stop_ids: Iterable[int] = ()) -> str:
    """Token ids as text, special tokens left out, and a stop token at the end even where it is not special."""
    written = list(ids)
    if written and written[-1] in stop_ids:
        del written[-1]
    return str(tokenizer.decode(written, skip_special_tokens=True))
