"""Exposure bias of a student (ExAccErr), and its text as the teacher sees it (perplexity).

Shapes: E examples, L positions of the longest response; `..._EL` is padded to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mgsr.config.schema import EvaluationConfig, ExperimentConfig
from mgsr.data.prompts import Example
from mgsr.generation import LanguageModel
from mgsr.models.stop_ids import TextEnds
from mgsr.runtime import ranks
from mgsr.runtime.devices import placed, working_device
from mgsr.runtime.progress import progress, say
from mgsr.runtime.rng import Stream
from mgsr.runtime.wording import plural
from mgsr.scrg import Prompt
from mgsr.scrg.search import compare

Scored = tuple[Tensor, Tensor]
"""Of one text, `[T]` each: KL(p || q), and the teacher's log-probability of the token, at every position."""


def ex_acc_err(student_prefix_kl_EL: ArrayLike, teacher_prefix_kl_EL: ArrayLike) -> NDArray[np.float64]:
    """Excess accumulated error in per cent for every length l = 1 .. L (Arora et al. 2022).

        ExAccErr(l) = 100 (R(l) - l e(l)) / (l e(l))

    R(l): sum over t <= l of KL(p_t || q_t) on prefixes that the student wrote; e(l): the mean over t <= l of
    the same on prefixes that the teacher wrote. Both are averaged over their examples before the ratio;
    positions after EOS contribute 0. At 0 the student's own prefixes cost nothing extra.

    Args:
        student_prefix_kl_EL, teacher_prefix_kl_EL: in nats, 0 after EOS. Their examples may differ in number; the
            shorter L is padded with zeros.

    Returns:
        `[L]`; nan where l e(l) is 0.

    Raises:
        ValueError: not two-dimensional, or no example.

    >>> ex_acc_err([[1.0, 3.0]], [[1.0, 1.0]])
    array([  0., 100.])
    """
    student_L, teacher_L = map(_mean_accumulated, (student_prefix_kl_EL, teacher_prefix_kl_EL))
    longest = max(len(student_L), len(teacher_L))
    student_L, teacher_L = (np.pad(x, (0, longest - len(x)), mode="edge") for x in (student_L, teacher_L))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(teacher_L > 0, 100.0 * (student_L - teacher_L) / teacher_L, np.nan)


