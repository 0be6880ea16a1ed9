"""Text against references, and the diversity of texts.

Functions first; the metric is a thin shell over one of them.
"""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

# ---- against references


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L F-measure x 100, Porter-stemmed, the best of the references (Lin 2004), by the package rouge_score.

    Raises:
        ValueError: no reference.

    >>> round(rouge_l("the cats sat", ["a dog", "the cat sat down"]), 2)
    85.71
    """
    if not references:
        raise ValueError("rouge_l needs at least one reference, got none")
    return 100.0 * _rouge_scorer().score_multi(references, prediction)["rougeL"].fmeasure


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


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


class RougeL(Metric):
    """Mean of `rouge_l` over texts, summed in float64 and added up over ranks: every text weighs the same."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Adds texts, each with its references.

        Raises:
            ValueError: the two differ in length, or a text has no reference.
        """
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions but {len(references)} lists of references")
        if any(isinstance(several, str) for several in references):
            raise ValueError("references must be a list of strings for every prediction, got a bare string")
        self.total += sum(rouge_l(text, several) for text, several in zip(predictions, references, strict=True))
        self.count += len(predictions)

    def compute(self) -> Tensor:
        """The mean; nan before any text."""
        return self.total / self.count


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
