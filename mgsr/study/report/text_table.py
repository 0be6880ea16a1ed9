"""The table of texts: their diversity, what corrections did to them, and the student's exposure bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mgsr.runtime.wording import plural
from mgsr.study.report.evidence import Evidence, Result, mean, replays
from mgsr.study.report.table import MISSING, NONE, Table, number

DIVERSITY = ("distinct_1", "distinct_2", "distinct_3", "self_bleu")
GROUND_TRUTH = "(ground truth)"


def column(evidence: Evidence, read: Callable[[Result], float | None], digits: int) -> list[str]:
    """A figure of every arm, mean over its seeds."""
    return [number(mean(by_seed), digits) for by_seed in evidence.values(read).values()]


def text_table(evidence: Evidence) -> Table:
    """Diversity, exposure bias and the quality of corrections."""
    evidence = evidence.of_shared_seeds()

    def written(name: str) -> Callable[[Result], float | None]:
        return lambda r: r["metrics"]["training_text"].get("written", {}).get(name)

    def tested(name: str) -> Callable[[Result], float | None]:
        return lambda r: r["metrics"]["result"]["test"].get(name)

    def of(section: str, name: str) -> Callable[[Result], float | None]:
        return lambda r: (r["metrics"].get(section) or {}).get(name)

    columns = {
        "written: sequences per round": (of("scrg", "sequences"), 0),
        "distinct-1": (written("distinct_1"), 3),
        "distinct-2": (written("distinct_2"), 3),
        "distinct-3": (written("distinct_3"), 3),
        "self-BLEU": (written("self_bleu"), 3),
        "outputs: distinct-1": (tested("distinct_1"), 3),
        "distinct-2 ": (tested("distinct_2"), 3),
        "distinct-3 ": (tested("distinct_3"), 3),
        "self-BLEU ": (tested("self_bleu"), 3),
        "exact match, %": (tested("exact_match"), 2),
        "ExAccErr, %": (of("exposure", "ex_acc_err_at_end"), 1),
        "teacher's perplexity": (of("exposure", "teacher_perplexity"), 2),
        "corrections that raise log p, %": (_percent(_raised), 1),
        "that raise ROUGE-L, %": (_percent(of("corrections", "rouge_l_raised")), 1),
        "that lower it, %": (_percent(of("corrections", "rouge_l_lowered")), 1),
    }
    cells = [column(evidence, read, digits) for read, digits in columns.values()]
    rows = [
        (arm, *((c[i] for c in cells) if by_seed else [MISSING] * len(columns)))
        for i, (arm, by_seed) in enumerate(evidence.results.items())
    ]
    truth = [r["metrics"]["training_text"].get("ground_truth", {}) for r in evidence.runs]
    diverse = [number(_mean_of(truth, name), 3) for name in DIVERSITY]
    rows.insert(0, (GROUND_TRUTH, NONE, *diverse, *([NONE] * (len(columns) - 1 - len(diverse)))))
    replaying = [arm for arm, overrides in evidence.study.arms.items() if replays(overrides)]
    test = evidence.runs[0]["metrics"]["result"]["test"]
    samples = max(1, len(test.get("rouge_l_by_seed", {})))
    text = (
        f"Means over {evidence.seeds_in_words}. Written text: model-written text trained on, over token ids, mean of the rounds, "
        "each of so many sequences. Distinct-n falls as text grows, whatever the model: arms with rounds of another "
        "size cannot be compared in it. What is trained on beside it, or alone, is the ground truth, of all training "
        "rows. Outputs: answers to the test set, over words, "
        f"{test['examples'] * samples:,} in every arm ({plural(test['examples'], 'row')}, {plural(samples, 'sampling seed')}); their "
        "self-BLEU is over the first sampling seed. Exact match is over all of these rows, those that may be worded "
        "in many ways among them. ExAccErr at the longest answer and perplexity of the student's "
        "answers under the teacher: on the test prompts."
    )
    if not any(test.get("exact_match_by_category") for test in _tests(evidence)):
        text += " Exact match was not counted by kind of task in these runs."
    if replaying:
        text += (
            f" Of replayed text ({', '.join(replaying)}) the teacher's likelihood after a correction isn't known: it "
            "is read off the training step, where text of several rounds meets."
        )
    return Table("Text", text, ("arm", *columns), tuple(rows))


def _mean_of(each: Sequence[dict[str, Any]], name: str) -> float | None:
    return mean({i: figures[name] for i, figures in enumerate(each) if figures.get(name) is not None})


def _tests(evidence: Evidence) -> list[dict[str, Any]]:
    return [r["metrics"]["result"]["test"] for r in evidence.runs]


def _raised(result: Result) -> float | None:
    """Share of corrections that raise the teacher's likelihood of the sequence.

    Early results hold one of replayed text too, whose likelihoods before and after came from different texts.
    """
    if replays(result["overrides"]):
        return None
    value: float | None = (result["metrics"].get("corrections") or {}).get("teacher_log_likelihood_raised")
    return value


def _percent(read: Callable[[Result], float | None]) -> Callable[[Result], float | None]:
    def scaled(result: Result) -> float | None:
        value = read(result)
        return None if value is None else 100.0 * value

    return scaled
