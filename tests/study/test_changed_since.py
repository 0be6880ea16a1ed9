"""A run counts for what it was made of: a model or a function that has changed since makes another run."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mgsr.study.run
from mgsr.runtime.errors import UserError
from mgsr.study import pool
from mgsr.study.run import run_study
from mgsr.study.view import look
from mgsr.study.written_study import write_study
from mgsr.training.run_folder import METRICS, START, open_run_folder, run_folder
from tests.study.pooled import STUDY, result_of, study_in

OWN = STUDY.replace("other: {scrg.passes: 3}", "other: {objective.divergence: own_losses:mine}")
CODE = """
from mgsr.losses import forward_kl


def mine(teacher_logits, student_logits, *, temperature=1.0):
    return {} * forward_kl(teacher_logits, student_logits, temperature=temperature)
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_losses", raising=False)

    def write(factor: float) -> None:
        (tmp_path / "own_losses.py").write_text(CODE.format(factor))

    write(1.0)
    return write


def test_a_complete_run_of_code_that_has_changed_is_refused(
    code: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_in(tmp_path, OWN)
    made: list[str] = []

    def train(config: Any, **_: Any) -> None:
        made.append(config.arm)
        folder = run_folder(config)
        folder.mkdir(parents=True)
        result = result_of(config, 50.0)
        start = {"teacher": None, **result["start"]}
        (folder / START).write_text(json.dumps(start))
        (folder / METRICS).write_text(json.dumps({"steps": 1, "seed": 0, **result["metrics"]}))

    def collect(folder: Path, config: Any) -> Any:
        start = json.loads((folder / START).read_text())
        return {**result_of(config, 50.0), "data": pool.data_of(config), "start": start}

    monkeypatch.setattr(mgsr.study.run, "train", train)
    monkeypatch.setattr(mgsr.study.run, "prepare", lambda config: None)
    monkeypatch.setattr(pool, "collect", collect)
    words = [f"run_root={tmp_path}/runs"]
    for _ in range(2):
        run_study(study, [0], words)
        # the second time all of it is complete
        assert made == ["full", "removed", "other"]
    place = study.pool(tmp_path / "runs", record=False)
    assert len({run.arm for run in look(study, place).runs}) == 3
    code(2.0)
    with pytest.raises(UserError, match=r"other/seed=0: complete, but .* code of your own, changed since"):
        run_study(study, [0], words)
    # both are kept where the folder is made anew, and are not taken for one
    run_study(study, [0], [f"run_root={tmp_path}/anew"])
    for path in (tmp_path / "anew/results").glob("*.json"):
        (place / path.name).write_bytes(path.read_bytes())
    found = look(study, place)
    assert [run.arm for run in found.runs] == ["full", "removed", "other"] and found.other_data == 1


def test_a_begun_run_of_code_that_has_changed_is_refused(code: Any, tmp_path: Path) -> None:
    from mgsr.config.own_functions import own_code

    config = study_in(tmp_path, OWN).config("other", 0, [f"run_root={tmp_path}/runs"])
    assert list(own_code(config)) == ["objective.divergence"]
    folder = run_folder(config)
    open_run_folder(folder, config, resume=False, data=own_code(config))
    (folder / "checkpoints").mkdir()
    open_run_folder(folder, config, resume=True, data=own_code(config))
    code(2.0)
    said = re.escape("the code that `objective.divergence` names is not what it began with")
    with pytest.raises(UserError, match=said):
        open_run_folder(folder, config, resume=True, data=own_code(config))


def test_a_student_that_has_changed_makes_another_run_of_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = study_in(tmp_path).config("full", 0)
    was = pool.data_of(config)
    assert pool.shared_part(was) == was
    names = []
    for content in ("one", "two"):
        monkeypatch.setattr(pool, "content_of", lambda model, now=content: now if model.source == "S" else "")
        own = replace(config, student=replace(config.student, source="S"))
        data = pool.data_of(own)
        assert data != was and pool.shared_part(data) == pool.shared_part(was)
        names.append(pool.path_in(tmp_path, {**result_of(own, 1.0), "data": data}).name)
    assert len({*names}) == 2 and all(pool.FILE.fullmatch(name) for name in names)


def test_what_a_study_declares_is_not_widened_by_what_is_typed(tmp_path: Path) -> None:
    study = study_in(tmp_path, STUDY)
    assert study.seeds
    write_study(study, tmp_path / "runs/made_up", list(study.arms), (), [*study.seeds, 77])
    assert f"seeds:\n- {study.seeds[0]}" in (tmp_path / "runs/made_up/study.yaml").read_text()
    assert "77" not in (tmp_path / "runs/made_up/study.yaml").read_text()
    open_study = replace(study, seeds=())
    for seeds in ([3], [1]):
        write_study(open_study, tmp_path / "runs/open", list(study.arms), (), seeds)
    assert "seeds:\n- 1\n- 3" in (tmp_path / "runs/open/study.yaml").read_text()
