"""SeqKD (Kim and Rush 2016): text that the teacher has written carries cross-entropy; the student's never does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mgsr.config.schema import ExperimentConfig
from mgsr.data.collate import StepCounts, TrainingSequence, collate
from mgsr.losses import LossTerms
from mgsr.models.output_layer import OutputLayer
from mgsr.rounds.store import RoundEntry
from mgsr.scrg import Prompt, RevisedSequence
from mgsr.study.study import load_study
from mgsr.training.build import build_clip, build_objective
from tests.training.epochs import FakeWriter, data_module, made_up_rows

STUDIES = Path(__file__).parents[2] / "experiments"
PAD = 0
# after token 0 or 1 the student gives the four tokens 1/2, 1/4, 1/8, 1/8; after token 2 or 3 a quarter each
SHARES = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25]])
HEAD = OutputLayer(SHARES.log2().T * math.log(2))
# written text, and -log2 of its tokens: they follow the prompt's token 1
TEXTS = {1000: ((0, 1, 2), (1, 2, 3)), 1001: ((3,), (3,)), 1002: ((2, 0, 0, 0), (3, 2, 1, 1))}
BITS = sum(sum(bits) for _, bits in TEXTS.values())
TOKENS = sum(len(text) for text, _ in TEXTS.values())


class Answers(FakeWriter):
    def entries(self, prompts: Sequence[Prompt], round_: int) -> list[RoundEntry]:
        made = []
        for example, prompt in prompts:
            text, _ = TEXTS[example]
            revised = RevisedSequence(example, tuple(prompt), text, text, (), "not_searched", 0, 0)
            made.append(RoundEntry(revised, (-1,) * len(text)))
        return made


def arm(study: str, name: str, base: Path) -> ExperimentConfig:
    overrides = ["train.batch_size=3", "train.epochs=1", "mixture.student_fraction=1.0"]
    return load_study(STUDIES / study / "study.yaml", base=str(base)).config(name, 0, overrides)


def step_of(config: ExperimentConfig, folder: Path) -> tuple[list[TrainingSequence], StepCounts]:
    """The one step of an epoch of three prompts, all answered by `Answers`."""
    truth = [
        TrainingSequence(row.example_id, (1,), row.response_ids, row.span_ids, True) for row in made_up_rows(3)
    ]
    data = data_module(config, truth, folder)
    assert data.rounds is not None
    data.rounds.writer = Answers()
    (item,) = data.plan_epoch(0)
    assert {(row.example_id, row.response_ids) for row in item.rows} == {(k, v[0]) for k, v in TEXTS.items()}
    return list(item.rows), item.counts


def losses(config: ExperimentConfig, rows: list[TrainingSequence], counts: StepCounts) -> LossTerms:
    batch = collate(rows, counts, PAD)
    hidden_BTH = torch.nn.functional.one_hot(batch.input_ids // 2, 2).float()
    objective = build_objective(config, build_clip(config, 4, None))
    teacher = (hidden_BTH, HEAD) if objective.needs_teacher else (None, None)
    return objective(batch.targets, hidden_BTH, HEAD, *teacher)


def test_teacher_text_carries_cross_entropy(tiny_file: Path, tmp_path: Path) -> None:
    config = arm("baselines", "seqkd", tiny_file)
    rows, counts = step_of(config, tmp_path)
    assert (BITS, TOKENS) == (16, 8) and counts.ground_truth_tokens == counts.response_tokens == TOKENS
    terms = losses(config, rows, counts)
    # 16 bits over 8 tokens
    assert float(terms.sft) == pytest.approx(2 * math.log(2), rel=1e-6)
    assert float(terms.total) == pytest.approx(2 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("name", ["uncorrected", "teacher_text", "full"])
def test_other_written_text_carries_none(name: str, tiny_file: Path, tmp_path: Path) -> None:
    config = arm("scrg", name, tiny_file)
    assert config.objective.w_sft > 0
    rows, counts = step_of(config, tmp_path)
    assert counts.ground_truth_tokens == 0 and counts.response_tokens == TOKENS
    assert float(losses(config, rows, counts).sft) == 0.0


def test_beside_student_text_only_ground_truth_is_averaged(tiny_file: Path, tmp_path: Path) -> None:
    config = arm("scrg", "uncorrected", tiny_file)
    rows, _ = step_of(config, tmp_path)
    truth = TrainingSequence(7, (1,), (0, 3, 1), (-1,) * 3, True)
    rows.append(truth)
    # 1, 3 and 2 bits
    assert float(losses(config, rows, StepCounts.of(rows)).sft) == pytest.approx(2 * math.log(2), rel=1e-6)
