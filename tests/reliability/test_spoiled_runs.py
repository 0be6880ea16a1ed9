"""Runs whose files a user or a disk has spoiled: one line that names the file, or the truth."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgsr.cli.main import main
from mgsr.runtime import faults
from mgsr.runtime.errors import UserError
from mgsr.training.checkpoint import resume_points
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train
from tests.reliability.harness import small_config

Capture = pytest.CaptureFixture[str]
# before the first step of the second epoch, behind SFT, with a best checkpoint and two rounds
WITHIN = "step.begin=full@14"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run, one that was stopped within its second epoch, and one stopped within its first."""
    roots = {name: tmp_path_factory.mktemp(name) for name in ("finished", "stopped", "begun")}
    for name, points in (("begun", "step.begin=full@9"), ("stopped", WITHIN), ("finished", "")):
        if name == "finished":
            shutil.copytree(roots["stopped"], roots[name], dirs_exist_ok=True)
        faults.arm(points)
        try:
            train(small_config(roots[name]), resume=name == "finished")
        except (OSError, UserError):
            assert points
        faults.arm("")
    return roots


@pytest.fixture
def copy(runs: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """The folder of a copy of one of these runs, to be spoiled."""

    def of(name: str) -> Path:
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        shutil.copytree(runs[name], tmp_path, dirs_exist_ok=True)
        return run_folder(small_config(tmp_path))

    return of


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".lock")}


def refused(capsys: Capture, words: list[str], *parts: str) -> str:
    capsys.readouterr()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(part in error for part in parts), error
    return error


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("content", ["[]", "{", "null", '{"steps": 3, "seed": 0, "result": {"test": {}}}', "\xff"])
def test_export_of_a_run_with_broken_figures_writes_nothing(
    copy: Callable[[str], Path], tmp_path: Path, capsys: Capture, content: str
) -> None:
    run = copy("finished")
    (run / "metrics.json").write_bytes(content.encode("latin-1"))
    before = tree(run)
    refused(capsys, ["export", str(run), str(tmp_path / "out")], f"{run}/metrics.json", "measures again")
    refused(capsys, ["train", "--resume", str(run)], f"{run}/metrics.json")
    assert not list(tmp_path.glob("*out*")) and tree(run) == before


def test_a_full_disk_while_exporting_leaves_nothing(
    copy: Callable[[str], Path], tmp_path: Path, capsys: Capture
) -> None:
    run = copy("finished")
    faults.arm("folder.written=full")
    try:
        refused(capsys, ["export", str(run), str(tmp_path / "out")], "No space left", "free some space")
    finally:
        faults.arm("")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("name", ["data.json", "teacher.json", "environment.json", "start.json"])
@pytest.mark.parametrize("content", ["[]", '{"train": 3, "teacher": 3, "cache": 3, "numerics": "x"}'])
def test_what_guards_a_resumed_run_is_not_taken_as_empty(
    copy: Callable[[str], Path], capsys: Capture, name: str, content: str
) -> None:
    run = copy("stopped")
    (run / name).write_text(content)
    checkpoints = tree(run / "checkpoints")
    refused(capsys, ["train", "--resume", str(run)], f"{run}/{name}", "restore it")
    assert (run / name).read_text() == content and tree(run / "checkpoints") == checkpoints


def test_a_teacher_that_was_edited_away_is_missed(copy: Callable[[str], Path], capsys: Capture) -> None:
    run = copy("stopped")
    edit(run / "teacher.json", lambda known: known.update(content=None))
    refused(capsys, ["train", "--resume", str(run)], "the teacher is not the one it began with")


def test_copies_are_no_checkpoints_and_no_rounds(copy: Callable[[str], Path], capsys: Capture) -> None:
    run = copy("stopped")
    points = resume_points(run)
    names = ["{}-2.ckpt", "{} (1).ckpt", "copy of {}.ckpt", "{}_1.ckpt"]
    for name in names:
        (points[0].parent / name.format(points[0].stem)).write_text("")
    (points[0].parent / "resume-\u0661\u0662.ckpt").write_text("")
    shutil.copytree(run / "scrg/round=0", run / "scrg/round=0 (copy)")
    assert resume_points(run) == points
    capsys.readouterr()
    assert main(["texts", str(run)]) == 0
    assert "not finished" in capsys.readouterr().out
    assert main(["train", "--resume", str(run)]) == 0
    assert all((points[0].parent / name.format(points[0].stem)).exists() for name in names)


def forge(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change a round's first shard, and all checksums with it."""
    shard = folder / "shard-00000-00000.jsonl"
    lines = [json.loads(line) for line in shard.read_text().split("\n") if line]
    change(lines)
    content = "".join(json.dumps(line) + "\n" for line in lines)
    shard.write_text(content)
    digest = hashlib.sha256(content.encode()).hexdigest()
    manifest = folder / "manifest.json"
    edit(manifest, lambda m: m["shards"][0].update(sha256=digest))
    edit(shard.with_suffix(".json"), lambda r: r.update(sha256=digest))
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    manifest.with_name("manifest.json.sha256").write_text(f"{digest}  manifest.json\n")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda lines: lines[0].update(example_id=99_999), "example 99999 is no prompt of this round"),
        (
            lambda lines: lines[0].update(example_id=lines[1]["example_id"]),
            "or is there twice",
        ),
        (lambda lines: lines.pop(), "has no text for example"),
    ],
)
def test_a_round_answers_its_prompts_and_no_others(
    copy: Callable[[str], Path], capsys: Capture, change: Callable[[list[dict[str, Any]]], None], part: str
) -> None:
    run = copy("stopped")
    forge(run / "scrg/round=1", change)
    refused(capsys, ["train", "--resume", str(run)], f"{run}/scrg/round=1", part)


