"""Text against references, and the diversity of texts."""

from __future__ import annotations

import math
import string
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

# ---- against references


def rouge_l(prediction: str, references: Sequence[str], tokenizer: str = "published") -> float:
    """ROUGE-L F-measure x 100, Porter-stemmed, the best of the references (Lin 2004).

    Words are those of the package rouge_score, and the figures too; a table of all pairs of words is not made.

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
    if tokenizer not in ("published", "unicode"):
        raise ValueError(f"tokenizer must be published or unicode, got {tokenizer!r}")
    words = _words(prediction, tokenizer)
    return 100.0 * max(_common_words(words, _words(reference, tokenizer)) for reference in references)


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


class _Stemmer:
    """Porter's stems, each found once."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = lru_cache(maxsize=1 << 16)(PorterStemmer().stem)


_stemmer = cache(_Stemmer)


@lru_cache(maxsize=4096)
def _words(text: str, tokenizer: str) -> tuple[str, ...]:
    """Words as ROUGE compares them; English ones of more than three letters are stemmed."""
    from rouge_score.tokenize import tokenize

    if tokenizer == "published":
        return tuple(tokenize(text, _stemmer()))
    stem = _stemmer().stem
    return tuple(stem(word) if len(word) > 3 and word.isascii() else word for word in unicode_words(text))


def _common_words(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """F-measure of the longest common subsequence."""
    from rapidfuzz.distance import LCSseq
    from rouge_score.scoring import fmeasure

    if not prediction or not reference:
        return 0.0
    common = LCSseq.similarity(prediction, reference)
    return fmeasure(common / len(prediction), common / len(reference))


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


def has_one_short(references: Sequence[str]) -> bool:
    """Whether an answer is right or wrong as a whole: there is one reference, of at most `SHORT` words.

    Of several references every one is right, and so may be others.

    >>> has_one_short(["Paris."]), has_one_short(["yes", "no"])
    (True, False)
    """
    return len(references) == 1 and len(references[0].split()) <= SHORT


SHORT = 5


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
    denominator (Chen & Cherry 2014, method 1), but without a common word the score is 0. The time
    grows with the number of n-grams, not with that of pairs.

    Raises:
        ValueError: fewer than two sequences, or max_n below 1.

    >>> self_bleu([[1, 2, 3, 4], [1, 2, 3, 4]])
    1.0
    """
    if len(sequences) < 2 or max_n < 1:
        raise ValueError(f"self_bleu needs two sequences and max_n >= 1, got {len(sequences)} and {max_n}")
    return _self_bleu(sequences, [_matches(counts).tolist() for counts in _counts(sequences, max_n)])


def _self_bleu(sequences: Sequence[Sequence[Hashable]], matches: Sequence[list[int]]) -> float:
    """`matches`: for every n, by sequence."""
    lengths = Counter(map(len, sequences))
    known = sorted(lengths)
    scores = []
    for sequence, found in zip(sequences, zip(*matches, strict=True), strict=True):
        length = len(sequence)
        closest = length if lengths[length] > 1 else _closest(known, length)
        scores.append(_bleu(found, [max(length - n, 1) for n in range(len(found))], length, closest))
    return math.fsum(scores) / len(scores)


class _Counts(NamedTuple):
    """How often which sequence has which n-gram, `[P]` each, n-grams ascending; how many sequences there are."""

    gram: np.ndarray
    owner: np.ndarray
    times: np.ndarray
    sequences: int


def _counts(sequences: Sequence[Sequence[Hashable]], max_n: int) -> Iterator[_Counts]:
    """For n = 1 to `max_n`; n-grams are numbered by the (n - 1)-gram that they begin with and their last token."""
    numbers: dict[Hashable, int] = {}
    tokens = np.array([numbers.setdefault(t, len(numbers)) for s in sequences for t in s], dtype=np.int64)
    lengths = np.array([len(s) for s in sequences], dtype=np.int64)
    owner = np.repeat(np.arange(len(sequences)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(tokens))  # in the sequence, from here on
    begun = np.zeros_like(tokens)
    for n in range(1, max_n + 1):
        places = np.flatnonzero(left >= n)
        begun[places] = np.unique(begun[places] * len(numbers) + tokens[places + n - 1], return_inverse=True)[1]
        pairs, count = np.unique(begun[places] * len(sequences) + owner[places], return_counts=True)
        yield _Counts(*np.divmod(pairs, len(sequences)), count, len(sequences))


def _matches(counts: _Counts) -> np.ndarray:
    """Per sequence, n-grams that another one has as well, each at most as often as there."""
    if not len(counts.gram):
        return np.zeros(counts.sequences, dtype=np.int64)
    first = np.flatnonzero(np.diff(counts.gram, prepend=-1))
    of_gram = np.repeat(np.arange(len(first)), np.diff(first, append=len(counts.gram)))
    best = np.maximum.reduceat(counts.times, first)[of_gram]
    # whoever has it most often is compared with the next; where several have, they are that to each other
    is_best = counts.times == best
    alone = np.add.reduceat(is_best.astype(np.int64), first)[of_gram] == 1
    second = np.maximum.reduceat(np.where(is_best, 0, counts.times), first)[of_gram]
    others = np.where(is_best & alone, second, best)
    return np.bincount(counts.owner, np.minimum(counts.times, others), counts.sequences).astype(np.int64)


def _closest(known: list[int], length: int) -> int:
    """The nearest of ascending lengths other than this one, the shorter of two."""
    place = bisect_left(known, length)
    return min(
        known[max(place - 1, 0) : place] + known[place + 1 : place + 2], key=lambda other: abs(other - length)
    )


def diversity(sequences: Sequence[Sequence[Hashable]]) -> dict[str, float]:
    """`distinct_1` to `distinct_3`, and `self_bleu` where there are two sequences; n-grams are counted once."""
    figures: dict[str, float] = {}
    matches = []
    for n, counts in enumerate(_counts(sequences, 4), 1):
        if n < 4:
            total = int(counts.times.sum())
            different = np.count_nonzero(np.diff(counts.gram, prepend=-1))
            figures[f"distinct_{n}"] = int(different) / total if total else 0.0
        matches.append(_matches(counts).tolist())
    if len(sequences) > 1:
        figures["self_bleu"] = _self_bleu(sequences, matches)
    return figures


def _bleu(matches: Sequence[int], totals: Sequence[int], length: int, closest: int) -> float:
    """Of one sequence; `closest`: the length nearest to its own among the others."""
    if matches[0] == 0:
        return 0.0
    brevity = min(0.0, 1.0 - closest / length)
    logs = [math.log((match or 0.1) / total) for match, total in zip(matches, totals, strict=True)]
    return math.exp(brevity + math.fsum(logs) / len(logs))
