"""Peers on data of one's own: where their results lie, what their report says, from any working folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mgsr.study.run
from mgsr.cli.main import main
from mgsr.config.load import dump, load_config, with_absolute_paths
from mgsr.runtime.errors import ConfigError, UserError
from mgsr.study.report.write_report import report
from mgsr.study.results import write_result
from mgsr.study.run import run_study
from mgsr.study.study import as_run, load_study, result_path
from mgsr.study.written_study import write_study
from mgsr.training.run_folder import run_folder
from tests.study.synthetic import STUDY, make_result, make_study, record

FILES = ("README.md", "report.html")


@pytest.fixture
def own(tmp_path: Path, tiny_file: Path, shared_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a configuration and rows of its own."""
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"say {n}", "output": f"word {n}"} for n in range(16)]
    for name in ("train", "dev", "test"):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = tiny_file.read_text().replace(
        "train: synthetic", "train: train.jsonl\n  dev: dev.jsonl\n  test: test.jsonl"
    )
    Path("conf").mkdir()
    Path("conf/my.yaml").write_text(
        text.replace("epochs: 3", "epochs: 1").replace("seeds: [10, 20]", "seeds: [10]")
    )
    return tmp_path


def test_peers_on_own_data_in_one_line(own: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    line = ["ablate", "baselines", "--config", "conf/my.yaml", "--arms", "gkd", "sft", "trainer.threads=1"]
    assert main([*line, "--question", "Which is best on my rows?"]) == 0
    said = capsys.readouterr().out
    assert "baselines-my: compared with `sft`, as `mgsr` is not among these arms" in said
    assert "baselines-my: test set" in said and "mgsr report runs/baselines-my" in said
    shared = {path.name for path in own.iterdir()}
    assert shared == {"conf", "runs", "train.jsonl", "dev.jsonl", "test.jsonl"}
    # one arm more; the report has all that are there, and the study's own baseline now
    assert main([*line[:5], "mgsr", *line[7:]]) == 0
    runs = own / "runs/baselines-my"
    written = []
    for folder, name in ((own, "runs/baselines-my"), (own / "conf", "../runs/baselines-my/study.yaml")):
        monkeypatch.chdir(folder)
        assert main(["report", name]) == 0
        written.append([(runs / file).read_bytes() for file in FILES])
    assert written[0] == written[1]
    text = (runs / "README.md").read_text()
    assert text.split("```")[1].split("\n")[1:3] == [
        "mgsr ablate baselines --config conf/my.yaml --arms mgsr sft gkd --seeds 0 trainer.threads=1",
        "mgsr report runs/baselines-my",
    ]
    assert "base `conf/my.yaml`" in text and "Difference to `mgsr`" in text
    page = (runs / "report.html").read_text()
    assert '<div class="answer">' not in page, "no question was given"
    assert not [
        word for word in ("demo", "DistiLLM", "experiments/", "Bonferroni", "not yet run") if word in text + page
    ]
    # the study among its runs is a study: what it has is complete, and it was typed as it was typed
    monkeypatch.chdir(own)
    before = (runs / "study.yaml").read_text()
    assert main(["ablate", "runs/baselines-my"]) == 0
    assert (
        "3 of 3 runs complete already" in capsys.readouterr().out and (runs / "study.yaml").read_text() == before
    )


def test_a_question_is_the_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = make_study(tmp_path)
    Path("my.yaml").write_text("evaluation: {one_answer: [count]}\n")
    study = load_study(made.path, "my.yaml")
    assert (study.name, study.question, study.answer, study.looks) == ("sample-my", "", {}, 1)
    assert study.baseline == "full" and study.said_in_base("evaluation.one_answer") == ["count"]
    folder = Path("runs/sample-my")
    for arm in ("removed", "other"):
        write_result(result_path(folder / "results", arm, 0), make_result(study, arm, 0, 50.0))
    write_study(study, folder, ["removed"], ["evaluation.one_answer=[sort]"])
    kept = load_study(folder)
    # what was typed counts, and an edit of the base after the runs does not
    Path("my.yaml").write_text("evaluation: {one_answer: [reverse]}\n")
    assert kept.said_in_base("evaluation.one_answer") == ["sort"]
    assert list(kept.arms) == ["removed", "other"] and kept.baseline == "removed" and kept.contrasts == {}
    text = report(kept).read_text().split("\n\n")
    assert text[1].startswith("```\nmgsr ablate sample/study.yaml --config my.yaml --arms removed other --seeds 0")


def test_a_base_starts_from_the_study_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(tmp_path / "base.yaml").write_text("evaluation: {one_answer: [count]}\n")
    study = make_study(tmp_path, STUDY.replace("base: demo", "base: ../base.yaml"))
    record(study)
    found = []
    (tmp_path / "base").mkdir()
    for number, folder in enumerate((tmp_path, study.path.parent, tmp_path / "base")):
        monkeypatch.chdir(folder)
        out = tmp_path / f"out{number}"
        report(load_study(study.path), out=out)
        found.append([(out / name).read_text() for name in FILES])
    assert found[0] == found[1] == found[2]
    assert (
        "base `../base.yaml`" in found[0][0]
        and "# in this folder\nmgsr ablate ../sample/study.yaml" in found[0][0]
    )
    monkeypatch.chdir(tmp_path)
    for base, said in (
        ("base.yaml", r"`base` is base\.yaml, and starts from .*; write \.\./base\.yaml"),
        ("gone", "no such"),
    ):
        study.path.write_text(STUDY.replace("base: demo", f"base: {base}"))
        with pytest.raises(ConfigError, match=said):
            load_study(study.path)


def test_what_a_written_study_holds_is_read_back(tmp_path: Path, tiny_file: Path) -> None:
    """Infinities, words that YAML changes, places that are filled in: every arm of these studies."""
    for name in ("dac_kl", "scrg", "grid"):
        study = load_study(name, str(tiny_file))
        write_study(study, tmp_path / name, list(study.arms))
        kept = load_study(tmp_path / name)
        assert kept.arms == study.arms and kept.contrasts == study.contrasts
        for arm in study.arms:
            mine, theirs = (each.config(arm, 3, results=Path("r")) for each in (study, kept))
            assert mine == theirs
    assert load_config(tmp_path / "grid/base.yaml").train == load_config(tiny_file).train


def test_words_that_change_models_or_data_leave_the_shipped_answer_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made: list[Any] = []

    def fake(study: Any, seeds: Any, overrides: list[str], **options: Any) -> Any:
        made.append(study)
        raise UserError("enough")

    monkeypatch.setattr(mgsr.study.run, "run_study", fake)
    words = ["teacher.source=./my teacher", "train.max_steps=1", "data.train=d.jsonl"]
    line = ["ablate", "baselines", "--arms", "sft"]
    own = make_study(tmp_path)
    assert main([*line, *words]) == main([*line, *words, "--question", "Mine?"]) == 2
    assert main([*line, "train.max_steps=1"]) == main([*line, *words, "--record"]) == 2
    assert main(["ablate", str(own.path), *words]) == 2
    found, asked, plain, recorded, mine = made
    assert (found.question, found.answer, found.looks) == ("", {}, 1) and asked.question == "Mine?"
    assert plain == recorded == load_study("baselines") and plain.question and plain.looks == 3
    assert mine == replace(own, typed=mine.typed)
    folder = Path("runs/baselines")
    write_result(result_path(folder / "results", "sft", 0), make_result(found, "sft", 0, 50.0))
    write_study(found, folder, ["sft"], words)
    text = report(load_study(folder)).read_text()
    assert "base `demo 'teacher.source=./my teacher' data.train=d.jsonl`" in text
    assert "never did by so much" not in text and "MGSR compare" not in text
    assert "mgsr ablate baselines --arms sft --seeds 0 trainer.threads=1 'teacher.source=./my teacher'" in text
    # among its runs it is as it was typed
    assert as_run(load_study(folder), words) == load_study(folder)


def test_another_length_is_named_alone_and_says_what_helps(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rows", "dev", "test"):
        rows = [json.dumps({"instruction": f"say {n}", "output": f"word {n}"}) for n in range(16)]
        Path(f"{name}.jsonl").write_text("\n".join(rows))
    Path("study").mkdir()
    Path("study/study.yaml").write_text(f"study: length\nbase: {tiny_file}\narms: {{full: {{}}}}\n")
    study = load_study("study")
    words = ["trainer.threads=1", "data.train=rows.jsonl", "data.dev=dev.jsonl", "data.test=test.jsonl"]
    before = with_absolute_paths(study.config("full", 0, [*words, "train.max_steps=4"]))
    assert before.data.train == str(tmp_path / "rows.jsonl")
    run = run_folder(before)
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump(before))
    for beside, folder, helps in (
        (
            False,
            Path("runs/length/results"),
            "delete runs/length to run anew, or name another place with run_root=",
        ),
        (True, study.results, "check that commit out, or delete those of length to run it anew"),
    ):
        path = result_path(folder, "full", 0)
        write_result(path, make_result(study, "full", 0, 50.0))
        with pytest.raises(UserError) as refused:
            run_study(study, [0], words, record=beside)
        assert "(train.max_steps: 4 -> 0) (commit 0123456); " in str(refused.value)
        assert str(refused.value).endswith(helps)
    # what is installed has no commit
    result = make_result(study, "full", 0, 50.0)
    result["environment"]["commit"] = "unknown"
    write_result(path, result)
    with pytest.raises(UserError, match="0\\); results are never mixed: delete those"):
        run_study(study, [0], words, record=True)
