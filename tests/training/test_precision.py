"""What every phase of a run computes in, counted at its linear layers; what is cast, and how often."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode

import mgsr.training.build
import mgsr.training.train
from mgsr.cli.evaluate import evaluate_files
from mgsr.config.schema import ExperimentConfig
from mgsr.data.splits import read_split
from mgsr.evaluation.test_set import Predictor
from mgsr.rounds.writer import RoundWriter
from mgsr.runtime import devices
from mgsr.training.build import build_objective
from mgsr.training.module import DistillationModule
from mgsr.training.optim import CastOnce
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train
from tests.reading import weights
from tests.reliability.harness import differences, forked, one_run, small_config

Make = Callable[..., ExperimentConfig]
Seen = Counter[tuple[str, torch.dtype, torch.dtype]]
BF16, F32 = torch.bfloat16, torch.float32


PHASES = {
    "step": (DistillationModule, "training_step"),
    "dev loss": (DistillationModule, "validation_step"),
    "round": (RoundWriter, "write"),
    "written": (Predictor, "write"),
    "exposure": (mgsr.training.train, "exposure_bias"),
    "cache": (mgsr.training.build, "cached_teacher"),
}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Forwards of linear layers: phase, type of the weight, type of what comes out."""
    found: Seen = Counter()
    now = ["elsewhere"]

    def within(phase: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            now.append(phase)
            try:
                return original(*args, **kwargs)
            finally:
                now.pop()

        return call

    for phase, (owner, name) in PHASES.items():
        monkeypatch.setattr(owner, name, within(phase, getattr(owner, name)))

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        # those on meta compute nothing: their products are counted
        if isinstance(module, nn.Linear) and not output.is_meta:
            found[now[-1], module.weight.dtype, output.dtype] += 1

    handle = register_module_forward_hook(count)
    yield found
    handle.remove()


ALL = {"step", "dev loss", "round", "written", "exposure"}


@pytest.mark.parametrize(
    ("overrides", "phases"),
    [
        (["trainer.precision=bf16-mixed"], ALL),
        (["trainer.precision=bf16-mixed", "student.source=teacher", "scrg.text=mixed"], ALL),
        (["trainer.precision=bf16-mixed", "objective.teacher_top_k=8"], ALL | {"cache"}),
        (["trainer.precision=bf16-mixed", "teacher.placement=cpu"], ALL | {"elsewhere"}),
        (["trainer.precision=bf16-mixed", "student.lora.r=2", "student.lora.target_modules=[q_proj]"], ALL),
        (["trainer.precision=bf16-true"], ALL),
    ],
    ids=["mixed", "together", "cache", "placement", "lora", "true"],
)
def test_every_forward_of_every_phase_is_in_bf16(
    make_config: Make, seen: Seen, overrides: list[str], phases: set[str]
) -> None:
    # a second epoch begins behind the dev set
    config = make_config(f"train.epochs={1 + (len(overrides) == 1)}", *overrides)
    train(config)
    # the test sets of teacher and SFT student may be measured already; those of this run are not
    assert {phase for phase, _, _ in seen} == phases
    assert {out for _, _, out in seen} == {BF16}, seen
    wide = {phase for phase, weight, _ in seen if weight == F32}
    mixed = "trainer.precision=bf16-mixed" in overrides
    assert wide == ({"step"} if mixed else set()), "the master weights are autocast's, and in a step alone"
    assert {value.dtype for value in weights(run_folder(config)).values()} == {F32, *(() if mixed else (BF16,))}


@pytest.mark.parametrize(
    ("overrides", "own"),
    [
        (["teacher.frozen_dtype=bfloat16"], {"step": {BF16, F32}, "round": {BF16, F32}}),
        (
            ["trainer.precision=bf16-mixed", "teacher.frozen_dtype=float32"],
            {"step": {BF16, F32}, "round": {BF16, F32}, "dev loss": {BF16}},
        ),
        ([], {phase: {F32} for phase in ALL}),
    ],
    ids=["narrow", "wide", "auto"],
)
def test_the_frozen_teacher_has_a_type_of_its_own(
    make_config: Make, seen: Seen, overrides: list[str], own: dict[str, set[torch.dtype]]
) -> None:
    train(make_config("train.epochs=1", "student.sft.enabled=false", *overrides))
    for phase, dtypes in own.items():
        assert {out for where, _, out in seen if where == phase} == dtypes, phase


def test_a_teachers_figures_are_of_its_type_and_its_folder_is_the_same(make_config: Make, tmp_path: Path) -> None:
    words = [f"run_root={tmp_path}", "train.epochs=1"]
    found = [
        train(make_config(*words, f"arm={dtype}", f"teacher.frozen_dtype={dtype}"))["teacher"]["test"]["rouge_l"]
        for dtype in ("auto", "float32", "bfloat16")
    ]
    (folder,) = tmp_path.glob("cache/teacher-*")
    # float32 is measured again, to the same figures
    assert len(list(folder.glob("evaluation-*.json"))) == 3 and found[0] == found[1]


def test_an_evaluation_computes_as_the_run_did(make_config: Make, tmp_path: Path) -> None:
    rows = tmp_path / "test.jsonl"
    said = read_split(make_config().data, "test")
    rows.write_text("".join(json.dumps({"instruction": r.instruction, "output": r.output}) + "\n" for r in said))
    config = make_config("train.epochs=1", "trainer.precision=bf16-mixed", f"data.test={rows}")
    metrics = train(config)
    found = evaluate_files(run_folder(config), [str(rows)], teacher="run", device="cpu")[str(rows)]
    assert found["distinct_2"] == metrics["result"]["test"]["distinct_2"]
    assert found["exposure"] == metrics["exposure"]


class Casts(TorchDispatchMode):
    """Counts the casts of matrices that are trained from float32 to bfloat16."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.places = {p.data_ptr() for p in student.parameters() if p.dim() == 2}
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is torch.ops.aten._to_copy.default and options.get("dtype") == BF16:
            self.count += args[0].dtype == F32 and args[0].data_ptr() in self.places
        return func(*args, **options)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[int]]:
    """Optimiser step of the main job -> casts of its micro-batches."""
    found: Counter[int] = Counter()
    original = DistillationModule.losses

    def losses(self: DistillationModule, *args: Any) -> Any:
        with Casts(self.student) as casts:
            terms = original(self, *args)
        if self.teacher is not None:
            found[self.global_step] += casts.count
        return terms

    with monkeypatch.context() as patch:
        patch.setattr(DistillationModule, "losses", losses)
        yield found


def test_weights_are_cast_once_per_step_and_not_per_micro_batch(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train.epochs=1", "train.micro_batch_size=2", "trainer.grad_norm_every_n_steps=1000"]

    def run(arm: str) -> tuple[Counter[int], dict[str, torch.Tensor]]:
        config = make_config(*words, "trainer.precision=bf16-mixed", f"arm={arm}")
        with counted(monkeypatch) as casts:
            train(config)
        return casts, weights(run_folder(config))

    once, kept = run("once")
    monkeypatch.setattr(CastOnce, "train_step_context", CastOnce.forward_context)
    often, thrown = run("often")
    # q, k, v, o, gate, up, down of one layer; the embedding that is the output layer is the objective's to cast
    assert set(once) == set(often) and len(once) == 4
    assert all(often[step] - once[step] == 3 * 7 for step in once), (once, often)
    assert all(torch.equal(value, thrown[name]) for name, value in kept.items()), "and nothing else changes"


def test_an_error_within_a_step_leaves_no_autocast_behind(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = DistillationModule.training_step

    def step(self: DistillationModule, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:
            raise ValueError("within the first step")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DistillationModule, "training_step", step)
    with pytest.raises(ValueError, match="first step"):
        train(make_config("train.epochs=1", "train.micro_batch_size=2", "trainer.precision=bf16-mixed"))
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    assert depth == 1


@pytest.mark.parametrize("kind", ["multi_granularity", "minillm"])
def test_the_objective_is_told_what_to_multiply_in(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(devices, "has_bf16_units", lambda: True)
    words = ("objective.kind=minillm", "objective.w_span=0", "scrg.text=mixed") if kind == "minillm" else ()
    for precision, products in (("bf16-mixed", BF16), ("32-true", None)):
        config = make_config(f"trainer.precision={precision}", *words)
        assert build_objective(config, None).options["product_dtype"] == products


def test_a_killed_bf16_run_ends_as_one_that_was_left_alone(tmp_path: Path) -> None:
    folders = {}
    for name, point in (("whole", ""), ("killed", "round.batch=kill@3")):
        config = small_config(tmp_path / name, "trainer.precision=bf16-mixed")
        folders[name] = run_folder(config)
        code = forked(lambda: one_run(config, point), tmp_path / "log")  # noqa: B023
        assert (code == 0) == (name == "whole"), (tmp_path / "log").read_text()[-2000:]
    assert forked(lambda: one_run(config), tmp_path / "log") == 0, (tmp_path / "log").read_text()[-2000:]
    assert differences(folders["whole"], folders["killed"]) == []


def test_products_of_float32_follow_the_configuration(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    during: list[str] = []

    def run(*args: Any) -> Any:
        during.append(torch.get_float32_matmul_precision())
        raise LookupError("far enough")

    monkeypatch.setattr(mgsr.training.train, "_run", run)
    for name in ("highest", "medium"):
        with pytest.raises(LookupError):
            train(make_config("train.epochs=1", f"trainer.matmul_precision={name}", f"arm={name}"))
    assert during == ["highest", "medium"] and torch.get_float32_matmul_precision() == "highest"
