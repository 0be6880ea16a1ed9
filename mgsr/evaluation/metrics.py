"""Text against references, and the diversity of texts."""

from __future__ import annotations

import math
import string
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Any

# ---- against references


def rouge_l(prediction: str, references: Sequence[str], tokenizer: str = "published") -> float:
    """ROUGE-L F-measure x 100, Porter-stemmed, the best of the references (Lin 2004), by the package rouge_score.

    Args:
        tokenizer: what a word is. `published`: runs of a-z and 0-9, as in every published figure; of other scripts
            nothing is left, and the score is 0. `unicode`: as `unicode_words`.

    Raises:
        ValueError: no reference.

    >>> round(rouge_l("the cats sat", ["a dog", "the cat sat down"]), 2)
    85.71
    >>> rouge_l("да", ["да"]), rouge_l("да", ["да"], "unicode")
    (0.0, 100.0)
    """
    if not references:
        raise ValueError("rouge_l needs at least one reference, got none")
    return 100.0 * _rouge_scorer(tokenizer).score_multi(references, prediction)["rougeL"].fmeasure


def has_words(references: Sequence[str], tokenizer: str = "published") -> bool:
    """Whether `rouge_l` sees at least half of the words of one of them; a word counts that it sees whole.

    >>> has_words(["да", "42"]), has_words(["да, 42, нет"]), has_words(["да"], "unicode")
    (True, False, True)
    """
    for reference in references:
        words = unicode_words(reference)
        seen = len(words) if tokenizer == "unicode" else sum(word.isascii() for word in words)
        if words and 2 * seen >= len(words):
            return True
    return False


WORD = "LMN"
"""First letters of the Unicode categories that words are made of: letters, marks, numbers."""
UNSPACED = ("CJK ", "HIRAGANA ", "KATAKANA ", "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ")
"""Names of letters that are written without spaces between words begin so."""


def unicode_words(text: str) -> list[str]:
    """Runs of letters, marks and digits of any script, lower case; of scripts without spaces each character.

    Of a-z and 0-9 these are the published words, unstemmed.

    >>> unicode_words("Да, हिन्दी: 東京!")
    ['да', 'हिन्दी', '東', '京']
    """
    words: list[str] = []
    ended = True
    # one form for what looks alike
    for letter in unicodedata.normalize("NFC", text.lower()):
        part = unicodedata.category(letter)[0] in WORD
        alone = not letter.isascii() and unicodedata.name(letter, "").startswith(UNSPACED)
        if not part:
            ended = True
        elif words and (unicodedata.category(letter)[0] == "M" or not (ended or alone)):
            words[-1] += letter
        else:
            words.append(letter)
            ended = alone
    return words


@lru_cache
def _rouge_scorer(tokenizer: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    if tokenizer not in ("published", "unicode"):
        raise ValueError(f"tokenizer must be published or unicode, got {tokenizer!r}")
    return RougeScorer(
        ["rougeL"], use_stemmer=True, tokenizer=_UnicodeTokenizer() if tokenizer == "unicode" else None
    )


class _UnicodeTokenizer:
    """`unicode_words` as the scorer asks for them, English ones stemmed as the published tokenizer does."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        words = unicode_words(text)
        return [self._stem(word) if len(word) > 3 and word.isascii() else word for word in words]


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """100 if the prediction equals a reference, else 0; case, ASCII punctuation and spacing aside.

    Raises:
        ValueError: no reference.

    >>> exact_match("Yes. ", ["no", "yes"])
    100.0
    """
    if not references:
        raise ValueError("exact_match needs at least one reference, got none")
    wanted = {_plain(reference) for reference in references}
    return 100.0 if _plain(prediction) in wanted else 0.0


def _plain(text: str) -> str:
    return " ".join(text.casefold().translate(str.maketrans("", "", string.punctuation)).split())


# ---- diversity


def _ngrams(sequence: Sequence[Hashable], n: int) -> Iterable[tuple[Hashable, ...]]:
    return zip(*(sequence[k:] for k in range(n)), strict=False)


def distinct_n(sequences: Iterable[Sequence[Hashable]], n: int) -> float:
    """Different n-grams over all n-grams of all sequences together (Li et al. 2016); 0 if there are none.

    Args:
        sequences: of words or token ids.

    Raises:
        ValueError: n below 1.

    >>> distinct_n([[1, 2, 1, 2], [1, 2]], 2)
    0.5
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    counts = Counter(gram for sequence in sequences for gram in _ngrams(sequence, n))
    return len(counts) / counts.total() if counts else 0.0


def self_bleu(sequences: Sequence[Sequence[Hashable]], *, max_n: int = 4) -> float:
    """Mean BLEU of every sequence with all others as references, in 0..1; low is diverse (Zhu et al. 2018).

    BLEU (Papineni et al. 2002) with equal weights up to `max_n`; a precision of 0 becomes 0.1 / its
    denominator (Chen & Cherry 2014, method 1), but without a common word the score is 0. Linear in the number
    of n-grams: the two sequences in which an n-gram is most frequent are remembered.

    Raises:
        ValueError: fewer than two sequences, or max_n below 1.

    >>> self_bleu([[1, 2, 3, 4], [1, 2, 3, 4]])
    1.0
    """
    if len(sequences) < 2 or max_n < 1:
        raise ValueError(f"self_bleu needs two sequences and max_n >= 1, got {len(sequences)} and {max_n}")
    counts = [[Counter(_ngrams(s, n)) for n in range(1, max_n + 1)] for s in sequences]
    top: dict[tuple[Hashable, ...], list[tuple[int, int]]] = {}
    for owner, orders in enumerate(counts):
        for gram, count in (item for order in orders for item in order.items()):
            top[gram] = sorted([*top.get(gram, ()), (count, owner)], reverse=True)[:2]
    lengths = [len(sequence) for sequence in sequences]
    scores = []
    for owner, orders in enumerate(counts):
        matches = [sum(min(c, _of_others(top[g], owner)) for g, c in order.items()) for order in orders]
        totals = [max(order.total(), 1) for order in orders]
        scores.append(_bleu(matches, totals, lengths[owner], lengths[:owner] + lengths[owner + 1 :]))
    return math.fsum(scores) / len(scores)


def diversity(sequences: Sequence[Sequence[Hashable]]) -> dict[str, float]:
    """`distinct_1` to `distinct_3`, and `self_bleu` where there are two sequences."""
    figures = {f"distinct_{n}": distinct_n(sequences, n) for n in (1, 2, 3)}
    if len(sequences) > 1:
        figures["self_bleu"] = self_bleu(sequences)
    return figures


def _of_others(top: list[tuple[int, int]], owner: int) -> int:
    """The highest count of an n-gram in a sequence other than `owner`."""
    return max((count for count, sequence in top if sequence != owner), default=0)


def _bleu(matches: list[int], totals: list[int], length: int, others: list[int]) -> float:
    if matches[0] == 0:
        return 0.0
    closest = min(others, key=lambda other: (abs(other - length), other))
    brevity = min(0.0, 1.0 - closest / length)
    logs = [math.log((match or 0.1) / total) for match, total in zip(matches, totals, strict=True)]
    return math.exp(brevity + math.fsum(logs) / len(logs))