def _mean_accumulated(kl_EL: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(kl_EL, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"expected an array [examples, L] that is not empty, got shape {values.shape}")
    return values.mean(axis=0).cumsum()


def perplexity(log_likelihoods: ArrayLike, token_counts: ArrayLike) -> float:
    """exp(- sum of log-likelihoods / tokens), over all examples together; nan without tokens.

    Args:
        log_likelihoods: `[E]`, in nats, the sum over each example's tokens.
        token_counts: `[E]`.

    Raises:
        ValueError: the shapes differ.

    >>> perplexity([math.log(0.5), 3 * math.log(0.5)], [1, 3])
    2.0
    """
    likelihoods, counts = np.asarray(log_likelihoods, dtype=np.float64), np.asarray(token_counts)
    if likelihoods.shape != counts.shape:
        raise ValueError(f"log_likelihoods and token_counts differ: {likelihoods.shape} and {counts.shape}")
    tokens = counts.sum()
    return float(np.exp(-likelihoods.sum() / tokens)) if tokens else math.nan


def exposure(
    student: Any,
    teacher: Any,
    prompts: Sequence[Prompt],
    *,
    seed: int,
    eos_token_id: int | Sequence[int],
    pad_token_id: int,
    max_new_tokens: int,
    batch_size: int,
    vocab_size: int,
    advance: Callable[[int], None] = lambda count: None,
    together: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, Any]:
    """Let both models answer the prompts, score all answers with both, and compare.

    Of several ranks each does this with its share of the prompts, and all get the figures of the whole.

    Args:
        student, teacher: causal language models over the same ids.
        prompts: (example id, token ids) pairs.
        seed: of the draws; both models sample at temperature 1.
        vocab_size: token ids that both models share.
        advance: called with the number of prompts that one of the models has answered.
        together: within it each rank calls a teacher that is in parts on all of them at its own pace.

    Returns:
        `ex_acc_err`: per cent at every length, `[L]` (see `ex_acc_err`); `ex_acc_err_at_end`: its last
        value; `kl_student_prefix`, `kl_teacher_prefix`: mean KL(p || q) per token in nats on either text;
        `teacher_perplexity`: of the student's text under the teacher.

    Raises:
        ValueError: no prompts.
    """
    if not prompts:
        raise ValueError("exposure needs at least one prompt, got none")

    def language_model(model: Any, stream: Stream) -> LanguageModel:
        return LanguageModel(
            model,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            vocab_size=vocab_size,
            stream=stream,
            progress=advance,
            memory_key="evaluation.batch_size",
        )

    # two streams: the models' draws share no key
    models = language_model(student, Stream.EVALUATION), language_model(teacher, Stream.TEACHER)
    mine = prompts[ranks.rank() :: ranks.world_size()]
    scored: list[list[Scored]] = []
    with together():
        for writer in models:
            responses = writer.write(mine, seed=seed, round=0)
            writer.release()
            scored.append(_scored(models[1], models[0], mine, responses, batch_size, vocab_size))
    kl: list[Tensor] = []
    figures: dict[str, Any] = {}
    for part, name in zip(scored, ("student", "teacher"), strict=True):
        # in the order of the prompts: sums are those of one rank
        kls, log_probs = zip(*ranks.interleaved(ranks.gathered(part)), strict=True)
        kl.append(torch.nn.utils.rnn.pad_sequence(list(kls), batch_first=True))
        figures[f"kl_{name}_prefix"] = float(torch.cat(kls).mean())
        if name == "student":
            likelihood = torch.cat(log_probs).double()
            figures["teacher_perplexity"] = perplexity([float(likelihood.sum())], [len(likelihood)])
    errors = [float(error) for error in ex_acc_err(kl[0].double().numpy(), kl[1].double().numpy())]
    # JSON has no nan
    figures["ex_acc_err"] = [None if math.isnan(error) else error for error in errors]
    figures["ex_acc_err_at_end"] = figures["ex_acc_err"][-1]
    return figures


def _scored(
    teacher: LanguageModel,
    student: LanguageModel,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[int]],
    chunk: int,
    vocab_size: int,
) -> list[Scored]:
    """Teacher and student at every position of every text, a chunk of texts of about one length at a time."""
    length = [len(prompt_ids) + len(text) for (_, prompt_ids), text in zip(prompts, responses, strict=True)]
    order = sorted(range(len(prompts)), key=length.__getitem__)
    found: dict[int, Scored] = {}
    for start in range(0, len(order), chunk):
        rows = order[start : start + chunk]
        some, texts = [prompts[row] for row in rows], [responses[row] for row in rows]
        tokens = torch.tensor([token for text in texts for token in text])
        scores = teacher.score(some, texts), student.score(some, texts)
        compared = compare(*scores, tokens, None, tile_size=256, vocab_size=vocab_size)
        # clones: a part of a larger tensor would be sent to other ranks as a whole
        columns = (compared.kl, compared.teacher_log_prob_student_token)
        parts = zip(*(column.split([len(text) for text in texts]) for column in columns), strict=True)
        found.update(
            {row: (kl.clone(), log_prob.clone()) for row, (kl, log_prob) in zip(rows, parts, strict=True)}
        )
    return [found[row] for row in range(len(prompts))]


def exposure_seed(config: EvaluationConfig) -> int:
    """The seed of both models' text: the first sampling seed, or 0 where there is none."""
    return config.seeds[0] if config.seeds else 0


def exposure_bias(
    config: ExperimentConfig,
    student: Any,
    teacher: Any,
    ends: TextEnds,
    examples: Sequence[Example],
    vocab_size: int,
    *,
    together: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, Any]:
    """`exposure` on a test set, or its first rows."""
    examples = examples[: config.evaluation.exposure_rows or None]
    say(f"{config.arm}: exposure bias on {plural(len(examples), 'prompt')}")
    device = working_device(config.trainer.accelerator)
    name, total = f"{config.arm}, exposure", 2 * len(examples[ranks.rank() :: ranks.world_size()])
    with placed(device, student), placed(device, teacher), progress(name, total, unit="responses") as advance:
        return exposure(
            student,
            teacher,
            [(example.id, example.prompt_ids) for example in examples],
            seed=exposure_seed(config.evaluation),
            eos_token_id=ends.stop_ids,
            pad_token_id=ends.pad_id,
            max_new_tokens=config.evaluation.max_new_tokens,
            batch_size=config.evaluation.batch_size,
            vocab_size=vocab_size,
            advance=advance,
            together=together,
        )
