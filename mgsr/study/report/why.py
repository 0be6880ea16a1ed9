"""What may explain a difference, in three lines and two corrections."""

from __future__ import annotations

from collections.abc import Sequence

from mgsr.study.report.tables import GAIN, RAISED, WHY
from mgsr.study.report.words import listed, shown, signed
from mgsr.study.view import TERMS, View

ANSWERS = {
    "perplexity under the teacher": "perplexity of answers under the teacher",
    "ExAccErr, %": "ExAccErr at the end, %",
    "distinct-2": "distinct-2 of greedy answers",
}


def why(view: View, subjects: Sequence[str]) -> list[str]:
    """How the baseline's terms pull, how answers differ, and what corrections gain."""
    base, lines = view.study.baseline, []
    shares = {}
    frames = {word: view.frame(f"share/{term}") for term, word in TERMS.items()}
    for word, frame in frames.items():
        found = frame.loc[frame["arm"] == base, "score"]
        if len(found):
            shares[word] = f"{shown(found.mean(), 0)} ({found.min():.0f} to {found.max():.0f})"
    if shares:
        told = ", ".join(f"{word} {value}" for word, value in shares.items())
        lines.append(f"Share of the gradient of `{base}`, %, mean and range of its runs: {told}.")
    arms = [arm for arm in dict.fromkeys((base, *subjects)) if view.of(arm)]
    figures = []
    for word, name in ANSWERS.items() if arms else ():
        place, digits = WHY[name]
        values = [view.mean(arm, place) for arm in arms]
        if None not in values:
            figures.append(f"{word} {listed(shown(value, digits) for value in values)}")
    if figures:
        lines.append(f"Answers of {listed(f'`{arm}`' for arm in arms)}: {'; '.join(figures)}.")
    gain, raised = (view.mean(base, WHY[name][0]) for name in (GAIN, RAISED))
    if gain is not None and raised is not None:
        lines.append(f"A correction of `{base}` changes ROUGE-L by {signed(gain)}; {100 * raised:.0f} % raise it.")
    return lines


def corrections(view: View) -> list[tuple[str, str, str]]:
    """Two texts of the baseline before and after correction, as its first run recorded them."""
    for run in view.of(view.study.baseline):
        texts = run.result["metrics"].get("corrections", {}).get("examples") or []
        if texts:
            return [(text["prompt"], text["before"], text["after"]) for text in texts[:2]]
    return []
