"""Whole runs of the main job on tiny models: what is written, resumed, logged, refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._dynamo.utils import counters

import mgsr.training.checkpoint
import mgsr.training.train
from mgsr.config.schema import ExperimentConfig
from mgsr.losses import LossTerms
from mgsr.rounds.store import read_manifest
from mgsr.runtime.errors import ConfigError, NonFiniteLossError, RunInterruptedError, UserError
from mgsr.training.datamodule import DistillationDataModule
from mgsr.training.module import DistillationModule
from mgsr.training.objective import Objective
from mgsr.training.run_folder import open_run_folder, run_folder
from mgsr.training.train import train
from tests.reading import resume_content

Make = Callable[..., ExperimentConfig]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return resume_content(folder)["state_dict"]


def numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    """Everything but wall-clock times."""
    kept = {k: v for k, v in metrics.items() if not k.startswith("seconds")}
    # the tokens of a resumed run are those of the uninterrupted one
    kept |= {name: _rateless(metrics[name]) for name in ("dac", "costs")}
    return kept


def _rateless(values: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in values.items() if "seconds" not in k}


def test_a_run_writes_what_it_promises(make_config: Make) -> None:
    config = make_config()
    metrics = train(config)
    folder = run_folder(config)
    for name in ("config.yaml", "environment.json", "metrics.json", "predictions/test.jsonl"):
        assert (folder / name).exists(), name
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics["steps"] == 12 and metrics["scrg"]["rounds"] == 3
    for model in (metrics["teacher"], metrics["sft_start"], metrics["result"]):
        figures = model["test"]
        assert 0 <= figures["rouge_l"] <= 100 and set(figures["rouge_l_by_seed"]) == {"10", "20"}
    assert 0 < metrics["scrg"]["disagreement_rate"] <= 1
    predictions = [json.loads(line) for line in (folder / "predictions/test.jsonl").read_text().splitlines()]
    assert len(predictions) == 12 and {p["seed"] for p in predictions} == {10, 20}


def test_rounds_cover_half_of_each_epoch_and_keep_their_records(make_config: Make) -> None:
    config = make_config("train.epochs=2")
    train(config)
    for round_ in (0, 1):
        folder = run_folder(config) / "scrg" / f"round={round_}"
        manifest = read_manifest(folder)
        assert manifest is not None and manifest["shards"][0]["sequences"] == 16
        records = [json.loads(line) for line in (folder / "shard-00000-00000.jsonl").read_text().splitlines()]
        corrected = [r for r in records if r["corrections"]]
        assert corrected
        for record in corrected:
            c = record["corrections"][0]
            kept = record["rollout_ids"][: c["position"]]
            assert record["response_ids"][: c["position"] + 1] == [*kept, c["teacher_token"]]
            assert record["rollout_ids"][c["position"]] == c["student_token"] != c["teacher_token"]
            assert len(record["response_ids"]) <= 6 and len(record["span_ids"]) == len(record["response_ids"])
        after = [json.loads(line) for line in (folder / "after.jsonl").read_text().splitlines()]
        assert {a["example_id"] for a in after} == {r["example_id"] for r in records}
        assert all(a["teacher_log_likelihood_after"] < 0 for a in after)


def test_the_checkpoint_holds_student_and_clip_network_only(make_config: Make) -> None:
    config = make_config("train.epochs=1")
    train(config)
    names = weights(run_folder(config))
    assert {name.split(".")[0] for name in names} == {"student", "clip"}
    hidden = [v.shape[1] for k, v in names.items() if k.endswith("embed_tokens.weight")]
    assert hidden == [8], "only the student's width may appear"


def test_tensorboard_holds_every_promised_curve(make_config: Make) -> None:
    config = make_config("train.epochs=2")
    train(config)
    log = EventAccumulator(str(run_folder(config)), size_guidance={"tensors": 0})
    log.Reload()
    tags = log.Tags()
    expected = {
        "train/loss",
        "train/loss_sft",
        "train/loss_dac_kl",
        "train/loss_span",
        "train/tokens_per_second",
        "train/padding",
        "train/grad_norm",
        "grad_norm/sft",
        "grad_norm/dac_kl",
        "grad_norm/span",
        "dac/lower",
        "dac/upper",
        "dac/retained_mass",
        "dac/lower_std",
        "dac/near_upper_min",
        "val/rouge_l",
        "val/loss",
        "scrg/disagreement_rate",
        "scrg/corrected_fraction",
        "scrg/mean_length_before",
        "scrg/mean_length_after",
        "scrg/distinct_2",
        "hp/rouge_l",
    }
    assert expected <= set(tags["scalars"])
    assert {"scrg/error_position", "dac/lower_histogram", "dac/upper_histogram"} <= set(tags["histograms"])
    text = [tag for tag in tags["tensors"] if tag.startswith("scrg/revised_")]
    assert text, "revised sequences are shown as text"
    # one point per logged step (8 steps, every one of them), none repeated
    assert [e.step for e in log.Scalars("train/loss")] == list(range(8))
    assert [e.step for e in log.Scalars("grad_norm/sft")] == [0, 4]
    total = {e.step: e.value for e in log.Scalars("train/loss")}
    parts = [{e.step: e.value for e in log.Scalars(f"train/loss_{term}")} for term in ("sft", "dac_kl", "span")]
    for step, value in total.items():
        assert value == pytest.approx(sum(part[step] for part in parts), rel=1e-5)


@pytest.mark.parametrize("stop_at", [8, 6, 11, 12], ids=["epoch_end", "mid_epoch", "before_last", "last"])
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    whole = make_config("arm=whole", "student.architecture.family=gpt2", "student.architecture.dropout=0.1")
    expected = train(whole)
    halved = make_config("arm=halved", "student.architecture.family=gpt2", "student.architecture.dropout=0.1")
    with monkeypatch.context() as patch:
        original = mgsr.training.checkpoint.ResumePoint.on_train_batch_end

        def stop(self: Any, trainer: Any, module: Any, *args: Any) -> None:
            if trainer.global_step == stop_at and module.objective.needs_teacher:
                self._asked = 15
            original(self, trainer, module, *args)

        patch.setattr(mgsr.training.checkpoint.ResumePoint, "on_train_batch_end", stop)
        with pytest.raises(RunInterruptedError, match="--resume") as stopped:
            train(halved)
    assert stopped.value.exit_code == 143
    assert not (run_folder(halved) / "metrics.json").exists()
    resumed = train(halved, resume=True)
    left, right = weights(run_folder(whole)), weights(run_folder(halved))
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name
    assert numbers(expected) | {"arm": ""} == numbers(resumed) | {"arm": ""}


def test_ground_truth_only_needs_no_teacher(make_config: Make) -> None:
    config = make_config(
        "teacher.source=''", "objective.w_dac=0", "objective.w_span=0", "scrg.enabled=false", "train.epochs=1"
    )
    metrics = train(config)
    assert "teacher" not in metrics and "scrg" not in metrics


@pytest.mark.parametrize(
    "overrides",
    [
        ["scrg.passes=0"],
        ["scrg.passes=3", "scrg.error_position=threshold", "scrg.kl_threshold=0.01"],
        ["scrg.error_position=random", "scrg.teacher_token=argmax"],
        ["scrg.text=teacher", "scrg.cross_entropy=true"],
        ["scrg.text=mixed"],
        ["scrg.text=interleaved", "scrg.interleaved_top_k=2"],
        ["mixture.kind=linear", "scrg.every_n_epochs=2"],
        ["mixture.kind=adaptive", "mixture.student_fraction_start=0.5", "mixture.replay_capacity=5"],
        ["clip.objective=priced"],
        ["clip.mode=top_k", "clip.top_k=5"],
        ["clip.mode=fixed", "clip.form=literal", "clip.ramp=sigmoid"],
        ["clip.mode=fixed", "clip.lower=.inf", "clip.target=label"],
        ["clip.mode=fixed", "clip.keep_target=false", "clip.quantile=rank", "clip.upper=0.1"],
        ["objective.divergence=jensen_shannon", "spans.chunker=all_adjacent", "spans.relation=cosine"],
        ["objective.divergence=skewed_reverse_kl", "spans.chunker=fixed", "spans.relation=trace"],
        ["objective.divergence=total_variation", "spans.chunker=random", "spans.norm=l2"],
        ["objective.temperature=2", "train.gradient_checkpointing=true", "train.micro_batch_size=3"],
        ["student.lora.r=2", "student.lora.target_modules=[q_proj]"],
        ["student.source=teacher", "student.keep_layers=[0]"],
        ["trainer.precision=bf16-mixed"],
        ["trainer.precision=bf16-true"],
        ["trainer.precision=64-true", "teacher.dtype=float64", "student.dtype=float64"],
        ["evaluation.temperature=0", "evaluation.val_every_n_epochs=2"],
    ],
    ids=",".join,
)
def test_every_option_runs_and_moves_the_student(make_config: Make, overrides: list[str]) -> None:
    config = make_config("train.epochs=2", *overrides)
    metrics = train(config)
    assert metrics["steps"] == 8
    assert math.isfinite(metrics["val"]["loss"])
    assert all(bool(torch.isfinite(v).all()) for v in weights(run_folder(config)).values())


def test_a_compiled_forward_trains_the_same_student(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("g++") is None:
        # without a compiler the same graphs are captured, and run as they are
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
        monkeypatch.setattr(mgsr.training.train, "check_compiler", lambda device: None)
    runs = []
    counters.clear()
    for compiled in ("false", "true"):
        config = make_config(f"arm=compile_{compiled}", "train.epochs=1", f"trainer.compile={compiled}")
        train(config)
        runs.append(weights(run_folder(config)))
        assert (counters["stats"]["unique_graphs"] > 0) == (compiled == "true")
    for name, value in runs[0].items():
        torch.testing.assert_close(runs[1][name], value, atol=1e-4, rtol=1e-3)


def test_compiling_without_a_compiler_is_refused_before_anything_is_written(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    config = make_config("trainer.compile=true")
    with pytest.raises(ConfigError, match=r"trainer\.compile=false"):
        train(config)
    assert not run_folder(config).exists()


def test_mean_bounds_of_a_finished_run(make_config: Make) -> None:
    first = make_config("arm=learned", "train.epochs=1")
    learned = train(first)
    config = make_config("arm=mean", "train.epochs=1", "clip.mode=mean_of_run", f"clip.run={run_folder(first)}")
    metrics = train(config)
    assert "clip" not in {name.split(".")[0] for name in weights(run_folder(config))}
    assert 0 < learned["dac"]["lower"] < learned["dac"]["upper"] < 1 and metrics["steps"] == 4
    with pytest.raises(ConfigError, match=r"clip\.run"):
        train(make_config("arm=missing", "clip.mode=mean_of_run", "clip.run=/nowhere"))


def test_a_loss_that_becomes_nan_stops_and_keeps_the_checkpoint(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("trainer.checkpoint_every_n_steps=2")
    original = Objective.__call__

    def poisoned(self: Objective, batch: Any, *args: Any, **kwargs: Any) -> LossTerms:
        terms = original(self, batch, *args, **kwargs)
        poisoned.calls += self.needs_teacher and kwargs.get("weights") is None
        if poisoned.calls < 6:
            return terms
        return terms._replace(total=terms.total * float("nan"), dac_kl=terms.dac_kl * float("nan"))

    poisoned.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(Objective, "__call__", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"step 5: loss_dac_kl became nan") as caught:
        train(config)
    assert "\n" not in str(caught.value)
    kept = weights(run_folder(config))
    assert all(bool(torch.isfinite(v).all()) for v in kept.values())
    assert resume_content(run_folder(config))["global_step"] == 4


def test_a_folder_with_another_config_is_left_alone(make_config: Make) -> None:
    config = make_config("train.epochs=1")
    train(config)
    before = (run_folder(config) / "metrics.json").read_bytes()
    with pytest.raises(ConfigError, match=r"differs in train\.lr"):
        train(make_config("train.epochs=1", "train.lr=0.5"))
    with pytest.raises(ConfigError, match="--resume"):
        train(config)
    assert (run_folder(config) / "metrics.json").read_bytes() == before
    with pytest.raises(UserError, match="no run to resume"):
        train(make_config("arm=nothing"), resume=True)


def test_the_student_trains_with_dropout_and_writes_without(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: set[bool] = set()
    original = DistillationModule.losses

    def watched(self: DistillationModule, *arguments: Any) -> Any:
        if self.objective.needs_teacher:
            modes.add(self.student.training)
            assert self.teacher is not None and not self.teacher.training
            assert not any(p.requires_grad for p in self.teacher.parameters())
        return original(self, *arguments)

    monkeypatch.setattr(DistillationModule, "losses", watched)
    train(make_config("train.epochs=2"))
    assert modes == {True}


def test_a_folder_that_was_only_claimed_can_be_taken_over(make_config: Make) -> None:
    open_run_folder(run_folder(make_config()), make_config("train.lr=0.5"), resume=False)
    assert train(make_config("train.epochs=1"))["steps"] == 4


def test_an_epoch_keeps_its_share_of_student_text_when_it_is_planned_again(make_config: Make) -> None:
    config = make_config("mixture.kind=adaptive", "mixture.student_fraction_start=0.5", "train.epochs=2")
    seen = []
    original = DistillationDataModule.selection

    def watched(data: DistillationDataModule, epoch: int) -> Any:
        steps = original(data, epoch)
        data.mixture.adaptive_fraction, kept = 1.0, data.mixture.adaptive_fraction
        assert [s.student for s in original(data, epoch)] == [s.student for s in steps]
        data.mixture.adaptive_fraction = kept
        seen.append(epoch)
        return steps

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillationDataModule, "selection", watched)
        train(config)
    assert set(seen) == {0, 1}
    state = resume_content(run_folder(config))
    assert state["DistillationDataModule"]["epoch_fractions"] == {0: 0.5, 1: 0.5}
