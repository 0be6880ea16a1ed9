"""Writing test or dev responses with a model and measuring them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mgsr.config.schema import EvaluationConfig, ExperimentConfig
from mgsr.data.encoding import decode, require_eos
from mgsr.data.prompts import Example
from mgsr.data.rows import ALL, Row
from mgsr.evaluation.metrics import distinct_n, exact_match, has_one_short, has_words, rouge_l, self_bleu
from mgsr.generation import sample
from mgsr.models.stop_ids import TextEnds
from mgsr.runtime import ranks
from mgsr.runtime.devices import placed, working_device
from mgsr.runtime.progress import progress, say
from mgsr.runtime.wording import plural

# name of a test set -> its rows, and the same encoded
Tests = dict[str, tuple[list[Row], list[Example]]]


@dataclass
class Predictor:
    """Writes responses to examples with a student as it stands; of several ranks each writes its share.

    Args:
        stop_ids: any of them ends a response; None: the tokenizer's end of text.
        lead: text that stands before every response and is no part of it.
        check: called between batches; may raise to stop. advance: called with the number of responses.
        together: within it each rank calls a model that is in parts on all of them at its own pace.
    """

    tokenizer: PreTrainedTokenizerBase
    examples: Sequence[Example]
    config: EvaluationConfig
    vocab_size: int | None = None
    pad_token_id: int = 0
    stop_ids: Sequence[int] | None = None
    lead: str = ""
    check: Callable[[], None] | None = None
    advance: Callable[[int], None] | None = None
    together: Callable[[], AbstractContextManager[Any]] = nullcontext

    def write(self, model: PreTrainedModel, seed: int | None) -> list[str]:
        """One response per example of this rank, in order; greedily where there is no seed."""
        prompts = [(e.id, e.prompt_ids) for e in self.mine]
        stop_ids = [require_eos(self.tokenizer)] if self.stop_ids is None else self.stop_ids
        ids = sample(
            model,
            prompts,
            seed=seed or 0,
            eos_token_id=stop_ids,
            pad_token_id=self.pad_token_id,
            max_new_tokens=self.config.max_new_tokens,
            batch_size=self.config.batch_size,
            temperature=self.config.temperature or 1.0,
            top_p=self.config.top_p,
            greedy=seed is None,
            vocab_size=self.vocab_size,
            progress=self._after_batch,
            memory_key="evaluation.batch_size",
        )
        texts = (decode(self.tokenizer, tokens, stop_ids).strip() for tokens in ids)
        return [text.removeprefix(self.lead).lstrip() for text in texts]

    @property
    def seeds(self) -> list[int]:
        """Sampling seeds of the test; none where it is answered greedily alone."""
        return self.config.seeds if self.config.temperature > 0 else []

    @property
    def times(self) -> int:
        """How often every example is answered."""
        return 1 + len(self.seeds)

    @property
    def mine(self) -> Sequence[Example]:
        """This rank's examples."""
        return self.examples[ranks.rank() :: ranks.world_size()]

    def write_all(self, model: PreTrainedModel, seed: int | None) -> tuple[list[str], list[float]]:
        """One response per example, of all ranks, and its ROUGE-L; every rank has to call this."""
        with self.together():
            texts = self.write(model, seed)
        scores = self.scores(texts, self.mine)
        return ranks.interleaved(ranks.gathered(texts)), ranks.interleaved(ranks.gathered(scores))

    def _after_batch(self, count: int) -> None:
        if self.advance is not None:
            self.advance(count)
        if self.check is not None:
            self.check()

    def __call__(self, model: PreTrainedModel) -> list[float]:
        """ROUGE-L of this rank's dev examples, answered greedily."""
        return self.scores(self.write(model, None), self.mine)

    def scores(self, texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
        """ROUGE-L of each text."""
        tokenizer = self.config.rouge_tokenizer
        return [rouge_l(text, e.references, tokenizer) for text, e in zip(texts, examples, strict=True)]


@dataclass
class Evaluation:
    """What a model wrote on one set, greedily and over the sampling seeds.

    Attributes:
        summary: the figures of `metrics.json`: those of `measures` for the greedy answers, `examples`, under
            `sampled` the same for the sampled ones, and under `within` those of greedy answers to rows that are no
            longer than what training reads, where others are.
        predictions: one record per example and answer; the seed of greedy ones is None.
    """

    summary: dict[str, Any]
    predictions: list[dict[str, Any]]


def say_of_unseen_words(
    config: EvaluationConfig,
    rows: Mapping[str, Sequence[Row]],
    way: str = "set evaluation.rouge_tokenizer=unicode",
) -> None:
    """Say of how many rows ROUGE sees less than half of the words of any reference: what is written hardly counts.

    Args:
        rows: by split; those of `train` are not scored.
        way: to the other tokenizer.
    """
    unseen = {
        name: sum(not has_words(row.references, config.rouge_tokenizer) for row in split)
        for name, split in rows.items()
        if name != "train"
    }
    told = ", ".join(
        f"{count} of {plural(len(rows[name]), 'row')} of {name}" for name, count in unseen.items() if count
    )
    if told:
        published = config.rouge_tokenizer == "published"
        advice = f"; {way}, which knows every script" if published else ""
        say(
            f"ROUGE sees less than half of the words in the references of {told}: their figures say little{advice}"
        )


def evaluate(model: PreTrainedModel, predictor: Predictor) -> Evaluation:
    """Answer the predictor's examples greedily, and once per sampling seed, and measure the answers."""
    examples, config = predictor.examples, predictor.config
    greedy = predictor.write_all(model, None)
    sampled = {seed: predictor.write_all(model, seed) for seed in predictor.seeds}
    records = [
        {"seed": seed, "id": example.id, "prediction": text, "rouge_l": round(score, 4)}
        for seed, (texts, scores) in [(None, greedy), *sampled.items()]
        for text, example, score in zip(texts, examples, scores, strict=True)
    ]

    def summary() -> dict[str, Any]:
        found = {**measures([greedy], examples), "examples": len(examples)}
        inside = [row for row, example in enumerate(examples) if example.within]
        if 0 < len(inside) < len(examples):
            answers = [greedy[0][row] for row in inside], [greedy[1][row] for row in inside]
            within = measures([answers], [examples[row] for row in inside])
            names = ("rouge_l", "accuracy", "exact_match")
            found["within"] = {name: within[name] for name in names if name in within}
            found["within"]["examples"] = len(inside)
        if sampled:
            means = {seed: sum(scores) / len(scores) for seed, (_, scores) in sampled.items()}
            found["sampled"] = {
                **measures(list(sampled.values()), examples),
                "temperature": config.temperature,
                # one seed has no spread, and JSON no NaN
                "rouge_l_std": float(np.std(list(means.values()), ddof=1)) if len(means) > 1 else None,
                "rouge_l_by_seed": {str(seed): mean for seed, mean in means.items()},
            }
        return found

    return Evaluation(ranks.agreed(summary() if ranks.is_first() else {}), records)


Answers = tuple[Sequence[str], Sequence[float]]
"""An answer to every example, and its ROUGE-L."""


def measures(answers: Sequence[Answers], examples: Sequence[Example]) -> dict[str, Any]:
    """What is measured of answers, over all that an example has got.

    In per cent `rouge_l`, `accuracy` (of examples that can be checked) and `exact_match` (of those with one short
    reference, see `has_one_short`), the first two by kind of task too. `distinct_1` to `distinct_3`, `self_bleu`,
    and `mean_words`.
    """
    found: dict[str, dict[str, list[float]]] = {"rouge_l": {}, "accuracy": {}, "exact_match": {}}
    for texts, scores in answers:
        for text, example, score in zip(texts, examples, scores, strict=True):
            kind = example.category or ALL
            found["rouge_l"].setdefault(kind, []).append(score)
            if has_one_short(example.references):
                found["exact_match"].setdefault(kind, []).append(exact_match(text, example.references))
            if example.is_right is not None:
                found["accuracy"].setdefault(kind, []).append(100.0 * example.is_right(text))
    figures: dict[str, Any] = {}
    for name, by_kind in found.items():
        values = [value for each in by_kind.values() for value in each]
        if not values:
            continue
        figures[name] = sum(values) / len(values)
        if name != "exact_match":
            figures[f"{name}_by_category"] = {k: sum(each) / len(each) for k, each in sorted(by_kind.items())}
    words = [text.split() for texts, _ in answers for text in texts]
    figures |= {f"distinct_{n}": distinct_n(words, n) for n in (1, 2, 3)}
    if len(examples) > 1:
        # over one pass: several answers to one prompt resemble each other whatever the model is like
        figures["self_bleu"] = self_bleu(words[: len(examples)])
    return {**figures, "mean_words": sum(map(len, words)) / len(words)}


def evaluate_tests(
    config: ExperimentConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tests: Tests,
    vocab_size: int,
    ends: TextEnds,
    name: str,
    *,
    together: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, Evaluation]:
    """Every test set, written and measured.

    Args:
        tokenizer: the model's.
        name: of the model, for progress lines.
        together: see `Predictor`.
    """
    written: dict[str, Evaluation] = {}
    with placed(working_device(config.trainer.accelerator), model):
        for set_name, (_, examples) in tests.items():
            predictor = Predictor(
                tokenizer, examples, config.evaluation, vocab_size, ends.pad_id, ends.stop_ids, ends.lead
            )
            seeds = f", and with {plural(len(predictor.seeds), 'seed')}" if predictor.seeds else ""
            say(f"{name}: answers {plural(len(examples), 'row')} of {set_name} greedily{seeds}")
            times = len(predictor.mine) * predictor.times
            with progress(f"{name}, {set_name}", times, unit="responses") as advance:
                predictor.advance, predictor.together = advance, together
                written[set_name] = evaluate(model, predictor)
    return written
