"""Code that is shown to give the same numbers counts as the same; code that does not, does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mgsr.cli.main import main
from mgsr.runtime.errors import DataError, UserError
from mgsr.study.results import read_result, result_path, write_result
from mgsr.study.run import run_study
from mgsr.study.same_code import add_shown, canonical, read_groups, same_hashes
from mgsr.study.study import Study
from mgsr.study.verify import differences, verify
from tests.study.test_ablate import QUICK, make


@pytest.fixture
def recorded(tiny_file: Path, shared_root: Path, tmp_path: Path) -> tuple[Study, list[str], Path]:
    """A study whose one run claims to come from older code."""
    study = make(tmp_path, tiny_file, tmp_path.name, "\n  full: {}\n")
    overrides = [f"run_root={shared_root}", *QUICK]
    run_study(study, [0], overrides, record=True)
    path = result_path(study.results, "full", 0)
    result = read_result(path)
    assert result is not None
    result["hashes"]["code"] = "older"
    write_result(path, result)
    return study, overrides, path


def test_runs_that_repeat_make_the_code_the_same(recorded: tuple[Study, list[str], Path]) -> None:
    study, overrides, _ = recorded
    with pytest.raises(UserError, match="mgsr verify"):
        run_study(study, [0], overrides, record=True)
    assert verify(study, [0], [], overrides=overrides) == []
    groups = read_groups(study.path.parent.parent)
    assert groups[0]["codes"][0] == "older" and len(groups[0]["codes"]) == 2
    assert groups[0]["shown"][0]["runs"] == [f"{study.name}/full/seed=0"]
    run_study(study, [0], overrides, record=True)


def test_a_number_that_differs_is_named_and_nothing_is_noted(
    recorded: tuple[Study, list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    study, overrides, path = recorded
    result: Any = read_result(path)
    result["metrics"]["result"]["test"]["rouge_l"] += 1e-6
    write_result(path, result)
    assert main(["verify", str(study.path), *overrides]) == 1
    assert "metrics.result.test.rouge_l: " in capsys.readouterr().out
    assert read_groups(study.path.parent.parent) == []
    with pytest.raises(UserError, match="seed 1 is not recorded"):
        verify(study, [1], [], overrides=overrides)
    with pytest.raises(UserError, match="no arm `gone`"):
        verify(study, [0], ["gone"], overrides=overrides)
    with pytest.raises(UserError, match="recorded for another config"):
        verify(study, [0], [], overrides=[*overrides, "train.lr=0.3"])


def test_groups_grow_and_are_read_back(tmp_path: Path) -> None:
    assert read_groups(tmp_path) == []
    add_shown(tmp_path, "a", "b", {"runs": ["x"]})
    add_shown(tmp_path, "b", "c", {"runs": ["y"]})
    groups = read_groups(tmp_path)
    assert groups[0]["codes"] == ["a", "b", "c"] and len(groups[0]["shown"]) == 2
    assert canonical("c", groups) == "a" and canonical("d", groups) == "d"
    assert same_hashes({"code": "a", "data": "1"}, {"code": "c", "data": "1"}, groups) == []
    assert same_hashes({"code": "a", "data": "1"}, {"code": "d", "data": "2"}, groups) == ["code", "data"]
    (tmp_path / "same_code.json").write_text(json.dumps([{"codes": "a"}]))
    with pytest.raises(DataError, match=r"same_code\.json"):
        read_groups(tmp_path)


def test_what_counts_as_a_difference() -> None:
    before = {"a": [1, {"b": 2.0}], "seconds_training": 1.0, "gone": None}
    after = {"a": [1, {"b": 2.5}], "seconds_training": 9.0, "new": 3}
    assert differences(before, after) == ["a[1].b: 2.0 -> 2.5", "gone: missing"]
    assert differences([1, 2], [1]) == [": [1, 2] -> [1]"]
