"""Runs of one seed began with the same teacher and SFT student, by fingerprint or else by figure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mgsr.runtime.errors import DataError, UserError
from mgsr.study.results import recorded, result_path, write_result
from mgsr.study.starting_models import refuse_other_start
from tests.study.synthetic import FIGURES, STUDY, make_result, make_study, readme_of


def test_a_run_that_began_with_other_models_than_its_seed_is_not_recorded(tmp_path: Path) -> None:
    study = make_study(tmp_path, STUDY.replace("{scrg.passes: 3}", "{teacher.sft.lr: 0.5}"))

    def begun(arm: str, seed: int, teacher: float, student: float) -> dict[str, Any]:
        result = make_result(study, arm, seed, 60.0)
        result["metrics"]["teacher"] = {"test": {"rouge_l": teacher}}
        result["metrics"]["sft_start"] = {"test": {"rouge_l": student}}
        return result

    write_result(result_path(study.results, "full", 0), begun("full", 0, 85.17, 44.0))
    refuse_other_start(study.results, begun("removed", 0, 85.17, 44.0))
    # another seed has a student of its own; an arm that sets the teacher has another one on purpose
    refuse_other_start(study.results, begun("removed", 1, 85.17, 45.0))
    refuse_other_start(study.results, begun("other", 0, 70.0, 44.0))
    place = re.escape(str(result_path(study.results, "removed", 0)))
    with pytest.raises(UserError, match=f"{place}: not recorded, as full, seed 0, .* 85.17 on test, here 84.98"):
        refuse_other_start(study.results, begun("removed", 0, 84.98, 44.0))
    with pytest.raises(UserError, match="another SFT student"):
        refuse_other_start(study.results, begun("removed", 0, 85.17, 44.1))


def test_fingerprints_decide_where_both_results_have_them(tmp_path: Path) -> None:
    study = make_study(tmp_path)

    def begun(arm: str, seed: int, student: str | None, rouge_l: float = 44.0) -> dict[str, Any]:
        result = make_result(study, arm, seed, FIGURES[arm][seed])
        result["metrics"]["sft_start"] = {"test": {"rouge_l": rouge_l}}
        if student is not None:
            result["start"] = {"teacher": None, "student": student}
        return result

    for seed in (0, 1):
        write_result(result_path(study.results, "full", seed), begun("full", seed, "aa" * 32))
    # the same weights have the same figures; what was recorded before has figures alone
    refuse_other_start(study.results, begun("removed", 0, "aa" * 32, 45.0))
    refuse_other_start(study.results, begun("removed", 0, None))
    with pytest.raises(UserError, match=r"another SFT student .ROUGE-L 44.00 on test, here 44.50"):
        refuse_other_start(study.results, begun("removed", 0, None, 44.5))
    with pytest.raises(UserError, match=r"another SFT student .fingerprint aaaaaaaaaaaa, here bbbbbbbbbbbb"):
        refuse_other_start(study.results, begun("removed", 0, "bb" * 32))
    # of another numerics version the models are others anyway
    other = begun("removed", 0, "bb" * 32)
    other["environment"]["numerics"] += 1
    refuse_other_start(study.results, other)
    write_result(result_path(study.results, "removed", 0), begun("removed", 0, "aa" * 32))
    assert "began with the same models" not in readme_of(study)
    write_result(result_path(study.results, "removed", 1), begun("removed", 1, "bb" * 32))
    assert "**Not all runs of training seed 1 began with the same models:**" in readme_of(study)


@pytest.mark.parametrize("content", ["{", "[]", '{"arm": "full"}'])
def test_a_broken_result_is_not_passed_over_where_runs_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    study = make_study(tmp_path)
    path = result_path(study.results, "full", 0)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(DataError, match=re.escape(str(path))):
        refuse_other_start(study.results, make_result(study, "removed", 0, 50.0))
    # another study's is: its runs are only looked through for the same ones
    assert list(recorded(tmp_path)) == []
    said = capsys.readouterr().out
    assert str(path) in said and "passed over" in said
