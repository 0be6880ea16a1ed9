"""Metrics against hand-computed values and the reference packages."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from mgsr.evaluation.exposure_bias import ex_acc_err, perplexity
from mgsr.evaluation.metrics import (
    distinct_n,
    diversity,
    exact_match,
    has_words,
    rouge_l,
    self_bleu,
    unicode_words,
)

WORDS = st.sampled_from(
    ["the", "cats", "cat", "running", "runs", "Dog's", "3.5", "é", "\n", "happily", "sat-down"]
)
TEXTS = st.lists(WORDS, max_size=12).map(" ".join)

# ---- against references


def test_rouge_l_by_hand():
    # the | cat | sat | down against the | cat | down | again: LCS 3 of 4 and 4
    assert rouge_l("the cat sat down", ["the cat down again"]) == pytest.approx(75.0)
    # 2 of 2 and 2 of 3: F = 2 * 1 * 2/3 / (5/3); "jumping" and "jumps" share a stem
    assert rouge_l("Jumping, dogs!", ["jumps the dog", "nothing"]) == pytest.approx(80.0)
    assert rouge_l("b a", ["a b"]) == pytest.approx(50.0)
    assert rouge_l("", ["a"]) == rouge_l("a", [""]) == rouge_l("", [""]) == rouge_l("a", ["b"]) == 0.0
    assert rouge_l("same words here", ["x", "same words here"]) == pytest.approx(100.0)
    with pytest.raises(ValueError, match="at least one reference"):
        rouge_l("a", [])


def slow_rouge_l(prediction, reference):
    """By the definition: words of a-z and 0-9, those of four letters or more stemmed, the longest common part."""
    stem = PorterStemmer().stem
    left, right = (
        [stem(word) if len(word) > 3 else word for word in re.findall("[a-z0-9]+", text.lower())]
        for text in (prediction, reference)
    )
    longest = np.zeros((len(left) + 1, len(right) + 1))
    for i, j in np.ndindex(len(left), len(right)):
        both = longest[i, j] + 1 if left[i] == right[j] else 0
        longest[i + 1, j + 1] = max(both, longest[i, j + 1], longest[i + 1, j])
    common = longest[-1, -1]
    return 200 * common / (len(left) + len(right)) if common else 0.0


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_rouge_l_is_that_of_the_best_reference(prediction, references):
    expected = max(slow_rouge_l(prediction, reference) for reference in references)
    assert rouge_l(prediction, references) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(max_codepoint=127)), st.text(st.characters(max_codepoint=127)))
def test_of_ascii_the_unicode_words_are_the_published_ones(prediction, reference):
    published, unicode = (rouge_l(prediction, [reference], name) for name in ("published", "unicode"))
    assert unicode == published
    assert has_words([reference]) == has_words([reference], "unicode") == (rouge_l(reference, [reference]) > 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Кошка, села!", ["кошка", "села"]),
        ("हिन्दी में लिखो", ["हिन्दी", "में", "लिखो"]),
        ("東京へ行く。", ["東", "京", "へ", "行", "く"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("Ångström cafe\u0301", ["ångström", "café"]),
        ("x₂ = ٣", ["x₂", "٣"]),
        ("🙂 — …", []),
    ],
)
def test_words_of_other_scripts(text, words):
    assert unicode_words(text) == words
    assert has_words([text], "unicode") == bool(words)
    assert rouge_l(text, [text], "unicode") == (100.0 if words else 0.0)


def test_a_word_of_another_script_is_a_word_like_any_other():
    # two of three words in order, as in Latin letters
    assert rouge_l("кошка там села", ["кошка села тут"], "unicode") == rouge_l("one two six", ["one six ten"])
    assert rouge_l("кошка", ["кошка"]) == 0.0 and not has_words(["кошка", "да!"])
    with pytest.raises(ValueError, match="published or unicode"):
        rouge_l("a", ["a"], "words")


@pytest.mark.parametrize("reference", ["привет 6 мир", "GPT 是语言模型", "да"])
def test_a_digit_or_a_name_between_words_of_another_script_is_not_enough(reference):
    assert not has_words([reference]) and has_words([reference], "unicode")


def test_some_words_with_umlauts_are():
    assert has_words(["Die größte Stadt ist Berlin"])


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        (" The  answer: YES!\n", ["no", "the answer yes"], 100.0),
        ("yes", ["yes it is"], 0.0),
        ("", ["."], 100.0),
        ("ÉTÉ", ["été"], 100.0),
        ("1 2", ["12"], 0.0),
    ],
)
def test_exact_match(prediction, references, expected):
    assert exact_match(prediction, references) == expected


def test_exact_match_takes_any_reference():
    pairs = [("a", ["A"]), ("b", ["x", "b."]), ("c", ["x"]), ("d", ["y"])]
    assert [exact_match(text, references) for text, references in pairs] == [100.0, 100.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="at least one reference"):
        exact_match("a", [])


# ---- diversity


@pytest.mark.parametrize(
    ("sequences", "n", "expected"),
    [
        ([[1, 2, 3], [1, 2]], 1, 3 / 5),
        ([[1, 2, 3], [1, 2]], 2, 2 / 3),  # 12 23 | 12, and none across the border
        ([[1, 2, 3], [1, 2]], 3, 1.0),
        ([["a", "b"], ["b", "a"]], 2, 1.0),
        ([[1], []], 2, 0.0),
        ([], 1, 0.0),
    ],
)
def test_distinct_n(sequences, n, expected):
    assert distinct_n(sequences, n) == pytest.approx(expected)


def test_distinct_n_refuses_n_0():
    with pytest.raises(ValueError, match="got 0"):
        distinct_n([[1]], 0)


@pytest.mark.parametrize(
    "sequences", [[], [()], [(), ()], [(1,)], [(1, 2, 1, 2), (1, 2)], [(5, 5, 5, 5, 5), (), (5, 6)]]
)
def test_diversity_counts_once_what_its_parts_count(sequences):
    expected = {f"distinct_{n}": distinct_n(sequences, n) for n in (1, 2, 3)}
    if len(sequences) > 1:
        expected["self_bleu"] = self_bleu(sequences)
    assert diversity(sequences) == expected


def test_self_bleu_by_hand():
    # each 4 words long, 3 of 4 words and 2 of 3 pairs in common
    assert self_bleu([list("abcd"), list("abce")], max_n=2) == pytest.approx(math.sqrt(3 / 4 * 2 / 3))
    # "ab" of 2 words against "abcd": all found, brevity exp(1 - 4/2); "abcd": 2 of 4 and 1 of 3
    short, long = math.exp(-1.0), math.sqrt(2 / 4 * 1 / 3)
    assert self_bleu([list("ab"), list("abcd")], max_n=2) == pytest.approx((short + long) / 2)
    assert self_bleu([list("abcd")] * 3) == 1.0
    assert self_bleu([list("ab"), list("cd"), []]) == 0.0
    for sequences, max_n in ([["a"]], 4), ([["a"], ["b"]], 0):
        with pytest.raises(ValueError, match="two sequences"):
            self_bleu(sequences, max_n=max_n)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=2, max_size=5), st.integers(1, 4))
def test_self_bleu_equals_nltk(sequences, max_n):
    smoothing = SmoothingFunction().method1
    expected = [
        sentence_bleu(
            sequences[:k] + sequences[k + 1 :], s, weights=[1 / max_n] * max_n, smoothing_function=smoothing
        )
        for k, s in enumerate(sequences)
    ]
    assert self_bleu(sequences, max_n=max_n) == pytest.approx(np.mean(expected), rel=1e-9)


# ---- ExAccErr, perplexity


def test_ex_acc_err_by_hand():
    student = [[2.0, 4.0, 0.0], [0.0, 2.0, 1.0]]  # the first ends after 2
    teacher = [[1.0, 1.0, 1.0]]
    # R = 1, 4, 4.5; l e(l) = 1, 2, 3
    expected = [0.0, 100.0, 50.0]
    np.testing.assert_allclose(ex_acc_err(student, teacher), expected)
    np.testing.assert_allclose(ex_acc_err(np.array(student), torch.tensor(teacher)), expected)


def test_ex_acc_err_is_a_ratio_of_means_not_a_mean_of_ratios():
    # R = (1 + 9) / 2 = 5, e = (1 + 3) / 2 = 2
    np.testing.assert_allclose(ex_acc_err([[1.0], [9.0]], [[1.0], [3.0]]), [150.0])


def test_ex_acc_err_of_different_widths_and_of_nothing():
    # after the teacher's last position its sum stays: R = 1, 3, 6 and l e(l) = 2, 2, 2
    np.testing.assert_allclose(ex_acc_err([[1.0, 2.0, 3.0]], [[2.0]]), [-50.0, 50.0, 200.0])
    np.testing.assert_allclose(ex_acc_err([[3.0]], [[1.0, 2.0]]), [200.0, 0.0])
    found = ex_acc_err([[1.0, 1.0]], [[0.0, 1.0]])
    assert math.isnan(found[0]) and found[1] == 100.0


def test_ex_acc_err_refuses_what_does_not_fit():
    kl = np.ones((1, 3))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        ex_acc_err([1.0, 2.0, 3.0], kl)
    with pytest.raises(ValueError, match=r"\(0, 3\)"):
        ex_acc_err(kl, np.ones((0, 3)))


def test_perplexity():
    # 2 tokens at 1/2 and 1 at 1/4: exp of the mean of log 2, log 2, log 4
    assert perplexity([2 * math.log(0.5), math.log(0.25)], [2, 1]) == pytest.approx(2 ** (4 / 3))
    assert math.isnan(perplexity([0.0], [0]))
    with pytest.raises(ValueError, match="differ"):
        perplexity([1.0], [1, 2])
