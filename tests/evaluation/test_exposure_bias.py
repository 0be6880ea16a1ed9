"""Exposure bias against a slow version that reads one prefix at a time."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from mgsr.config.schema import ExperimentConfig
from mgsr.data.prompts import Example
from mgsr.evaluation import exposure_bias as module
from mgsr.evaluation.exposure_bias import exposure
from mgsr.generation import LanguageModel
from mgsr.models.stop_ids import TextEnds
from mgsr.runtime import ranks
from mgsr.runtime.rng import Stream
from tests.scrg.tiny import BUDGET, EOS, tiny

PROMPTS = [(7, (3, 4, 5)), (8, (6,)), (9, (4, 9, 3, 5, 8))]


def measure(student: Any, teacher: Any, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"prompts": PROMPTS, "seed": 5, "max_new_tokens": BUDGET, "batch_size": 2, **changes}
    return exposure(student, teacher, eos_token_id=EOS, pad_token_id=EOS, vocab_size=11, **options)


def slow(student: Any, teacher: Any) -> dict[str, Any]:
    """KL and the teacher's log-probability of every written token, one forward per token."""
    totals: dict[str, list[list[float]]] = {"student": [], "teacher": []}
    logs: list[float] = []
    for name, model, stream in (("student", student, Stream.EVALUATION), ("teacher", teacher, Stream.TEACHER)):
        writer = LanguageModel(
            model, eos_token_id=EOS, max_new_tokens=BUDGET, batch_size=1, vocab_size=11, stream=stream
        )
        for (_, prompt), text in zip(PROMPTS, writer.write(PROMPTS, seed=5, round=0), strict=True):
            row = []
            for end in range(len(text)):
                ids = torch.tensor([[*prompt, *text[:end]]])
                with torch.no_grad():
                    p, q = (m(input_ids=ids).logits[0, -1].softmax(-1).numpy() for m in (teacher, student))
                row.append(float((p * np.log(p / q)).sum()))
                if name == "student":
                    logs.append(math.log(p[text[end]]))
            totals[name].append(row)
    means = {
        name: [sum(row[t] for row in rows if t < len(row)) / len(rows) for t in range(BUDGET)]
        for name, rows in totals.items()
    }
    written = max(len(row) for rows in totals.values() for row in rows)
    errors = [100 * (sum(means["student"][:n]) / sum(means["teacher"][:n]) - 1) for n in range(1, written + 1)]
    flat = {name: [kl for row in rows for kl in row] for name, rows in totals.items()}
    return {
        "ex_acc_err": errors,
        "kl_student_prefix": np.mean(flat["student"]),
        "kl_teacher_prefix": np.mean(flat["teacher"]),
        "teacher_perplexity": math.exp(-np.mean(logs)),
    }


def test_equals_one_forward_per_token() -> None:
    student, teacher = tiny("llama", 0).eval(), tiny("llama", 1).eval()
    got, expected = measure(student, teacher), slow(student, teacher)
    assert got["ex_acc_err"] == pytest.approx(expected["ex_acc_err"], rel=1e-9)
    assert got["ex_acc_err_at_end"] == got["ex_acc_err"][-1]
    for name in ("kl_student_prefix", "kl_teacher_prefix", "teacher_perplexity"):
        assert got[name] == pytest.approx(expected[name], rel=1e-9)


def test_does_not_depend_on_the_batch() -> None:
    student, teacher = tiny("gpt2", 0).eval(), tiny("gpt2", 1).eval()
    one, three = measure(student, teacher, batch_size=1), measure(student, teacher, batch_size=3)
    assert one["ex_acc_err"] == pytest.approx(three["ex_acc_err"], rel=1e-9)


def test_two_equal_models_have_no_error_to_speak_of() -> None:
    model = tiny("llama", 0).eval()
    got = measure(model, model)
    assert got["kl_student_prefix"] == got["kl_teacher_prefix"] == 0.0
    assert got["ex_acc_err_at_end"] is None


