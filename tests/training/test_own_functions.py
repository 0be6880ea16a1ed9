"""Divergences and writers of a user's own, and options of divergences."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mgsr.cli.main import main
from mgsr.config.load import dump, load_config
from mgsr.config.schema import ExperimentConfig
from mgsr.planning.doctor import examine
from mgsr.planning.plan import plan
from mgsr.rounds.entry import RoundEntry
from mgsr.runtime.errors import ConfigError
from mgsr.scrg import RevisedSequence
from mgsr.study.pool import read_curves
from mgsr.training.build import build_objective, writer_class
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train
from tests.reading import weights

Make = Callable[..., ExperimentConfig]
EXACT = ("teacher.dtype=float64", "student.dtype=float64", "trainer.precision=64-true")
PLUGIN = '''
from mgsr.losses import forward_kl
from mgsr.rounds.writer import UnrevisedWriter

number = 3
seen = []


def scaled(teacher_logits, student_logits, *, temperature=1.0, by=1.0):
    seen.append(by)
    return by * forward_kl(teacher_logits, student_logits, temperature=temperature)


def summed(teacher_logits, student_logits, *, temperature=1.0):
    return forward_kl(teacher_logits, student_logits).sum()


class Echo(UnrevisedWriter):
    """Says the prompt's first two tokens again."""

    def unrevised(self, prompts, round_):
        return [list(ids[:2]) for _, ids in prompts], [{} for _ in prompts], 1


class Both(Echo):
    together = True
