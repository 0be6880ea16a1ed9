"""Prompts and responses as token ids: what is cut, what stays, and where special tokens go."""

from __future__ import annotations

import string
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mgsr.data.encoding import front_ids, pad_id, require_eos
from mgsr.data.prompts import encode_prompt, encode_response, encode_rows
from mgsr.data.rows import Row
from mgsr.data.templates import TEMPLATES, render
from mgsr.runtime.errors import ConfigError, UserError

CORPUS = [layout.with_input + layout.without_input for layout in TEMPLATES.values()] * 3


def tokenizer_with(around: str = "$A", *, pad: bool = True, eos: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose post-processor puts special tokens `around` a text, as a template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[("<s>", 0), ("</s>", 1), ("<pad>", 2)]
    )
    named = {"pad_token": "<pad>"} if pad else {}
    named |= {"eos_token": "</s>"} if eos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", clean_up_tokenization_spaces=False, **named
    )


BARE = tokenizer_with()
LLAMA = tokenizer_with("<s> $A")
T5 = tokenizer_with("<s> $A </s>")


def row(instruction: str = "Say it.", given: str = "", *references: str) -> Row:
    return Row(3, instruction, given, references or ("It.",), "say", "rows.jsonl:4")


def test_alpaca_layouts() -> None:
    assert render(row("Say it.", "loud")) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n"
        "\n"
        "### Instruction:\n"
        "Say it.\n"
        "\n"
        "### Input:\n"
        "loud\n"
        "\n"
        "### Response:\n"
    )
    assert render(row("Say it.", " \n")) == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n"
        "\n"
        "### Instruction:\n"
        "Say it.\n"
        "\n"
        "### Response:\n"
    )


def test_plain_layouts_and_braces_in_a_row() -> None:
    assert render(row("Say it.", "loud"), "plain") == "Say it.\nloud\n=>\n"
    assert render(row("Say {input}.", "{0}"), "plain") == "Say {input}.\n{0}\n=>\n"
    assert render(row("Say it."), "plain") == "Say it.\n=>\n"
    with pytest.raises(
        ConfigError, match="no prompt template 'plian'; take one of alpaca, plain, chat; did you mean"
    ):
        render(row(), "plian")


def test_front_tokens_are_kept_and_an_end_token_is_not() -> None:
    text = render(row("Say it.", "loud"))
    plain = tuple(BARE.encode(text))
    assert (front_ids(BARE), front_ids(LLAMA), front_ids(T5)) == ((), (0,), (0,))
    assert encode_prompt(row("Say it.", "loud"), BARE).ids == plain
    for tokenizer in (LLAMA, T5):
        assert encode_prompt(row("Say it.", "loud"), tokenizer).ids == (0, *plain)
    for tokenizer in (BARE, LLAMA, T5):
        ids, truncated, _ = encode_response("It.", tokenizer, max_tokens=9)
        assert (ids, truncated) == ((*BARE.encode("It."), 1), False)


def test_special_tokens_spelled_in_a_row_stay_text() -> None:
    prompt = encode_prompt(row("Say </s> and <s>.", "<pad>"), LLAMA, template="plain")
    assert [index for index in prompt.ids if index < 3] == [0]
    assert LLAMA.decode(prompt.ids[1:]) == "Say </s> and <s>.\n<pad>\n=>\n"
    assert encode_response("a</s>b", LLAMA, max_tokens=50)[0].count(1) == 1


WORDS = " ".join(string.ascii_lowercase) + " "


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("tokenizer", [BARE, LLAMA], ids=["bare", "front"])
def test_the_input_is_cut_first_then_dropped_then_the_instruction(
    template: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    whole = row("Say " + WORDS, "loud " + WORDS)
    encode = partial(encode_prompt, tokenizer=tokenizer, template=template)
    size = len(encode(whole, max_prompt_length=10_000).ids)
    header = TEMPLATES[template].with_input.rpartition("{input}")[2]
    before, _, after = TEMPLATES[template].with_input.partition("{input}")
    start = before.replace("{instruction}", whole.instruction)
    first, last = TEMPLATES[template].without_input.split("{instruction}")
    lengths, stages = [], []
    for limit in range(size - 1, 0, -1):
        try:
            prompt = encode(whole, max_prompt_length=limit)
        except UserError:
            break
        text = tokenizer.decode(prompt.ids, skip_special_tokens=True)
        assert len(prompt.ids) <= limit and prompt.truncated
        assert text.endswith(header)
        assert prompt.ids[: len(front_ids(tokenizer))] == front_ids(tokenizer)
        lengths.append(len(text))
        if text.startswith(start) and text != render(row(whole.instruction), template):
            kept = text[len(start) : -len(after)]
            assert kept and whole.input.startswith(kept)
            stages.append("input")
            longer = row(whole.instruction, whole.input[: len(kept) + 2])
        else:
            kept = text[len(first) : -len(last)]
            assert kept and whole.instruction.startswith(kept)
            stages.append("dropped" if kept == whole.instruction else "instruction")
            longer = row(whole.instruction[: len(kept) + 2], whole.input[:2] if kept == whole.instruction else "")
        # Nothing is cut for nothing: two characters more, which is a token or two here, would not fit.
        assert len(encode(longer, max_prompt_length=10_000).ids) > limit
    assert stages == sorted(stages, key=["input", "dropped", "instruction"].index)
    assert set(stages) == {"input", "dropped", "instruction"}
    assert lengths == sorted(lengths, reverse=True)


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).filter(str.strip),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.integers(min_value=8, max_value=60),
)
def test_any_prompt_fits_and_is_as_long_as_may_be(instruction: str, given: str, limit: int) -> None:
    whole = row(instruction, given)
    prompt = encode_prompt(whole, LLAMA, template="plain", max_prompt_length=limit)
    text = LLAMA.decode(prompt.ids[1:])
    assert len(prompt.ids) <= limit and prompt.ids[0] == 0
    assert 1 not in prompt.ids and text.endswith("\n=>\n")
    assert prompt.truncated == (len(LLAMA.encode(render(whole, "plain"), split_special_tokens=True)) > limit)
    if not prompt.truncated:
        assert text == render(whole, "plain")
    # Characters are never cut in half, though the tokens are bytes.
    assert "\ufffd" not in text or "\ufffd" in instruction + given