@pytest.mark.parametrize(("limit", "seen"), [(0, [7, 8, 9]), (2, [7, 8]), (5, [7, 8, 9])])
def test_a_limit_takes_the_first_prompts(limit: int, seen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(module, "exposure", lambda *args, **_: asked.extend(id for id, _ in args[2]))
    config = ExperimentConfig()
    config.evaluation.exposure_rows = limit
    examples = [Example(id=id, prompt_ids=ids, response_ids=(EOS,), references=("x",)) for id, ids in PROMPTS]
    models = tiny("llama"), tiny("llama", 1)
    module.exposure_bias(config, *models, TextEnds((EOS,), EOS), examples, 11)
    assert asked == seen


def test_no_prompts_are_refused() -> None:
    model = tiny("llama", 0).eval()
    with pytest.raises(ValueError, match="at least one prompt"):
        measure(model, model, prompts=())


class Together(threading.local):
    """Ranks as threads of this process: what `mgsr.runtime.ranks` tells each of them."""

    number = 0

    def __init__(self, world: int) -> None:
        self.world = world

    def measure(self, monkeypatch: pytest.MonkeyPatch, *models: Any, **changes: Any) -> list[dict[str, Any]]:
        """The figures of every rank."""
        box, meet = [None] * self.world, threading.Barrier(self.world, timeout=60)

        def gathered(value: Any) -> list[Any]:
            box[self.number] = value
            meet.wait()
            values = list(box)
            meet.wait()
            return values

        def one(number: int) -> dict[str, Any]:
            self.number = number
            return measure(*models, **changes)

        for name, function in (
            ("rank", lambda: self.number),
            ("world_size", lambda: self.world),
            ("gathered", gathered),
        ):
            monkeypatch.setattr(ranks, name, function)
        with ThreadPoolExecutor(self.world) as pool:
            return list(pool.map(one, range(self.world)))


@pytest.mark.parametrize("world", [2, 5])
def test_ranks_share_the_prompts_and_find_what_one_does(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three prompts: of five ranks two have none."""
    student, teacher = tiny("llama", 0).eval(), tiny("llama", 1).eval()
    alone = measure(student, teacher)
    answered: list[int] = []
    found = Together(world).measure(monkeypatch, student, teacher, advance=answered.append)
    # each prompt by each model, once
    assert sum(answered) == 2 * len(PROMPTS)
    for figures in found:
        assert figures.keys() == alone.keys()
        for name, value in alone.items():
            assert figures[name] == pytest.approx(value, rel=1e-12), name


def test_sums_are_taken_in_the_order_of_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text by text, nothing is rounded otherwise: to the last digit."""
    student, teacher = tiny("llama", 0).eval(), tiny("llama", 1).eval()
    changes = {"prompts": [(i, (3,) * (1 + i * 7 % 11)) for i in range(11)], "batch_size": 1}
    padding, met = torch.nn.utils.rnn.pad_sequence, []

    def pad(texts: list[torch.Tensor], **options: Any) -> torch.Tensor:
        met.append([text.tolist() for text in texts])
        return padding(texts, **options)

    monkeypatch.setattr(torch.nn.utils.rnn, "pad_sequence", pad)
    alone, order = measure(student, teacher, **changes), met.copy()
    assert Together(3).measure(monkeypatch, student, teacher, **changes) == [alone] * 3
    assert len(met) == 8 and all(texts in order for texts in met)


def test_texts_of_about_one_length_are_scored_together(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = tiny("llama", 0).eval(), tiny("llama", 1).eval()
    scored: list[list[int]] = []
    scoring = LanguageModel.score

    def score(self: LanguageModel, prompts: Any, responses: Any) -> Any:
        scored.append([len(p) + len(r) for (_, p), r in zip(prompts, responses, strict=True)])
        return scoring(self, prompts, responses)

    monkeypatch.setattr(LanguageModel, "score", score)
    measure(student, teacher, prompts=[(i, (3,) * (1 + i * 7 % 11)) for i in range(10)])
    # both models read the student's text, then the teacher's
    for texts in (scored[:10:2], scored[10::2]):
        lengths = [length for batch in texts for length in batch]
        assert len(lengths) == 10 and lengths == sorted(lengths)


def test_what_a_rank_works_within_is_closed_before_ranks_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sharded teacher's forwards and the gathering are both calls of all ranks, which must not mix."""
    student, teacher = tiny("llama", 0).eval(), tiny("llama", 1).eval()
    told: list[str] = []

    @contextmanager
    def together() -> Iterator[None]:
        told.append("begins")
        yield
        told.append("ends")

    monkeypatch.setattr(ranks, "gathered", lambda value: (told.append("meets"), [value])[1])
    measure(student, teacher, together=together)
    assert told == ["begins", "ends", "meets", "meets"]