'''


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "my_own.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "my_own", raising=False)
    import my_own

    return my_own


def curves_of(config: ExperimentConfig) -> dict[str, Any]:
    train(config)
    return read_curves(run_folder(config))


def test_a_divergence_of_ones_own_trains_as_the_same_one_of_ours(make_config: Make) -> None:
    words = ("train.epochs=1", "scrg.enabled=false", *EXACT)
    mine = make_config("arm=mine", "objective.divergence=my_own:scaled", *words)
    ours = make_config("arm=ours", "objective.divergence=forward_kl", *words)
    both = [curves_of(config)["train/loss"]["values"] for config in (mine, ours)]
    assert both[0] == pytest.approx(both[1], rel=1e-9)
    for name, weight in weights(run_folder(mine)).items():
        torch.testing.assert_close(weight, weights(run_folder(ours))[name], rtol=1e-7, atol=1e-9)


def test_a_pair_goes_from_one_value_to_the_other_over_all_steps(make_config: Make, plugin: Any) -> None:
    words = ("objective.divergence=my_own:scaled", "objective.divergence_options={by: [2.0, 1.0]}")
    config = make_config("train.max_steps=4", "scrg.enabled=false", "objective.w_span=0", *words)
    config.trainer.grad_norm_every_n_steps = 10**6
    train(config)
    # the check tries both ends and the middle; then step by step, every tile alike
    assert plugin.seen[:3] == [2.0, 1.5, 1.0]
    steps = list(dict.fromkeys(plugin.seen[3:]))
    assert steps == pytest.approx([2.0, 5 / 3, 4 / 3, 1.0])


def test_a_writer_of_ones_own_writes_the_rounds(make_config: Make) -> None:
    config = make_config("scrg.text=my_own:Echo", "mixture.student_fraction=1.0", "train.epochs=1")
    metrics = train(config)
    assert metrics["steps"] == 4 and metrics["scrg"]["rounds"] == 1
    entries = [
        json.loads(line)
        for path in (run_folder(config) / "scrg").rglob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    revised = [entry.get("revised", entry) for entry in entries]
    written = [entry for entry in revised if "response_ids" in entry]
    assert written and all(entry["response_ids"] == entry["prompt_ids"][:2] for entry in written)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["objective.divergence=my_own:nothing"], "my_own has no nothing"),
        (["objective.divergence=no_such_module:f"], "no module no_such_module here"),
        (["objective.divergence=my_own:number"], "is no function but int"),
        (["objective.divergence=my_own:summed"], "one value per token"),
        (["objective.divergence=my_own:scaled", "objective.divergence_options={bye: 1}"], "did you mean `by`"),
        (
            ["objective.divergence=alpha_beta", "objective.divergence_options={alpha: 0}"],
            "must be finite and not 0",
        ),
        (["objective.divergence=veto", "objective.divergence_options={beta: [0.8, 1.0]}"], "beta must be below 1"),
        (
            ["objective.divergence=jensen_shannon", "objective.divergence_options.beta=0"],
            "jensen_shannon: beta must lie strictly between 0 and 1, got 0",
        ),
        (["objective.divergence_options={beta: 1}"], "none of dac_kl's"),
        (["objective.divergence=my_own"], "it takes dac_kl | forward_kl"),
        (["objective.divergence_options={by: [1, 2, 3]}"], "one value, or a pair"),
        (["scrg.text=my_own:number"], "derived from mgsr.rounds.writer.UnrevisedWriter"),
        (["scrg.text=my_own:Other"], "my_own has no Other"),
        (["scrg.text=mgsr.rounds.writer:UnrevisedWriter"], "has to have the method unrevised"),
        (["objective.written_divergence=veto"], "beside another divergence than dac_kl"),
        (
            ["objective.divergence=todi", "objective.written_divergence=veto", "objective.written_options={b: 1}"],
            "has no option 'b'",
        ),
        (["objective.match_gradient=true", "teacher.placement=cpu"], "teacher.placement=replicated"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    words: list[str], told: str, tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tiny_file), f"run_root={tmp_path}/runs", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mgsr: ") and error.count("\n") == 1 and told in error, error
    assert not (tmp_path / "runs").exists()


def test_options_are_read_from_files_words_and_dumps(tiny_file: Path, tmp_path: Path) -> None:
    given = "objective.divergence_options={alpha: 0.2, detach: true, of: forward_kl, beta: [0.8, 0], k: 5}"
    config = load_config(tiny_file, [given, "objective.divergence_options.alpha=0.3"])
    wanted = {"alpha": 0.3, "detach": True, "of": "forward_kl", "beta": [0.8, 0.0], "k": 5}
    assert config.objective.divergence_options == wanted
    # a whole number stays one
    assert isinstance(config.objective.divergence_options["k"], int)
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load_config(tmp_path / "again.yaml") == config
    assert (
        load_config(tmp_path / "again.yaml", ["objective.divergence_options={}"]).objective.divergence_options
        == {}
    )


def test_options_on_written_text_are_scheduled_too(make_config: Make) -> None:
    words = ("objective.divergence=todi", "objective.written_divergence=veto", "train.epochs=1")
    config = make_config(*words, "objective.written_options={beta: [0.8, 0.0]}")
    objective = build_objective(config, None)
    objective.progress = 0.5
    assert objective._scheduled() == {"written_kwargs": {"beta": 0.4}}
    assert math.isfinite(train(config)["val"]["loss"])


def test_a_divergence_of_no_weight_is_not_looked_for(make_config: Make) -> None:
    words = ("objective.divergence=no_such_module:f", "objective.w_dac=0", "scrg.enabled=false")
    assert train(make_config("train.epochs=1", *words))["steps"] == 4


def test_paired_text_changes_hands_from_round_to_round(make_config: Make) -> None:
    words = ("scrg.text=paired", "mixture.student_fraction=1.0", "train.epochs=2", "objective.w_sft=0")
    config = make_config(*words)
    train(config)
    by_round = []
    for path in sorted((run_folder(config) / "scrg").glob("round=*")):
        lines = [line for shard in sorted(path.glob("shard-*.jsonl")) for line in shard.read_text().splitlines()]
        entries = map(json.loads, lines)
        by_round.append({entry["example_id"]: entry.get("by_teacher", False) for entry in entries})
    first, second = by_round
    assert first.keys() == second.keys() and len(first) == 32
    assert all(first[example] is not second[example] for example in first)
    assert 8 < sum(first.values()) < 24


def test_the_teachers_half_counts_as_ground_truth() -> None:
    revised = RevisedSequence(1, (5, 6), (7, 8), (7, 8), (), "not_searched", 0, 0)
    entry = RoundEntry(revised, (-1, -1), by_teacher=True)
    again = RoundEntry.from_dict(json.loads(json.dumps(entry.to_dict())))
    assert again == entry and again.training_sequence().is_ground_truth
    assert not RoundEntry(revised, (-1, -1)).training_sequence().is_ground_truth


def test_our_own_writers_have_names(tiny_file: Path) -> None:
    assert writer_class(load_config(tiny_file, ["scrg.text=mixed"])).__name__ == "MixingWriter"
    with pytest.raises(ConfigError, match="interleaved"):
        load_config(tiny_file, ["scrg.text=interleave"])


@pytest.mark.parametrize(("own", "shipped"), [("Echo", "teacher"), ("Both", "interleaved")])
def test_memory_is_planned_by_whether_both_models_are_needed_at_once(
    tiny_file: Path, own: str, shipped: str
) -> None:
    found = []
    for text in (f"my_own:{own}", shipped):
        words = ["run_root=runs", f"scrg.text={text}", "scrg.passes=0"]
        looked = examine(tiny_file, [*words, "teacher.placement=cpu"], available=10**9)
        written = [option.account.generation for option in plan(tiny_file, words, available=10**9).options]
        found.append((looked.figures["memory"]["generation"], written))
    assert found[0] == found[1]