def test_a_character_of_several_tokens_is_kept_or_cut_whole() -> None:
    whole = row("Say it.", "\U0001f642" * 5)
    frame = len(encode_prompt(row("Say it.", "a"), BARE, template="plain").ids) - 1
    smile = len(BARE.encode("\U0001f642"))
    assert smile > 1
    for spare in range(smile, 5 * smile):
        ids = encode_prompt(whole, BARE, template="plain", max_prompt_length=frame + spare).ids
        kept = spare // smile
        assert BARE.decode(ids) == "Say it.\n" + "\U0001f642" * kept + "\n=>\n"


def test_a_frame_that_leaves_no_room_is_refused() -> None:
    frame = len(BARE.encode(TEMPLATES["alpaca"].without_input.replace("{instruction}", "")))
    with pytest.raises(UserError, match=rf"rows\.jsonl:4: the `alpaca` template alone takes {frame} tokens"):
        encode_prompt(row("abc", "x"), BARE, max_prompt_length=frame - 1)
    kept = encode_prompt(row("abc", "x"), BARE, max_prompt_length=frame + 1)
    assert kept.truncated and "\na\n\n### Response:\n" in BARE.decode(kept.ids)


def test_a_slow_tokenizer_is_cut_at_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut() -> list[tuple[int, ...]]:
        whole = row("Say it.", "zyx zyx")
        return [encode_prompt(whole, BARE, template="plain", max_prompt_length=limit).ids for limit in (15, 17)]

    expected = cut()
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    assert cut() == expected
    assert expected[0] != expected[1]


def test_responses_end_unless_they_are_cut() -> None:
    text = "zyxw"
    ids = tuple(BARE.encode(text))
    assert len(ids) == 4
    assert encode_response(text, BARE, max_tokens=5) == ((*ids, 1), False, False)
    assert encode_response(text, BARE, max_tokens=4) == (ids, True, False)
    assert encode_response(text, BARE, max_tokens=2) == (ids[:2], True, False)
    with pytest.raises(ValueError, match="max_tokens=0"):
        encode_response(text, BARE, max_tokens=0)


def test_rows_become_examples_and_cuts_are_counted() -> None:
    rows = [row("Say it.", "", "It.", "That."), row("Say it.", "q" * 40, "x"), row("Say it.", "", "q" * 90)]
    encoded = encode_rows(rows, LLAMA, template="plain", max_length=50, max_prompt_length=25)
    first, second, third = encoded.examples
    assert (encoded.truncated_prompts, encoded.truncated_responses) == (1, 1)
    assert (first.id, first.category, first.where) == (3, "say", "rows.jsonl:4")
    assert first.references == ("It.", "That.")
    assert first.response_ids == (*BARE.encode("It."), 1)
    assert (first.prompt_truncated, first.response_truncated) == (False, False)
    assert second.prompt_truncated and len(second.prompt_ids) == 25
    assert third.response_truncated and third.response_ids[-1] != 1
    assert len(third.prompt_ids) + len(third.response_ids) == 50
    assert third.references == ("q" * 90,)


@pytest.mark.parametrize("prompt_length", [0, 50, 60])
def test_lengths_must_leave_room_for_a_response(prompt_length: int) -> None:
    with pytest.raises(
        ConfigError, match=f"max_prompt_length {prompt_length} must lie between 0 and max_length 50"
    ):
        encode_rows([row()], BARE, max_length=50, max_prompt_length=prompt_length)


def test_padding_falls_back_on_the_end_token_and_the_end_token_is_needed() -> None:
    assert (require_eos(BARE), pad_id(BARE)) == (1, 2)
    assert pad_id(tokenizer_with(pad=False)) == 1
    endless = tokenizer_with(eos=False)
    for broken in (require_eos, partial(encode_response, "It.", max_tokens=5), partial(encode_rows, [row()])):
        with pytest.raises(UserError, match="has no end-of-text token; set `eos_token`"):
            broken(tokenizer=endless)


def test_rows_that_are_too_long_are_left_out_where_asked() -> None:
    rows = [row(), Row(1, "do " * 200, "", ("yes",))]
    limits = {"template": "plain", "max_length": 60, "max_prompt_length": 40}
    assert encode_rows(rows, BARE, **limits).truncated_prompts == 1
    found = encode_rows(rows, BARE, **limits, too_long="leave_out")
    assert [example.id for example in found.examples] == [rows[0].id] and found.left_out == {"too long": 1}
    with pytest.raises(UserError, match=r"^all rows are longer than data.max_prompt_length 40 .*too_long=cut$"):
        encode_rows(rows[1:], BARE, **limits, too_long="leave_out")
