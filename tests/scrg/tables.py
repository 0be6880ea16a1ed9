"""Next-token tables that `revise` is tried on."""

from __future__ import annotations

import numpy as np

from mgsr.scrg import revise
from tests.scrg.reference import FakeModel, Settings

EOS = 0


def table(seed: int, vocab: int = 7, sharpness: float = 1.5, width: int | None = None):
    """A random distribution for every pair of last tokens and every length modulo 3."""
    logits = np.random.default_rng(seed).normal(0, sharpness, (3, vocab, vocab, width or vocab))

    def next_logits(tokens: list[int]) -> np.ndarray:
        before = tokens[-2] if len(tokens) > 1 else 0
        return logits[len(tokens) % 3, before % vocab, tokens[-1] % vocab]

    return next_logits


def scripted(*peaks: int, prompt: int = 2, vocab: int = 7, height: float = 40.0):
    """Says peaks[i] at response position i, almost surely; the last one from there on."""

    def next_logits(tokens: list[int]) -> np.ndarray:
        logits = np.zeros(vocab)
        logits[peaks[min(len(tokens) - prompt, len(peaks) - 1)]] = height
        return logits

    return next_logits


def prompts(count: int, seed: int = 0) -> list[tuple[int, list[int]]]:
    rng = np.random.default_rng(seed)
    return [(int(10 * n + 3), rng.integers(1, 7, rng.integers(1, 5)).tolist()) for n in range(count)]


def run(student, teacher, given_prompts, s: Settings, **options):
    revised = revise(
        FakeModel(student, s) if callable(student) else student,
        FakeModel(teacher, s) if callable(teacher) else teacher,
        given_prompts,
        passes=s.passes,
        max_new_tokens=s.max_new_tokens,
        eos_token_id=s.eos,
        seed=s.seed,
        round=s.round,
        teacher_token=s.teacher_token,
        error_position=s.error_position,
        kl_threshold=s.kl_threshold,
        vocab_size=s.vocab_size,
        **options,
    )
    assert [sequence.example_id for sequence in revised] == [example for example, _ in given_prompts]
    return revised
