"""Token ids shared by teacher and student."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mgsr.models import build_causal_lm, logits_width, shared_vocab_size, text_ends
from mgsr.models.vocabulary import VocabularyConflict, vocabulary_report
from mgsr.runtime.errors import UserError

WORDS = ["<unk>", "<s>", "</s>", "the", "cat", "sat"]


def tokenizer(words, *, eos="</s>", bos="<s>"):
    vocab = words if isinstance(words, dict) else {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token=eos, bos_token=bos)


def model(width, **options):
    return build_causal_lm(
        "gpt2",
        vocab_size=width,
        hidden_size=4,
        num_layers=1,
        num_heads=1,
        max_position_embeddings=8,
        eos_token_id=2,
        seed=0,
        **options,
    )


def test_equal_tokenizers_share_every_id():
    for student in (tokenizer(WORDS), tokenizer(WORDS)):
        report = vocabulary_report(tokenizer(WORDS), student)
        assert (report.teacher_size, report.student_size, report.shared_size) == (6, 6, 6)
        assert report.conflicts == 0
        assert report.problem is None
    same = tokenizer(WORDS)
    assert vocabulary_report(same, same).problem is None


@pytest.mark.parametrize(("teacher_width", "student_width", "expected"), [(6, 6, 6), (8, 7, 6), (16, 5, 5)])
def test_padded_widths_are_cut_to_the_ids_in_use(teacher_width, student_width, expected):
    size = shared_vocab_size(tokenizer(WORDS), tokenizer(WORDS), model(teacher_width), model(student_width))
    assert size == expected


def test_tokens_that_one_side_added_at_the_end_are_cut():
    longer = tokenizer([*WORDS, "<pad>"])
    assert shared_vocab_size(tokenizer(WORDS), longer, model(8), model(8)) == 6
    assert shared_vocab_size(longer, tokenizer(WORDS), model(8), model(8)) == 6
    assert vocabulary_report(longer, tokenizer(WORDS)).conflicts == 0


def test_an_added_token_counts_like_any_other():
    added = tokenizer(WORDS)
    added.add_tokens(["mat"])
    assert shared_vocab_size(added, tokenizer([*WORDS, "mat"]), model(7), model(7)) == 7
    with pytest.raises(UserError, match="`mat` is id 6 for the teacher and absent for the student"):
        shared_vocab_size(added, tokenizer([*WORDS, "dog"]), model(7), model(7))


def test_an_id_that_the_other_leaves_free_is_no_conflict():
    sparse = {word: index for index, word in enumerate(WORDS) if word != "cat"}
    report = vocabulary_report(tokenizer(WORDS), tokenizer(sparse))
    assert report.conflicts == 0
    assert report.shared_size == 6
    moved = vocabulary_report(tokenizer(WORDS), tokenizer(sparse | {"cat": 9}))
    assert (moved.conflicts, moved.example) == (1, VocabularyConflict("cat", 4, 9))


def test_swapped_tokens_are_shown_with_both_ids():
    swapped = ["<unk>", "<s>", "</s>", "the", "sat", "cat"]
    report = vocabulary_report(tokenizer(WORDS), tokenizer(swapped))
    assert report.conflicts == 2
    assert report.example == VocabularyConflict("cat", 4, 5)
    with pytest.raises(UserError, match="`cat` is id 4 for the teacher and id 5 for the student") as caught:
        shared_vocab_size(tokenizer(WORDS), tokenizer(swapped), model(6), model(6))
    assert "\n" not in str(caught.value)


def test_beginning_tokens_must_agree_and_ends_need_not():
    assert shared_vocab_size(tokenizer(WORDS), tokenizer(WORDS, eos="<s>"), model(6), model(6)) == 6
    with pytest.raises(UserError, match="the bos token is id 1 for the teacher and id 0 for the student"):
        shared_vocab_size(tokenizer(WORDS), tokenizer(WORDS, bos="<unk>"), model(6), model(6))
    assert shared_vocab_size(tokenizer(WORDS), tokenizer(WORDS, bos=None), model(6), model(6)) == 6


def test_the_end_token_must_be_among_the_shared_ids():
    words = ["<unk>", "<s>", "the", "cat", "</s>"]
    assert text_ends(tokenizer(words), [model(5)], vocab_size=5).stop_ids[0] == 4
    with pytest.raises(UserError, match=r"the end token `</s>` \(id 4\) is outside the 4 ids"):
        text_ends(tokenizer(words), [model(5), model(4)], vocab_size=4)


def test_the_width_is_that_of_the_narrower_embedding():
    untied = model(9, tie_word_embeddings=False)
    assert logits_width(untied) == 9
    untied.set_output_embeddings(torch.nn.Linear(4, 7, bias=False))
    assert logits_width(untied) == 7


@given(
    order=st.permutations([*WORDS[3:], "on", "mat"]),
    extra=st.integers(0, 3),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
@settings(max_examples=30, deadline=None)
def test_agreement_is_exactly_equal_numbering(order, extra, padding):
    teacher_words = WORDS[:3] + WORDS[3:] + ["on", "mat"]
    student_words = WORDS[:3] + list(order) + [f"new{k}" for k in range(extra)]
    teacher_model = model(len(teacher_words) + padding[0])
    student_model = model(len(student_words) + padding[1])
    moved = sum(a != b for a, b in zip(teacher_words, student_words, strict=False))
    report = vocabulary_report(tokenizer(teacher_words), tokenizer(student_words))
    assert report.conflicts == moved
    arguments = (tokenizer(teacher_words), tokenizer(student_words), teacher_model, student_model)
    if moved:
        with pytest.raises(UserError, match="must share token ids"):
            shared_vocab_size(*arguments)
    else:
        assert shared_vocab_size(*arguments) == len(teacher_words)
