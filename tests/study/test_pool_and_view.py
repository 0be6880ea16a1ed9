from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgsr.config.load import fingerprint
from mgsr.data.rows import Message, Row
from mgsr.data.splits import rows_fingerprint
from mgsr.runtime.errors import DataError
from mgsr.study import pool
from mgsr.study.report.words import sentence
from mgsr.study.view import look, right, rouge_l
from tests.study.pooled import STUDY, fill, result_of, study_in

MEAN = '{clip.mode: mean_of_run, clip.run: "{run:full}"}'


def test_the_same_run_counts_once_and_the_first_stays(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    config = study.config("full", 0)
    first = pool.record(study.pool(), result_of(config, 50.0))
    assert pool.record(study.pool(), result_of(config, 99.0)) == first
    (found,) = pool.find(study.pool(), pool.key_of(config))
    assert found["metrics"]["result"]["test"]["rouge_l"] == 50.0
    # another start is another run, and so are other rows
    pool.record(study.pool(), result_of(config, 60.0, start="another"))
    pool.record(study.pool(), result_of(config, 70.0, data="e" * 16))
    assert len(list(pool.find(study.pool(), pool.key_of(config)))) == 3


def test_a_name_or_a_place_changes_no_key_and_a_setting_does(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    full = study.config("full", 0)
    other = study_in(tmp_path, STUDY.replace("full", "all_parts"), "other").config(
        "all_parts", 0, ["run_root=elsewhere"]
    )
    assert pool.key_of(full) == pool.key_of(other)
    assert pool.key_of(full) != pool.key_of(study.config("removed", 0))
    assert pool.key_of(full) != pool.key_of(study.config("full", 1))
    assert pool.key_of(full) == pool.key_of(study.config("full", 0, ["trainer.threads=1"]))
    # a value that is written out and is the default is no setting
    assert pool.key_of(full) == pool.key_of(study.config("full", 0, ["scrg.passes=1"]))


def test_another_numerics_version_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_in(tmp_path)
    fill(study, {"full": 0.0})
    monkeypatch.setattr("mgsr.NUMERICS_VERSION", 99)
    assert look(study, study.pool()).runs == ()


def test_a_file_that_is_broken_or_moved_is_refused(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    path = pool.record(study.pool(), result_of(study.config("full", 0), 50.0))
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "seed": 1}))
    with pytest.raises(DataError, match="holds run"):
        look(study, study.pool())
    del content["metrics"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="metrics"):
        look(study, study.pool())


