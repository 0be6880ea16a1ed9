"""One optimiser step on made-up responses and random logits: as a run computes its loss, and in numpy."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mgsr.config.schema import ExperimentConfig
from mgsr.data.collate import Batch, TrainingSequence, collate
from mgsr.losses import LossTerms, Objective
from mgsr.models.output_layer import OutputLayer
from mgsr.rounds.store import RoundEntry
from mgsr.scrg import Prompt, RevisedSequence
from mgsr.study.study import Study, load_study
from mgsr.training.build import build_clip, build_objective
from mgsr.training.datamodule import MicroBatch
from tests.losses import policy, reference
from tests.training.epochs import FakeWriter, data_module

ROOT = Path(__file__).parents[2]
CLASSES, EOS, PAD = 13, 2, 0
EXAMPLES = range(10)


def responses(seed: int) -> dict[int, tuple[int, ...]]:
    """Two to six tokens for every example; the first, 1, 3 or 4, says where they come from."""
    draw = random.Random(seed)
    return {i: (seed, *(draw.randrange(5, CLASSES) for _ in range(draw.randrange(5))), EOS) for i in EXAMPLES}


TEXTS = {"ground truth": responses(3), "written": responses(4), "teacher's half": responses(1)}
PROMPTS = {i: (5,) * (1 + i % 3) for i in EXAMPLES}


def spans(response: Sequence[int]) -> tuple[int, ...]:
    """None, then one of two tokens, then one of three."""
    return (-1, 0, 0, 1, 1, 1)[: len(response)]


def behaviour(response: Sequence[int]) -> tuple[float, ...]:
    """Log-probabilities that mixed text might have been drawn with."""
    return tuple(-1.5 - (5 * token + i) % 4 / 2 for i, token in enumerate(response))


# -- as a run does it ---------------------------------------------------------------------------------------


def committed(name: str) -> Study:
    """A study that is shipped, on the base configuration that it names, from whatever working folder."""
    study = load_study(ROOT / "experiments" / name / "study.yaml")
    return replace(study, base=str(ROOT / study.base))


def arm_config(study: str, arm: str, *overrides: str) -> ExperimentConfig:
    """The arm's configuration, its training cut to one step of all examples."""
    size = len(EXAMPLES)
    step = ("train.max_steps=1", f"train.batch_size={size}", f"train.micro_batch_size={size}")
    return committed(study).config(arm, 0, [*step, *overrides])


class Answers(FakeWriter):
    """`paired`: every second prompt has an answer of the teacher's."""

    def __init__(self, paired: bool) -> None:
        self.paired = paired

    def entries(self, prompts: Sequence[Prompt], round_: int) -> list[RoundEntry]:
        made = []
        for example, prompt in prompts:
            taught = self.paired and example % 2 == 0
            text = TEXTS["teacher's half" if taught else "written"][example]
            revised = RevisedSequence(example, tuple(prompt), text, text, (), "not_searched", 0, 0)
            log_probs = behaviour(text)
            made.append(RoundEntry(revised, spans(text), behaviour_log_probs=log_probs, by_teacher=taught))
        return made


def only_step(config: ExperimentConfig, folder: Path) -> MicroBatch:
    """What the run would train on; `Answers` stand for whoever writes its text."""
    truth = [TrainingSequence(i, PROMPTS[i], text, spans(text), True) for i, text in TEXTS["ground truth"].items()]
    data = data_module(config, truth, folder)
    if data.rounds is not None:
        data.rounds.writer = Answers(paired=config.scrg.text == "paired")
    (step,) = data.plan_epoch(0)
    return step


class Logits:
    """Random last hidden states and output layer of a model, and the logits that they make.

    The states are small, so that a bound on cumulative mass may fall on any of several classes.
    """

    def __init__(self, seed: int, width: int, batch: Batch) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (*batch.input_ids.shape, width)
        self.states_BTH = 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64)
        self.head = OutputLayer(torch.randn(CLASSES, width, generator=generator, dtype=torch.float64))
        self.values = self.states_BTH.numpy() @ self.head.weight.numpy().T


@dataclass(frozen=True)
class Problem:
    """A step with the logits of both models, `[B, T, V]`; those at t are of the token at t + 1."""

    step: MicroBatch
    batch: Batch
    student: Logits
    teacher: Logits


def problem(config: ExperimentConfig, folder: Path) -> Problem:
    step = only_step(config, folder)
    batch = collate(step.rows, step.counts, PAD)
    return Problem(step, batch, Logits(0, 5, batch), Logits(1, 4, batch))


def built(config: ExperimentConfig) -> Objective:
    return build_objective(config, build_clip(config, CLASSES, None))


def product_loss(objective: Objective, given: Problem) -> LossTerms:
    student, teacher = given.student, given.teacher
    taught = (teacher.states_BTH, teacher.head) if objective.needs_teacher else (None, None)
    return objective(given.batch.targets, student.states_BTH, student.head, *taught)


# -- by the definitions -------------------------------------------------------------------------------------

Probabilities = np.ndarray
Divergence = Callable[[Probabilities, Probabilities], float]


def expected_terms(
    given: Problem, divergence: Divergence, written: Divergence, cross_entropy_on: str, temperature: float = 1.0
) -> tuple[float, float, float]:
    """Means over the step of cross-entropy, of the divergence of (p, q), and of span correlation.

    The divergence is `written` on written text, but for the teacher's half of it.
    """
    own, divergences, pairs = [], [], []
    for b, row in enumerate(given.step.rows):
        places = _places(row)
        if row.response_ids == TEXTS[cross_entropy_on][row.example_id]:
            # always at temperature 1
            q = reference.softmax(given.student.values[b, places])
            own += [-np.log(q[i, token]) for i, token in enumerate(row.response_ids)]
        p, q = (reference.softmax(z.values[b, places], temperature) for z in (given.teacher, given.student))
        of = written if row.response_ids == TEXTS["written"][row.example_id] else divergence
        divergences += [of(*both) for both in zip(p, q, strict=True)]
        ids = spans(row.response_ids)
        pairs += [
            reference.pair_loss(p[i : i + 2], q[i : i + 2], "l2_squared", "hadamard")
            for i in range(len(ids) - 1)
            if ids[i] == ids[i + 1] and ids[i] >= 0
        ]
    return _mean(own), _mean(divergences), _mean(pairs)


def expected_minillm(given: Problem) -> tuple[float, float]:
    """Cross-entropy on ground truth, and the policy objective on written text, ratios clipped at 0.2."""
    shape = given.student.values.shape[:2]
    labels, log_probs = np.full(shape, policy.IGNORED), np.zeros(shape)
    rows = given.step.rows
    truth = [row.response_ids == TEXTS["ground truth"][row.example_id] for row in rows]
    for b, row in enumerate(rows):
        labels[b, _places(row)] = row.response_ids
        log_probs[b, _places(row)] = behaviour(row.response_ids)
    case = {
        "student_logits": given.student.values,
        "teacher_logits": given.teacher.values,
        "labels": labels,
        "behaviour": log_probs,
        "truth": truth,
    }
    counts = [sum(len(row.response_ids) for row, own in zip(rows, truth, strict=True) if own == k) for k in (1, 0)]
    _, sft, of_policy, _ = policy.reference(case, clip=0.2, counts=(counts[0], counts[1]))
    return sft, of_policy


def _places(row: TrainingSequence) -> range:
    """Where the states are that predict the response."""
    return range(len(row.prompt_ids) - 1, len(row) - 1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
