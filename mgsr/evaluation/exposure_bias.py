"""Exposure bias of a student, and its text as the teacher sees it.

Shapes: E examples, L positions of the longest response.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mgsr.evaluation.token_scores import ex_acc_err, perplexity
from mgsr.generation import LanguageModel
from mgsr.runtime.rng import Stream
from mgsr.scrg import Prompt
from mgsr.scrg.compare import Comparison, compare


def exposure(
    student: Any,
    teacher: Any,
    prompts: Sequence[Prompt],
    *,
    seed: int,
    eos_token_id: int,
    pad_token_id: int,
    max_new_tokens: int,
    batch_size: int,
    vocab_size: int,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Let both models answer the prompts, score all answers with both, and compare.

    Args:
        student, teacher: causal language models over the same ids.
        prompts: (example id, token ids) pairs.
        seed: of the draws; both models sample at temperature 1.
        vocab_size: token ids that both models share.
        advance: called with the number of prompts that one of the models has answered.

    Returns:
        `ex_acc_err`: per cent at every length, `[L]` (see `statistics.ex_acc_err`); `ex_acc_err_at_end`: its last
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
    kl: list[Tensor] = []
    figures: dict[str, Any] = {}
    for writer, name in zip(models, ("student", "teacher"), strict=True):
        responses = writer.write(prompts, seed=seed, round=0)
        writer.release()
        compared = _compare(models[1], models[0], prompts, responses, batch_size, vocab_size)
        lengths = [len(response) for response in responses]
        kl.append(torch.nn.utils.rnn.pad_sequence(compared.kl.split(lengths), batch_first=True))
        figures[f"kl_{name}_prefix"] = float(compared.kl.mean())
        if name == "student":
            likelihood = float(compared.teacher_log_prob_student_token.double().sum())
            figures["teacher_perplexity"] = perplexity([likelihood], [sum(lengths)])
    errors = [float(error) for error in ex_acc_err(kl[0].double().numpy(), kl[1].double().numpy())]
    # JSON has no nan
    figures["ex_acc_err"] = [None if math.isnan(error) else error for error in errors]
    figures["ex_acc_err_at_end"] = figures["ex_acc_err"][-1]
    return figures


def _compare(
    teacher: LanguageModel,
    student: LanguageModel,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[int]],
    chunk: int,
    vocab_size: int,
) -> Comparison:
    """Teacher and student at every position, a chunk of texts at a time: hidden states are large."""
    parts = []
    for start in range(0, len(prompts), chunk):
        some, texts = prompts[start : start + chunk], responses[start : start + chunk]
        tokens = torch.tensor([token for text in texts for token in text])
        scores = teacher.score(some, texts), student.score(some, texts)
        parts.append(compare(*scores, tokens, None, tile_size=256, vocab_size=vocab_size))
    return Comparison(*(torch.cat(column) for column in zip(*parts, strict=True)))
