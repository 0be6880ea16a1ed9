"""Training from cached teacher distributions: no forward on ground truth, and the same student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mgsr.training.placement
from mgsr.config.schema import ExperimentConfig
from mgsr.data.collate import StepCounts, TeacherTop, TrainingSequence, collate
from mgsr.runtime.errors import ConfigError, DataError
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train
from tests.reading import weights

Make = Callable[..., ExperimentConfig]


class Reads:
    """Counts sequences that models of width 16, which the teacher alone has, read in training steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sequences = 0
        original = mgsr.training.placement.last_hidden

        def counted(model: Any, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
            self.sequences += ids.shape[0] * (model.config.hidden_size == 16)
            return original(model, ids, *rest)

        monkeypatch.setattr(mgsr.training.placement, "last_hidden", counted)


def test_whole_distributions_cached_train_the_same_student(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the teacher's own fine-tuning is not to be counted
    train(make_config("arm=first", "train.epochs=1"))
    reads = Reads(monkeypatch)
    plain = make_config("arm=plain", "train.epochs=2")
    train(plain)
    every = reads.sequences
    cached = make_config("arm=cached", "train.epochs=2", "objective.teacher_top_k=1000")
    metrics = train(cached)
    # half of every step is ground truth; twice the norms of two terms' gradients are measured, of a step of 8
    norms = 2 * 2 * 8
    assert every == 64 + norms and reads.sequences - every == every // 2
    assert metrics["teacher_cache"]["tokens"] > 0 and "written" not in metrics["teacher_cache"]
    assert metrics["teacher_cache"]["kl_max"] < 1e-5
    left, right = weights(run_folder(plain)), weights(run_folder(cached))
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, atol=2e-4, rtol=1e-3)
    # what another arm or epoch finds needs no forward at all
    reads.sequences = 0
    again = make_config("arm=again", "train.epochs=2", "objective.teacher_top_k=1000", "scrg.enabled=false")
    metrics = train(again)
    assert metrics["teacher_cache"]["tokens"] > 0
    assert reads.sequences == 0
    # the cost is that of making the cache, once for two epochs
    assert 0 < 2 * metrics["costs"]["read_teacher_tokens"] == metrics["costs"]["trained_student_tokens"]


def test_few_classes_report_their_error(make_config: Make) -> None:
    metrics = train(make_config("train.epochs=1", "objective.teacher_top_k=3"))
    report = metrics["teacher_cache"]
    assert 0 < report["kl_mean"] < report["kl_max"] and report["bytes_per_token"] == 28


def test_a_damaged_cache_is_named(make_config: Make) -> None:
    train(make_config("arm=first", "train.epochs=1", "objective.teacher_top_k=2"))
    config = make_config("arm=second", "train.epochs=1", "objective.teacher_top_k=2")
    (folder,) = (
        path.parent
        for path in run_folder(config).parents[2].glob("cache/teacher-top-*/index.json")
        if '"k": 2' in path.read_text()
    )
    (tensors,) = folder.glob("*.safetensors")
    content = tensors.read_bytes()
    tensors.write_bytes(content[:100])
    with pytest.raises(DataError, match=r"delete .* to have the teacher cache written again"):
        train(config)
    tensors.write_bytes(content)


def test_text_of_the_same_prompt_is_not_mixed_up() -> None:
    truth = TrainingSequence(3, (4, 5), (6, 7), (-1, -1), True)
    written = TrainingSequence(3, (4, 5), (8, 9, 1), (-1,) * 3, True)
    top = TeacherTop(torch.zeros(2, 1), torch.tensor([[6], [7]]), torch.full((2,), -9.0))
    batch = collate([written, truth], StepCounts.of([written, truth]), 0, {truth.key: top})
    assert batch.teacher_top is not None
    # the second sequence's states 1 and 2, of four per row
    assert batch.teacher_top.rows.tolist() == [5, 6]
    assert batch.to("cpu").teacher_top.ids.tolist() == [[6], [7]]
    assert collate([written], StepCounts.of([written]), 0, {truth.key: top}).teacher_top is None


def test_minillm_needs_the_whole_teacher(make_config: Make) -> None:
    words = ["objective.kind=minillm", "objective.w_span=0", "scrg.text=mixed", "objective.teacher_top_k=4"]
    with pytest.raises(ConfigError, match="teacher_top_k=0"):
        make_config(*words)
