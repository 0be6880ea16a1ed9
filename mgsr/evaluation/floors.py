"""What costs no model at all: figures that a model has to be above before its text is worth a word.

- echo: the prompt, said again.
- constant: one string for all rows, found word by word on the dev rows.
- nearest: the answer of the training prompt that is most like the row's own, by the cosine of TF-IDF vectors.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any

from mgsr.config.schema import EvaluationConfig, ExperimentConfig
from mgsr.data.rows import Row
from mgsr.data.splits import rows_fingerprint
from mgsr.evaluation.metrics import exact_match, has_one_short, rouge_l
from mgsr.models.model_cache import cache_folder, versioned_fingerprint
from mgsr.runtime.files import write_atomically
from mgsr.runtime.json_files import read_json
from mgsr.runtime.progress import say
from mgsr.runtime.ranks import on_first

NAMES = {"echo": "the prompt again", "constant": "one constant answer", "nearest": "nearest training answer"}
"""As tables call them."""
LONGEST = 12
"""Words of the constant string."""
CANDIDATES, ROWS = 100, 200
"""Words that it is made of, the most frequent ones, and dev rows that it is chosen on."""


def floors(
    train: Sequence[Row],
    dev: Sequence[Row],
    test: Sequence[Row],
    config: EvaluationConfig,
    within: Sequence[bool] = (),
) -> dict[str, dict[str, Any]]:
    """Figures of the three on test rows: `rouge_l`, and where they can be told `exact_match` and `accuracy`.

    The constant string stands under `text`. Without dev rows there is none.

    Args:
        within: of each test row, whether it is one of those that are also measured apart, under `within`.
    """
    answers = {"echo": [asked(row) for row in test]}
    text = constant(dev, config.rouge_tokenizer) if dev else ""
    if dev:
        answers["constant"] = [text] * len(test)
    answers["nearest"] = nearest(train, test)
    found: dict[str, dict[str, Any]] = {}
    for name, texts in answers.items():
        found[name] = measured(texts, test, config)
        if 0 < sum(within) < len(test):
            found[name]["within"] = measured(list(compress(texts, within)), list(compress(test, within)), config)
    if dev:
        found["constant"]["text"] = text
    return found


def cached_floors(
    config: ExperimentConfig, rows: Mapping[str, list[Row]], within: Mapping[str, Sequence[bool]]
) -> dict[str, Any]:
    """Floors of every test set, which no model has a part in; measured once, then read.

    Args:
        within: by test set, see `floors`.
    """
    data = {name: rows_fingerprint(some) for name, some in rows.items()}
    inside = {name: [place for place, short in enumerate(some) if short] for name, some in within.items()}
    tests = [name for name in rows if name not in ("train", "dev")]
    path = (
        cache_folder(config)
        / f"floors-{versioned_fingerprint(data, config.evaluation.rouge_tokenizer, inside)}.json"
    )

    def measure() -> None:
        say("floors: echo, one constant answer, and that of the nearest training prompt")
        found = {
            name: floors(rows["train"], rows["dev"], rows[name], config.evaluation, within[name]) for name in tests
        }
        write_atomically(path, json.dumps(found, indent=2) + "\n")

    on_first(lambda: None if path.exists() else measure())
    return read_json(path, dict.fromkeys(tests, dict), "delete it to have them measured again")


def asked(row: Row) -> str:
    """The prompt without its template."""
    return " ".join(part for part in (row.instruction, row.input) if part)


def measured(answers: Sequence[str], rows: Sequence[Row], config: EvaluationConfig) -> dict[str, float]:
    """Means in per cent, each over the rows that it can be told of, as of a model's answers."""
    pairs = list(zip(answers, rows, strict=True))
    found = {
        "rouge_l": [rouge_l(text, row.references, config.rouge_tokenizer) for text, row in pairs],
        "exact_match": [exact_match(text, row.references) for text, row in pairs if has_one_short(row.references)],
        "accuracy": [100.0 * row.is_right(text) for text, row in pairs if row.is_right is not None],
    }
    return {name: _mean(values) for name, values in found.items() if values}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def constant(rows: Sequence[Row], tokenizer: str = "published") -> str:
    """The string that scores best on rows, found greedily: the best next word, while there is a better string."""
    rows = rows[:ROWS]
    words = Counter(word for row in rows for word in row.references[0].lower().split())
    candidates = [word for word, _ in words.most_common(CANDIDATES)]

    def score(text: str) -> float:
        return _mean([rouge_l(text, row.references, tokenizer) for row in rows])

    best, text = 0.0, ""
    for _ in range(LONGEST):
        found = max(((score(f"{text} {word}".strip()), word) for word in candidates), key=lambda pair: pair[0])
        if found[0] <= best:
            break
        best, text = found[0], f"{text} {found[1]}".strip()
    return text


def nearest(train: Sequence[Row], rows: Sequence[Row], prompt: Callable[[Row], str] = asked) -> list[str]:
    """For every row the answer of the training row whose prompt is most like its own; of equals the first."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    # every word and sign counts, and no list of words of one language is left out
    vectors = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", sublinear_tf=True)
    known = vectors.fit_transform(map(prompt, train))
    found: list[str] = []
    for start in range(0, len(rows), 500):
        some = vectors.transform(map(prompt, rows[start : start + 500]))
        best = (some @ known.T).toarray().argmax(axis=1)
        found += [train[place].output for place in best]
    return found