def test_two_studies_share_a_run_without_a_copy(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    fill(study, {"full": 0.0, "removed": -1.0})
    text = (
        STUDY.replace("study: made_up", "study: second")
        .replace("removed:", "no_span:")
        .replace("[removed]", "[no_span]")
    )
    second = study_in(tmp_path, text, "second")
    assert {run.arm for run in look(second, second.pool()).runs} == {"full", "no_span"}
    assert len(list(study.pool().iterdir())) == 10


def test_only_declared_seeds_make_figures(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    fill(study, {"full": 0.0, "removed": -1.0}, seeds=range(7))
    view = look(study, study.pool())
    assert view.seeds == [0, 1, 2, 3, 4] and view.undeclared == {"full": [5, 6], "removed": [5, 6]}
    assert len(view.frame(rouge_l())) == 10
    assert view.missing == ["other"]


def test_runs_of_other_rows_are_left_out(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    fill(study, {"full": 0.0, "removed": -1.0})
    pool.record(study.pool(), result_of(study.config("full", 0), 10.0, data="e" * 16))
    view = look(study, study.pool())
    assert view.other_data == 1 and len(view.runs) == 10


def test_a_block_is_a_seed_with_its_start(tmp_path: Path) -> None:
    """An arm that another machine ran is compared where its own start has the baseline too."""
    study = study_in(tmp_path)
    fill(study, {"full": 0.0, "removed": -1.0}, spread=0.01)
    pool.record(study.pool(), result_of(study.config("removed", 4), 10.0, start="made elsewhere"))
    view = look(study, study.pool())
    found = view.compared(rouge_l())["removed"]
    assert found.blocks == 5 and found.effect == pytest.approx(-1.0, abs=0.05)
    pool.record(study.pool(), result_of(study.config("full", 4), 11.0, start="made elsewhere"))
    found = look(study, study.pool()).compared(rouge_l())["removed"]
    assert (found.blocks, found.seeds) == (6, 5)
    assert "5 training seeds with 6 starts" in sentence("`removed`", found, "full")


def test_arms_without_all_declared_seeds_are_not_judged(tmp_path: Path) -> None:
    """Who judges half of the seeds, and then all, has looked twice."""
    study = study_in(tmp_path)
    fill(study, {"full": 0.0, "removed": -1.0})
    fill(study, {"other": 3.0}, seeds=range(4))
    view = look(study, study.pool())
    assert view.absent == {"other": [4]} and view.missing == ["other (4)"] and "other" in view.arms
    assert set(view.compared(rouge_l())) == {"removed"}


def test_figures_of_runs(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    pool.record(study.pool(), result_of(study.config("full", 0), 50.0))
    # rows of the second cannot be checked
    result = result_of(study.config("removed", 0), 30.0)
    del result["metrics"]["result"]["test"]["accuracy"]
    result["metrics"]["result"]["test"]["exact_match"] = 7.0
    pool.record(study.pool(), result)
    # kinds of task may be called as measures are
    for path in study.pool().iterdir():
        content = json.loads(path.read_text())
        content["metrics"]["result"]["test"]["accuracy_by_category"] = {"accuracy": 1.0, "right": 2.0}
        path.write_text(json.dumps(content))
    view = look(study, study.pool())
    names = rouge_l(), rouge_l(sampled=True), right(), rouge_l("absent")
    assert [view.mean("full", name) for name in names] == [50.0, 45.0, 25.0, None]
    assert [view.mean("removed", name) for name in names] == [30.0, 25.0, 7.0, None]
    assert view.mean("full", "result/test/accuracy_by_category/right") == 2.0
    assert view.mean("other", rouge_l()) is None and view.known(right()) and not view.known(rouge_l("absent"))


def test_an_arm_that_reads_another_arm_s_run_is_found_wherever_that_lies(tmp_path: Path) -> None:
    study = study_in(tmp_path, STUDY.replace("{scrg.passes: 3}", MEAN))
    fill(study, {"full": 0.0}, seeds=[0, 1])
    for seed in (0, 1):
        (read,) = pool.find(study.pool(), pool.key_of(study.config("full", seed)))
        places = {"full": str(pool.path_in(tmp_path / "away", read))}
        config = study.config("other", seed, recorded=places)
        pool.record(study.pool(), result_of(config, 60.0 + seed, start=f"student-{seed}"))
    view = look(study, study.pool())
    assert [(run.seed, run.result["metrics"]["result"]["test"]["rouge_l"]) for run in view.of("other")] == [
        (0, 60.0),
        (1, 61.0),
    ]
    # bounds of another run are another arm
    second = STUDY.replace("full: {}", "full: {scrg.passes: 2}").replace("{scrg.passes: 3}", MEAN)
    fill(study_in(tmp_path, second, "second"), {"full": 0.0}, seeds=[0, 1])
    assert look(study_in(tmp_path, second, "second"), study.pool()).arms == ["full"]


def test_bounds_of_two_run_folders_are_two_arms(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    words = [["clip.mode=mean_of_run", f"clip.run=runs/{name}/full/seed=0"] for name in "ab"]
    assert pool.key_of(study.config("full", 0, words[0])) != pool.key_of(study.config("full", 0, words[1]))


def test_a_key_is_the_same_on_every_python() -> None:
    """What is recorded with one version has to be found with another: JSON and SHA-256, no `hash` and no `repr`,
    which knows more characters with every version."""
    settings = {"objective.w_span": 0.25, "train.betas": [0.9, 0.98], "arm": "é", "clip.lower": ".inf"}
    assert fingerprint(settings, ["test"], 3) == "7356e0e37a59"
    assert fingerprint(dict(reversed(settings.items())), ["test"], 3) == "7356e0e37a59"
    row = Row(0, "Say 🫨.", "", ("ü",), messages=(Message("user", "Say 🫨."),))
    assert rows_fingerprint([row]) == "90b68e39c7d0da76"
