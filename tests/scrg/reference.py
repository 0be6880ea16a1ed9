"""Slow and obvious: one sequence at a time, a fresh forward for every token, plain loops.

Shares nothing with the package but the keyed uniforms (tested on their own) and the record types.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mgsr.runtime.rng import Stream, uniform

NextLogits = Callable[[list[int]], np.ndarray]  # all tokens so far -> logits [V]


def probabilities(logits: np.ndarray) -> list[float]:
    weights = [math.exp(x - max(logits)) for x in logits]
    return [w / sum(weights) for w in weights]


def draw(logits: np.ndarray, u: float) -> int:
    """The smallest index whose cumulative mass exceeds u."""
    total, last = 0.0, -1
    for token, p in enumerate(probabilities(logits)):
        total += p
        if p > 0:
            last = token
            if total > u:
                return token
    return last


def kl(teacher: np.ndarray, student: np.ndarray) -> float:
    pairs = zip(probabilities(teacher), probabilities(student), strict=True)
    return sum(p * (math.log(p) - math.log(q)) if q > 0 else math.inf for p, q in pairs if p > 0)


@dataclass
class Settings:
    max_new_tokens: int
    eos: int
    seed: int
    round: int = 0
    passes: int = 1
    teacher_token: str = "sample"
    error_position: str = "max_kl"
    kl_threshold: float = 1.0
    vocab_size: int | None = None


def write(model: NextLogits, prompt: Sequence[int], prefix: Sequence[int], example: int, pass_: int, s: Settings):
    """The prefix and what the model samples after it."""
    response = list(prefix)
    while len(response) < s.max_new_tokens and (not response or response[-1] != s.eos):
        u = float(uniform(s.seed, Stream.ROLLOUT, s.round, example, pass_, len(response)))
        response.append(draw(model([*prompt, *response])[: s.vocab_size], u))
    return response


def revise(student: NextLogits, teacher: NextLogits, example: int, prompt: Sequence[int], s: Settings) -> dict:
    """One sequence through all passes: its texts, its corrections as dictionaries, its status."""
    response = write(student, prompt, [], example, 0, s)
    out = {"rollout": response, "corrections": [], "status": "not_searched", "disagreements": 0, "positions": 0}
    after, finished = -1, False
    for pass_ in range(1, s.passes + 1):
        if finished:
            break
        best, found, searched, log_likelihood = None, [], 0, 0.0
        for i, token in enumerate(response):
            p = teacher([*prompt, *response[:i]])[: s.vocab_size]
            q = student([*prompt, *response[:i]])[: s.vocab_size]
            log_likelihood += math.log(probabilities(p)[token])
            if i <= after:
                continue
            searched += 1
            if s.teacher_token == "argmax":
                proposed = int(np.argmax(p))
            else:
                proposed = draw(p, float(uniform(s.seed, Stream.TEACHER, s.round, example, pass_, i)))
            if proposed != token:
                found.append((i, proposed, kl(p, q), probabilities(p), probabilities(q)))
        if s.error_position == "max_kl":
            for candidate in found:
                if best is None or candidate[2] > best[2]:
                    best = candidate
        elif s.error_position == "first_disagreement":
            best = found[0] if found else None
        elif s.error_position == "threshold":
            best = next((candidate for candidate in found if candidate[2] > s.kl_threshold), None)
        elif found:
            u = float(uniform(s.seed, Stream.POSITION, s.round, example, pass_, 0))
            best = found[int(u * len(found))]
        if pass_ == 1:
            out["disagreements"], out["positions"] = len(found), searched
            out["status"] = "corrected" if best else ("below_threshold" if found else "no_disagreement")
        if best is None:
            break
        j, proposed, divergence, p, q = best
        before = response
        response = [*response[:j], proposed]
        finished = proposed == s.eos or len(response) == s.max_new_tokens
        if not finished:
            response = write(student, prompt, response, example, pass_, s)
        out["corrections"].append(
            {
                "pass_": pass_,
                "position": j,
                "student_token": before[j],
                "teacher_token": proposed,
                "kl": divergence,
                "teacher_prob_student_token": p[before[j]],
                "teacher_prob_teacher_token": p[proposed],
                "student_prob_student_token": q[before[j]],
                "student_prob_teacher_token": q[proposed],
                "length_before": len(before),
                "length_after": len(response),
                "teacher_log_likelihood_before": log_likelihood / len(before),
                "disagreements": len(found),
                "positions": searched,
            }
        )
        after = j
    return {**out, "response": response}


def assert_same(revised, expected: dict) -> None:
    """A `RevisedSequence` against the dictionary of `revise`: integers exactly, reals to 1e-9."""
    assert list(revised.rollout_ids) == expected["rollout"]
    assert list(revised.response_ids) == expected["response"]
    assert revised.status == expected["status"]
    assert (revised.disagreements, revised.positions) == (expected["disagreements"], expected["positions"])
    assert len(revised.corrections) == len(expected["corrections"])
    for ours, theirs in zip(revised.corrections, expected["corrections"], strict=True):
        for name, value in theirs.items():
            got = getattr(ours, name)
            if isinstance(value, int):
                assert got == value and type(got) is int, (name, got, value)
            else:
                assert math.isclose(got, value, rel_tol=1e-9, abs_tol=1e-9), (name, got, value)


@dataclass
class FakeModel:
    """Both protocols over a next-token function, one sequence at a time; counts what it is asked."""

    next_logits: NextLogits
    settings: Settings
    scored: list[list[int]] = field(default_factory=list)
    continued: list[list[int]] = field(default_factory=list)
    released: int = 0
    largest_tile: int = 0

    def write(self, prompts, *, seed, round):
        s = Settings(**{**vars(self.settings), "seed": seed, "round": round})
        return [write(self.next_logits, ids, [], example, 0, s) for example, ids in prompts]

    def continue_from(self, prefixes, *, seed, round, pass_):
        s = Settings(**{**vars(self.settings), "seed": seed, "round": round})
        self.continued.append([prefix.example_id for prefix in prefixes])
        return [
            write(self.next_logits, prefix.prompt_ids, prefix.response_ids, prefix.example_id, pass_, s)
            for prefix in prefixes
        ]

    def release(self):
        self.released += 1

    def score(self, prompts, responses):
        self.scored.append([example for example, _ in prompts])
        rows = [
            self.next_logits([*prompt, *response[:i]])
            for (_, prompt), response in zip(prompts, responses, strict=True)
            for i in range(len(response))
        ]
        return _Rows(self, torch.from_numpy(np.stack(rows)))


@dataclass
class _Rows:
    model: FakeModel
    logits: torch.Tensor

    def __len__(self):
        return len(self.logits)

    def __getitem__(self, rows):
        self.model.largest_tile = max(self.model.largest_tile, len(self.logits[rows]))
        return self.logits[rows]
