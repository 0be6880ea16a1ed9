"""Two processes compute what one does: losses, gradients, weights, text and figures; and they resume as one does.

Everything is compared in float64. A sum over tokens is the only thing that two ranks take in another order, so
results differ by a few units in the last place (2e-16 of numbers around 1), over 21 steps too: 1e-12 leaves room
for four digits and would notice any real difference, such as one token counted twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mgsr.rounds.text_quality import rounds_of
from mgsr.study.pool import read_curves
from mgsr.training.checkpoint import BEST, newest_whole, read_checkpoint
from tests.distributed.cases import STEPS
from tests.reliability.harness import differences

CLOSE = {"rtol": 0.0, "atol": 1e-12}
BF16 = ("one_bf16", "ddp_bf16", "fsdp2_bf16")
SAME_RUN = [("ddp", "one"), ("fsdp2", "one"), ("offloaded", "one")]
Results = tuple[Path, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """All cases, run once in a process of their own: it forks, which this one, with its threads, should not."""
    folder = tmp_path_factory.mktemp("cases")
    command = [sys.executable, "-m", "tests.distributed.cases", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads((folder / "cases.json").read_text())


def run_of(results: Results, name: str) -> Path:
    return next(Path(note["folder"]) for note in results[1] if note["name"] == name)


def state(results: Results, name: str) -> dict[str, torch.Tensor]:
    newest = newest_whole(run_of(results, name))
    assert newest is not None
    return read_checkpoint(newest)["state_dict"]


def texts(results: Results, name: str) -> list[Any]:
    """Every round: prompts in order, what the student wrote, what became of it, and where it was corrected."""
    found = []
    for _, entries in rounds_of(run_of(results, name)):
        found.append(
            [
                (e.revised.example_id, e.revised.rollout_ids, e.revised.response_ids, e.span_ids)
                for e in sorted(entries, key=lambda e: e.revised.example_id)
            ]
        )
    return found


pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def test_no_rank_hangs_and_only_those_fail_that_were_killed(results: Results) -> None:
    for note in results[1]:
        # None: it had to be killed after two minutes
        assert None not in note["codes"], note
        assert note["codes"] == ([1, -9] if note["kill"] else [0] * len(note["codes"])), note


def test_fsdp2_gathers_in_bf16_and_sums_in_float32(results: Results) -> None:
    """Weights stay in float32; a step of one process or of DDP sees those, and casts what it multiplies."""
    seen = {name: json.loads((results[0] / f"{name}.weights.json").read_text()) for name in BF16}
    both = ["torch.bfloat16", "torch.float32"]
    assert seen == {"one_bf16": both, "ddp_bf16": both, "fsdp2_bf16": ["torch.bfloat16"]}
    alone = torch.load(results[0] / "one_bf16.gradients.pt")
    for name in BF16:
        assert {value.dtype for value in state(results, name).values()} == {torch.float32}
        # within what bf16 rounds away; a sum over ranks in place of their mean would be twice as much
        gradients = torch.load(results[0] / f"{name}.gradients.pt")
        assert set(gradients) == set(alone) and {g.dtype for g in gradients.values()} == {torch.float32}
        for part in ("student", "clip"):
            expected, found = (
                torch.cat([g.flatten() for n, g in sorted(of.items()) if n.startswith(part)])
                for of in (alone, gradients)
            )
            assert float((found - expected).norm() / expected.norm()) < 0.05, (name, part)
        losses = [read_curves(run_of(results, n))["train/loss"]["values"] for n in (name, "one_bf16")]
        assert losses[0][:3] == pytest.approx(losses[1][:3], rel=0.02), name


def test_the_ranks_of_a_round_have_different_amounts_of_text(results: Results) -> None:
    """So that a sharded teacher, which is called by all ranks together, has to be called in lockstep."""
    names = [path.name for path in (run_of(results, "fsdp2_stages") / "scrg" / "round=0").glob("shard-*.jsonl")]
    assert sorted(name[:11] for name in names) == ["shard-00000", "shard-00000", "shard-00001"]


def test_gloo_averages_gradients_under_fully_shard_and_under_ddp(results: Results) -> None:
    """A layer without Lightning: y = x w, loss = y, x = 1 on rank 0 and 3 on rank 1; the mean gradient is 2."""
    found = json.loads((results[0] / "averaging.json").read_text())
    assert found == {"fully_shard": [2.0, 2.0], "ddp": [2.0, 2.0]}


@pytest.mark.parametrize(("name", "alone"), SAME_RUN)
def test_first_gradients_are_those_of_one_process(results: Results, name: str, alone: str) -> None:
    expected, found = (torch.load(results[0] / f"{n}.gradients.pt") for n in (alone, name))
    assert set(expected) == set(found) and any(n.startswith("clip.") for n in expected)
    for parameter, gradient in expected.items():
        # the clip network's last layer starts at zero: nothing reaches the first one yet
        assert gradient.abs().max() > 1e-9 or parameter.startswith("clip.inner"), parameter
        torch.testing.assert_close(found[parameter], gradient, **CLOSE, msg=parameter)


@pytest.mark.parametrize(
    ("name", "alone"),
    [*SAME_RUN, ("fsdp2_stages", "one_stages")],
)
def test_weights_after_all_steps_of_sgd_are_those_of_one_process(results: Results, name: str, alone: str) -> None:
    expected, found = state(results, alone), state(results, name)
    assert set(expected) == set(found)
    for parameter, value in expected.items():
        torch.testing.assert_close(found[parameter], value, **CLOSE, msg=parameter)


@pytest.mark.parametrize(("name", "one"), SAME_RUN)
def test_losses_and_curves_are_those_of_one_process(results: Results, name: str, one: str) -> None:
    alone, together = (read_curves(run_of(results, n)) for n in (one, name))
    assert len(alone["train/loss"]["steps"]) == STEPS
    timed = {"cost/seconds", "train/tokens_per_second"}
    # the gradient of a term alone is not to be had of a sharded model; padding is the micro-batches' own
    norms = {c for c in alone if c.startswith("grad_norm/")}
    assert len(norms) == 3
    for curve in set(alone) - timed - (norms if name == "fsdp2" else set()) - {"train/padding"}:
        assert together[curve]["steps"] == alone[curve]["steps"], curve
        # five digits are read
        assert together[curve]["values"] == pytest.approx(alone[curve]["values"], rel=3e-5, abs=1e-9), curve


@pytest.mark.parametrize(
    ("name", "alone"),
    [
        *SAME_RUN,
        ("fsdp2_stages", "one_stages"),
        ("crossing", "adamw"),
    ],
)
def test_rounds_are_the_same_text(results: Results, name: str, alone: str) -> None:
    expected = texts(results, alone)
    assert len(expected) >= 3 and any(len(text) for text in expected)
    assert texts(results, name) == expected


@pytest.mark.parametrize(("name", "one"), SAME_RUN)
def test_metrics_are_reduced_exactly_uneven_batches_included(results: Results, name: str, one: str) -> None:
    """3 dev and 3 test rows on 2 ranks."""
    alone, together = (json.loads((run_of(results, n) / "metrics.json").read_text()) for n in (one, name))
    for part in ("result", "val", "exposure", "training_text", "corrections", "scrg", "sft_start", "teacher"):
        _same(alone[part], together[part], part)
    tokens = {k: v for k, v in alone["costs"].items() if k.startswith("tokens")}
    assert {k: v for k, v in together["costs"].items() if k.startswith("tokens")} == tokens
    predictions = [(run_of(results, n) / "predictions/test.jsonl").read_text() for n in (one, name)]
    assert predictions[0] == predictions[1]


def _same(a: Any, b: Any, where: str) -> None:
    if isinstance(a, dict):
        assert set(a) == set(b), where
        for key in a:
            _same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list) and a and isinstance(a[0], dict):
        for number, (one, other) in enumerate(zip(a, b, strict=True)):
            _same(one, other, f"{where}[{number}]")
    elif isinstance(a, (float, list)):
        assert b == pytest.approx(a, rel=1e-6, abs=1e-9), where
    else:
        assert a == b, where


@pytest.mark.parametrize("name", ["adamw", "sharded"])
@pytest.mark.parametrize("rank", [0, 1])
def test_nothing_of_a_stage_outlives_it(results: Results, name: str, rank: int) -> None:
    found = json.loads((results[0] / f"{name}.live-{rank}.json").read_text())
    assert found["trained"] > 60
    # of the teacher's two layers, which stays
    kept = {"sharded weights": 18} if name == "sharded" else {}
    assert found["seen"] == {"before the student": {}, "before the main job": kept, "before the test sets": kept}


def test_nothing_is_left_of_what_the_teacher_has_read(results: Results) -> None:
    assert not list(run_of(results, "offloaded").glob(".scored*"))


@pytest.mark.parametrize(("name", "uninterrupted"), [("killed", "adamw"), ("sharded_killed", "sharded")])
def test_a_run_whose_rank_died_resumes_bit_identical(results: Results, name: str, uninterrupted: str) -> None:
    found = differences(run_of(results, uninterrupted), run_of(results, name))
    assert found == ["metrics.arm"]


def test_a_checkpoint_is_taken_up_by_another_strategy_and_by_fewer_ranks(results: Results) -> None:
    # AdamW divides by the square root of squared gradients, which makes more of a last digit
    for part in ("resume", "best"):
        if part == "resume":
            expected, found = state(results, "adamw"), state(results, "crossing")
        else:
            paths = [run_of(results, n) / "checkpoints" / BEST for n in ("adamw", "crossing")]
            expected, found = (read_checkpoint(path)["state_dict"] for path in paths)
        for parameter, value in expected.items():
            torch.testing.assert_close(found[parameter], value, rtol=0, atol=1e-9, msg=parameter)