@pytest.mark.parametrize(
    "change",
    [lambda m: m["statistics"].update(self_bleu=99.0), lambda m: m.update(shards=[]), lambda m: m.pop("costs")],
)
def test_edited_manifests_are_not_believed(
    copy: Callable[[str], Path], capsys: Capture, change: Callable[[Any], Any]
) -> None:
    run = copy("finished")
    (run / "metrics.json").unlink()
    manifest = run / "scrg/round=0/manifest.json"
    edit(manifest, change)
    refused(capsys, ["train", "--resume", str(run)], str(manifest))
    refused(capsys, ["texts", str(run), "--round", "0"], str(manifest))
    # of the round that is trained on next the shards tell
    run = copy("stopped")
    edit(run / "scrg/round=1/manifest.json", change)
    assert main(["train", "--resume", str(run)]) == 0
    assert "made again from its shards" in capsys.readouterr().out


def test_the_last_student_does_not_stand_for_the_best_one(
    copy: Callable[[str], Path], tmp_path: Path, capsys: Capture
) -> None:
    run = copy("finished")
    best = run / "checkpoints/best.ckpt"
    best.unlink()
    refused(capsys, ["export", str(run), str(tmp_path / "out")], f"{best}: is missing")
    (run / "metrics.json").unlink()
    refused(capsys, ["train", "--resume", str(run)], f"{best}: is missing")
    run = copy("stopped")
    best.unlink()
    error = refused(capsys, ["train", "--resume", str(run)], f"{best}: is missing")
    assert "not the best" in error and not (run / "metrics.json").exists()


def test_one_sampling_seed_has_no_spread(copy: Callable[[str], Path], tmp_path: Path, capsys: Capture) -> None:
    run = copy("finished")
    test = json.loads((run / "metrics.json").read_text())["result"]["test"]["sampled"]
    assert test["rouge_l_std"] is None and len(test["rouge_l_by_seed"]) == 1
    assert main(["train", "--resume", str(run)]) == 0
    assert "answered greedily; sampled: at the configured temperature" in " ".join(capsys.readouterr().out.split())
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    assert "ROUGE-L, sampled" in (tmp_path / "out/README.md").read_text()


def test_what_is_not_finished_says_so(copy: Callable[[str], Path], tmp_path: Path, capsys: Capture) -> None:
    run, rows = copy("stopped"), tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n')
    for words in (
        ["export", str(run), str(tmp_path / "out")],
        ["evaluate", str(run), "--data", str(rows), "--seeds", "1"],
        ["texts", str(run)],
    ):
        capsys.readouterr()
        assert main(words) == 0
        assert "not finished (no metrics.json)" in capsys.readouterr().out, words
    assert "not finished when this was exported" in (tmp_path / "out/README.md").read_text()


def test_resuming_without_a_resume_point_says_that_it_begins(copy: Callable[[str], Path], capsys: Capture) -> None:
    run = copy("stopped")
    shutil.rmtree(run / "checkpoints")
    (run / "teacher.json").unlink()
    (run / "data.json").unlink()
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 0
    said = capsys.readouterr().out
    assert "no resume point in checkpoints/: it begins at step 0" in said
    assert "without data.json nobody can tell" in said


def file_for_folder(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.write_text("")


def folder_for_file(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("scrg", file_for_folder),
        ("checkpoints", file_for_folder),
        ("student", file_for_folder),
        ("predictions", file_for_folder),
        ("checkpoints/resume-*.ckpt", folder_for_file),
        ("checkpoints/resume-*.ckpt.sha256", folder_for_file),
        ("scrg/round=1/shard-00000-00000.jsonl", folder_for_file),
    ],
)
def test_what_is_in_the_way_is_named_and_nothing_is_to_be_deleted(
    copy: Callable[[str], Path], capsys: Capture, name: str, spoil: Callable[[Path], None]
) -> None:
    run = copy("stopped")
    path = max(run.glob(name), default=run / name)
    spoil(path)
    error = refused(capsys, ["train", "--resume", str(run)], str(path), "move it away")
    assert "free some space" not in error and "delete" not in error


def test_a_config_that_differs_is_named_with_both_values(
    copy: Callable[[str], Path], tmp_path: Path, capsys: Capture
) -> None:
    copy("stopped")
    words = [str(tmp_path / "torture.yaml"), f"run_root={tmp_path}/runs", "train.lr=0.5", "scrg.passes=2"]
    refused(capsys, ["train", *words], "train.lr: 0.01 -> 0.5", "scrg.passes: 1 -> 2")
    refused(capsys, ["train", *words, "--resume", "auto"], "train.lr: 0.01 -> 0.5")
