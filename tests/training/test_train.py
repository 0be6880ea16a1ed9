"""Whole runs of the main job on tiny models: what is written, logged, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mgsr.training.train
from mgsr.config.load import load_config
from mgsr.config.schema import ExperimentConfig
from mgsr.data.splits import read_split
from mgsr.losses import LossTerms, Objective
from mgsr.rounds.store import read_manifest
from mgsr.runtime.errors import ConfigError, NonFiniteLossError, UserError
from mgsr.training.mixture import TextMixture
from mgsr.training.module import DistillationModule
from mgsr.training.run_folder import open_run_folder, run_folder
from mgsr.training.sft import prepare_models
from mgsr.training.train import train
from tests.reading import resume_content, weights

Make = Callable[..., ExperimentConfig]
Finished = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def finished(tiny_file: Path, shared_root: Path) -> Finished:
    """The folder of a run to its end, which is only read, and what `train` returned."""
    config = load_config(tiny_file, [f"run_root={shared_root}", "experiment=finished"])
    metrics = train(config)
    return run_folder(config), metrics


def test_a_run_writes_what_it_promises(finished: Finished) -> None:
    folder, metrics = finished
    for name in ("config.yaml", "environment.json", "metrics.json", "predictions/test.jsonl"):
        assert (folder / name).exists(), name
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics["steps"] == 12 and metrics["scrg"]["rounds"] == 3
    for model in (metrics["teacher"], metrics["sft_start"], metrics["result"]):
        figures = model["test"]
        assert 0 <= figures["rouge_l"] <= 100 and set(figures["sampled"]["rouge_l_by_seed"]) == {"10", "20"}
    assert 0 < metrics["scrg"]["disagreement_rate"] <= 1
    predictions = [json.loads(line) for line in (folder / "predictions/test.jsonl").read_text().splitlines()]
    assert len(predictions) == 18 and {p["seed"] for p in predictions} == {None, 10, 20}


def test_rounds_cover_half_of_each_epoch_and_keep_their_records(finished: Finished) -> None:
    for round_ in (0, 1, 2):
        folder = finished[0] / "scrg" / f"round={round_}"
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


def test_the_checkpoint_holds_student_and_clip_network_only(finished: Finished) -> None:
    names = weights(finished[0])
    assert {name.split(".")[0] for name in names} == {"student", "clip"}
    hidden = [v.shape[1] for k, v in names.items() if k.endswith("embed_tokens.weight")]
    assert hidden == [8], "only the student's width may appear"


def test_tensorboard_holds_every_promised_curve(finished: Finished) -> None:
    log = EventAccumulator(str(finished[0]), size_guidance={"tensors": 0})
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
    # one point per logged step (12 steps, every one of them), none repeated
    assert [e.step for e in log.Scalars("train/loss")] == list(range(12))
    assert [e.step for e in log.Scalars("grad_norm/sft")] == [0, 4, 8]
    total = {e.step: e.value for e in log.Scalars("train/loss")}
    parts = [{e.step: e.value for e in log.Scalars(f"train/loss_{term}")} for term in ("sft", "dac_kl", "span")]
    for step, value in total.items():
        assert value == pytest.approx(sum(part[step] for part in parts), rel=1e-5)


def test_mean_bounds_of_a_finished_run(make_config: Make, finished: Finished) -> None:
    first, learned = finished
    config = make_config("arm=mean", "train.epochs=1", "clip.mode=mean_of_run", f"clip.run={first}")
    metrics = train(config)
    assert "clip" not in {name.split(".")[0] for name in weights(run_folder(config))}
    assert 0 < learned["dac"]["lower"] < learned["dac"]["upper"] < 1 and metrics["steps"] == 4
    with pytest.raises(ConfigError, match=r"clip\.run"):
        train(make_config("arm=missing", "clip.mode=mean_of_run", "clip.run=/nowhere"))


def test_another_numerics_version_takes_neither_bounds_nor_models_of_this_one(
    make_config: Make, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = finished
    config = make_config()
    rows = {name: read_split(config.data, name) for name in ("train", "dev", "test")}
    keys = {prepare_models(config, rows).student.key}
    here = mgsr.NUMERICS_VERSION
    monkeypatch.setattr(mgsr, "NUMERICS_VERSION", here + 1)
    with pytest.raises(ConfigError, match=rf"is of numerics version {here}, this code is of {here + 1}"):
        train(make_config("arm=mean", "clip.mode=mean_of_run", f"clip.run={first}"))
    start = prepare_models(config, rows)
    assert start.teacher is not None and start.student.key not in keys


def test_a_folder_with_another_config_is_left_alone(make_config: Make, finished: Finished) -> None:
    folder, _ = finished
    before = (folder / "metrics.json").read_bytes()
    with pytest.raises(ConfigError, match=r"\(train\.lr: 0\.01 -> 0\.5\)"):
        train(make_config("experiment=finished", "train.lr=0.5"))
    with pytest.raises(ConfigError, match="this run is complete"):
        train(make_config("experiment=finished"))
    assert (folder / "metrics.json").read_bytes() == before
    with pytest.raises(UserError, match="no run to resume"):
        train(make_config("arm=nothing"), resume=True)


def test_ground_truth_only_needs_no_teacher(make_config: Make) -> None:
    config = make_config(
        "teacher.source=''", "objective.w_dac=0", "objective.w_span=0", "scrg.enabled=false", "train.epochs=1"
    )
    metrics = train(config)
    assert "teacher" not in metrics and "scrg" not in metrics


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
    original = TextMixture.selection

    def watched(mixture: TextMixture, epoch: int) -> Any:
        steps = original(mixture, epoch)
        mixture.adaptive_fraction, kept = 1.0, mixture.adaptive_fraction
        assert [s.student for s in original(mixture, epoch)] == [s.student for s in steps]
        mixture.adaptive_fraction = kept
        seen.append(epoch)
        return steps

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextMixture, "selection", watched)
        train(config)
    assert set(seen) == {0, 1}
    state = resume_content(run_folder(config))
    assert state["DistillationDataModule"]["epoch_fractions"] == {0: 0.5, 1: 0.5}


def test_a_machine_that_cannot_is_refused_before_anything_is_written(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says where the value was written, though no file is being read any more."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = make_config("trainer.accelerator=auto", "trainer.precision=16-mixed")
    with pytest.raises(ConfigError, match=r"^command line: `trainer.precision=16-mixed` is for GPUs"):
        train(config)
    assert not run_folder(config).exists()


def test_a_key_without_effect_is_said_when_a_run_begins(
    make_config: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: object) -> None:
        raise UserError("far enough")

    monkeypatch.setattr(mgsr.training.train, "working_device", stop)
    with pytest.raises(UserError, match="far enough"):
        train(make_config("clip.lower=0.1"))
    assert "`clip.lower` (command line) has no effect without clip.mode=fixed" in capsys.readouterr().out
