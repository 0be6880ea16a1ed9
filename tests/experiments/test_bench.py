"""The benchmarks at sizes that take no time: what is timed is right, and the report is made of its results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.bench import ends, objective, problems, report, rounds
from experiments.bench.measure import measure
from experiments.bench.pair import Pair
from experiments.bench.ratios import RATIOS, summary
from tests.scrg.tiny import EOS, prompts, tiny

BENCH = Path(report.__file__).parent


@pytest.mark.parametrize(
    "case", ["mgsr", "mgsr_network", "mgsr_forward_kl", "mgsr_cached_16", "products_64", "products_896"]
)
def test_cases_of_the_objective_run_and_are_measured(case: str) -> None:
    problem = problems.artificial(40, 300, hidden=(8, 12))
    found = measure(lambda: objective.CASES[case](problem), repeats=2, reset=problem.clear)
    assert len(found["seconds"]) == 2 and min(found["seconds"]) > 0 and found["added_bytes"] >= 0


@pytest.mark.parametrize("case", ["mgsr", "mgsr_network"])
def test_the_check_of_the_objective_finds_a_wrong_value_and_a_wrong_gradient(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problems.artificial(40, 300, hidden=(8, 12))
    torch.manual_seed(0)
    clip = objective.CLIP if case == "mgsr" else objective.ClipNetwork()
    for scale, message in ((1.0, None), (1.001, "differs from")):
        problem.clear()
        dense = problem.backward(objective._dense(problem, clip))
        if message is None:
            objective._same(problem, case, dense)
            continue
        with pytest.raises(AssertionError, match=message):
            objective._same(problem, case, dense * scale)
    problem.clear()
    dense = problem.backward(objective._dense(problem, clip))
    assert problem.student.grad is not None
    problem.student.grad[0] += 1.0
    with pytest.raises(AssertionError, match=f"a gradient of {case} differs"):
        objective._same(problem, case, dense)


@pytest.fixture
def pair() -> Pair:
    texts = [(example, tuple(ids)) for example, ids in prompts(12, seed=3)]
    return Pair(tiny("llama", 4), tiny("llama", 2), None, texts, 11, 9, batch_size=5)


@pytest.fixture(autouse=True)
def _ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pair, "eos", EOS)
    monkeypatch.setattr(Pair, "pad", EOS)


def test_both_ways_of_a_round_pass_their_check(pair: Pair) -> None:
    rounds.check(pair, prompts=12)
    assert all(case(pair) > 0 for case in rounds.CASES.values())


def test_the_check_of_a_round_finds_other_text(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    original = rounds.sample
    monkeypatch.setattr(rounds, "sample", lambda *a, **kw: [[*text, 0] for text in original(*a, **kw)])
    with pytest.raises(AssertionError, match="greedy responses agree"):
        rounds.check(pair, prompts=12)


def test_the_ends_of_a_run_are_measured_and_told() -> None:
    figures = {name: [ends.case(name, sequences=70)] for name in ends.NAMES}
    lines, header, rows = ends.told(figures)
    assert [row[0] for row in rows] == list(ends.NAMES.values()) and all(len(row) == len(header) for row in rows)
    assert all(runs[0]["seconds"][0] > 0 for runs in figures.values()) and "in all" in lines[4]


@pytest.mark.long
def test_the_committed_report_is_that_of_the_committed_results(tmp_path: Path) -> None:
    machines = json.loads((BENCH / "results.json").read_text())
    report.write(machines, tmp_path)
    assert (tmp_path / "README.md").read_text() == (BENCH / "README.md").read_text()


def test_what_a_machine_has_not_measured_is_a_dash() -> None:
    lines = summary({"a": {}, "b": {"step": {"figures": {"both": [{"seconds": [2.0], "bare": [1.6]}]}}}})
    assert len(lines) == len(RATIOS) + 3
    assert [line for line in lines if "1.250" in line] == ["| training step: time / a bare loop's | – | 1.250 |"]
