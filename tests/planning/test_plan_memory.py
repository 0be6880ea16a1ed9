"""Bytes of a device: against the doctor's account, against full counts, and by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mgsr import models
from mgsr.config.load import load_config
from mgsr.config.schema import ExperimentConfig
from mgsr.planning.model_size import ModelSize, Parts, clip_parts, fake_models, model_size, parts_of
from mgsr.planning.peak_memory import (
    Activations,
    activations,
    extrapolated_activations,
    generation_added,
    training_added,
)
from mgsr.planning.plan import plan
from mgsr.planning.plan_memory import Account, Model, Trained, account, combinations, usable
from mgsr.runtime.errors import ConfigError

GIB = 2**30


def deep(tiny_file: Path, *words: str) -> ExperimentConfig:
    sizes = [f"{name}.architecture.num_layers=5" for name in ("teacher", "student")]
    return load_config(tiny_file, ["run_root=runs", *sizes, *words])


@pytest.mark.parametrize(
    ("family", "mixed"), [("llama", None), ("gpt2", torch.bfloat16), ("adapters", torch.bfloat16)]
)
def test_three_layers_tell_what_five_keep(tiny_file: Path, family: str, mixed: torch.dtype | None) -> None:
    words = [f"student.architecture.family={family}"]
    if family == "adapters":
        words = ["student.lora.r=2"]
    mode, _, student = fake_models(deep(tiny_file, *words), 300)
    size = model_size(student)
    for checkpointing in (False, True):
        whole = activations(mode, student, 16, checkpointing=checkpointing, mixed=mixed)
        told = extrapolated_activations(mode, student, size.layers, 16, checkpointing=checkpointing, mixed=mixed)
        assert told == whole and told.per_sequence > 0
    assert parts_of(student, size).layers == 5 * parts_of(student, size).layer, "all layers are back"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_parts_add_up(tiny_file: Path, family: str) -> None:
    _, teacher, _ = fake_models(deep(tiny_file, f"teacher.architecture.family={family}"), 300)
    size = model_size(teacher)
    parts = parts_of(teacher, size)
    assert parts.layers == 5 * parts.layer and parts.layers + parts.root == parts.weights == size.weights
    table = 300 * 16 * 4
    assert table <= parts.root_trained < 2 * table + 104 * 16 * 4 + 200 * 4
    assert parts.trained == size.trained


def test_adapters_are_what_is_trained(tiny_file: Path) -> None:
    """Fake tensors and peft: the doctor and the plan count what a real adapted model has."""
    config = deep(tiny_file, "student.lora.r=2")
    _, _, fake = fake_models(config, 300)
    real = models.build_causal_lm(
        "llama", vocab_size=300, hidden_size=8, num_layers=5, num_heads=2, intermediate_size=16,
        max_position_embeddings=104, eos_token_id=0, seed=0,
    )  # fmt: skip
    adapted: Any = models.add_lora(real, r=2, alpha=4)
    size = model_size(fake)
    assert size.parameters == sum(p.numel() for p in adapted.parameters())
    assert size.trained == 4 * sum(p.numel() for p in adapted.parameters() if p.requires_grad) > 0
    parts = parts_of(fake, size)
    assert parts.root_trained == 0 and parts.layer_trained == size.trained // 5
    assert torch.nn.Module.to is not None and real.to(torch.float64).dtype == torch.float64, "modules move again"


def test_one_device_is_the_doctors_account(tiny_file: Path) -> None:
    config = load_config(tiny_file, ["run_root=runs"])
    found = plan(tiny_file, ["run_root=runs"], available=GIB)
    row = found.options[0].account
    mode, teacher, student = fake_models(config, _classes(found))
    own, taught = model_size(student), model_size(teacher)
    static = own.weights + own.optimiser + sum(clip_parts(config, own.classes).values()) + taught.weights
    kept = activations(mode, student, found.text.longest, checkpointing=False, mixed=None)
    assert row.strategy == "auto" and row.activations == kept.of(8)
    assert row.training == static + training_added(config, own, taught, kept, 8, found.text.longest, "cuda")
    assert row.generation == static + generation_added(config, own, taught, 16)
    assert set(row.sft) == {"teacher SFT", "student SFT"} and row.sft["teacher SFT"] > taught.weights * 3


def _classes(found: Any) -> int:
    return found.models["student"]["classes"]


def test_strategies_that_exist() -> None:
    assert list(combinations(1, True)) == [("auto", "replicated"), ("auto", "cpu")]
    assert list(combinations(2, False)) == [("ddp", "replicated"), ("fsdp2", "replicated")]
    assert set(combinations(2, True)) == {
        ("ddp", "replicated"), ("ddp", "cpu"),
        ("fsdp2", "replicated"), ("fsdp2", "sharded"), ("fsdp2", "cpu"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("word", "left"),
    [
        ("objective.teacher_top_k=8", ["ddp replicated", "ddp cpu", "fsdp2 replicated", "fsdp2 cpu"]),
        ("trainer.compile=true", ["ddp replicated", "ddp cpu"]),
        ("objective.match_gradient=true", ["ddp replicated"]),
    ],
)
def test_what_a_run_would_refuse_is_not_planned(tiny_file: Path, word: str, left: list[str]) -> None:
    found = plan(tiny_file, ["run_root=runs", word], devices=2, available=10**9)
    assert [f"{option.account.strategy} {option.account.placement}" for option in found.options] == left


def test_a_run_that_no_strategy_takes_is_refused(tiny_file: Path) -> None:
    words = ["run_root=runs", "scrg.backend=vllm", "trainer.accelerator=cuda"]
    assert plan(tiny_file, words, available=10**9).options
    with pytest.raises(ConfigError, match="writes on one device"):
        plan(tiny_file, words, devices=2, available=10**9)


def stage(weights: int, micro_batches: int) -> tuple[ExperimentConfig, Trained, Model]:
    """A student of ten layers, all of it trained, and a teacher five times as large; nothing else weighs much."""

    def model(size: int) -> Model:
        return Model(
            ModelSize(size // 4, size, size, 2 * size, 10, 1, 1, 1, 0),
            Parts(size, size, 8 * size // 10, 8 * size // 100, 8 * size // 100, 2 * size // 10, 2 * size // 10),
            wide=True,
        )

    config = ExperimentConfig()
    config.clip.mode = "fixed"
    config.scrg.passes, config.scrg.batch_size, config.scrg.max_new_tokens = 0, 1, 1
    config.evaluation.batch_size, config.evaluation.max_new_tokens, config.data.max_prompt_length = 1, 1, 1
    main = Trained("main job", model(weights), Activations(0, 50 * weights), 1, 1, micro_batches)
    return config, main, model(5 * weights)


def test_by_hand() -> None:
    """w is the student's weights; what is kept for backward is 50 w, so that it is the higher point."""
    w = 10_000_000

    def row(strategy: str, placement: str, micro_batches: int = 1, world: int = 4) -> Account:
        config, main, teacher = stage(w, micro_batches)
        return account(
            config, main, teacher, [],
            world_size=world, strategy=strategy, placement=placement, available=80 * w,
        )  # fmt: skip

    def close(found: int, expected: float) -> bool:
        return abs(found - expected * w) < 0.001 * w

    one = row("auto", "replicated", world=1)
    # weights, two moments, teacher, kept for backward
    assert close(one.training, 1 + 2 + 5 + 50) and one.fits and close(one.generation, 1 + 2 + 5)
    # gradients of an earlier micro-batch stand beside the activations of the next
    assert close(row("auto", "replicated", 2, world=1).training, 58 + 1)
    # DDP's buckets always do, and while text is written too
    both = row("ddp", "replicated")
    assert close(both.training, 58 + 1) and close(both.generation, 8 + 1) and both.weights == w
    # a quarter of weights and moments; the root and two layers with their gradients whole
    gathered = 2 * (0.2 + 2 * 0.08)
    parts = row("fsdp2", "replicated")
    assert close(parts.training, 3 / 4 + gathered + 5 + 50)
    # text is written from a whole copy
    assert close(parts.generation, 3 / 4 + 1 + 5) and parts.weights == w // 4 and parts.optimiser == w // 2
    # a quarter of the teacher's layers, its root, and two layers
    sharded = 5 * (0.8 / 4 + 0.2 + 2 * 0.08)
    assert close(row("fsdp2", "sharded").training, 3 / 4 + gathered + sharded + 50)
    assert close(row("fsdp2", "sharded").generation, 3 / 4 + 1 + sharded)
    # only the teacher's output layer, one weight here, is there in training; all of it while it scores, when the
    # student makes room
    away = row("ddp", "cpu")
    assert close(away.training, 54) and close(away.generation, 8) and close(away.teacher, 5)
    assert close(row("fsdp2", "cpu").training, 3 / 4 + gathered + 50)
    assert row("ddp", "replicated", 2).phase == "training"
    # without rounds a whole student makes room for it
    config, main, teacher = stage(w, 1)
    config.scrg.enabled = False
    options: dict[str, Any] = {"world_size": 1, "strategy": "auto", "placement": "cpu", "available": 80 * w}
    assert close(account(config, main, teacher, [], **options).generation, 2 + 5)
    head = replace(teacher, size=replace(teacher.size, classes=w // 100, width=25))
    larger = account(config, main, head, [], **options).training
    added = 4 * 25 - 4
    assert close(larger - account(config, main, teacher, [], **options).training - added, 1)


def test_what_fits() -> None:
    def row(available: int, rows: int = 1) -> Account:
        config, main, teacher = stage(1000, 1)
        options: dict[str, Any] = {"world_size": 4, "strategy": "fsdp2", "placement": "sharded"}
        kept = replace(main.kept, per_sequence=500, fixed=0)
        main = replace(main, rows=rows, kept=kept)
        return account(config, main, teacher, [replace(main, name="student SFT")], available=available, **options)

    peak = row(GIB).peak
    exact = -(-peak * 10 // 9) + 1
    assert usable(exact) >= peak > usable(exact - 3)
    assert row(exact).fits and not row(exact - 3).fits
    # the most sequences of one forward that fit
    room = 3 * peak
    most = row(room).largest_micro_batch
    assert most > 4 and row(room, most).training <= usable(room) < row(room, most + 1).training
    assert not row(1000).fits and row(1000).largest_micro_batch == 0
    # a stage before the main job that does not fit is enough
    config, main, teacher = stage(1000, 1)
    large = replace(main, name="teacher SFT", model=teacher)
    options: dict[str, Any] = {"world_size": 1, "strategy": "auto", "placement": "replicated"}
    alone = account(config, main, teacher, [], available=GIB, **options).peak
    both = account(config, main, teacher, [large], available=-(-alone * 10 // 9) + 1, **options)
    assert both.sft["teacher SFT"] > alone and not both.fits and both.phase == "teacher SFT"


def test_a_narrow_head_is_copied_in_float32() -> None:
    config, main, teacher = stage(1_000_000, 1)
    size = replace(teacher.size, classes=1000, width=100)
    options: dict[str, Any] = {"world_size": 1, "strategy": "auto", "placement": "replicated", "available": GIB}
    wide = account(config, main, replace(teacher, size=size), [], **options)
    narrow = account(config, main, replace(teacher, size=size, wide=False), [], **options)
    assert narrow.training - wide.training == narrow.tiles - wide.tiles == 4 * 1000 * 100
