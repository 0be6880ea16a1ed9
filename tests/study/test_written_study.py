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
from mgsr.study import pool
from mgsr.study.report.write import report
from mgsr.study.run import run_study
from mgsr.study.study import Study, as_run, load_study
from mgsr.study.view import look
from mgsr.study.written_study import write_study
from mgsr.training.run_folder import run_folder
from tests.study.pooled import BASE, STUDY, fill, result_of, study_in

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
    question = ["--question", "Which is best on my rows?"]
    assert main([*line, *question]) == 0
    said = capsys.readouterr().out
    assert "baselines-my: compared with `sft`, as `full` is not among these arms" in said
    assert "baselines-my: test set" in said and "mgsr report runs/baselines-my" in said
    shared = {path.name for path in own.iterdir()}
    assert shared == {"conf", "runs", "train.jsonl", "dev.jsonl", "test.jsonl"}
    # one arm more; the report has all that are there, and the study's own baseline now
    assert main([*line[:5], "full", *line[7:], *question]) == 0
    runs = own / "runs/baselines-my"
    written = []
    for folder, name in ((own, "runs/baselines-my"), (own / "conf", "../runs/baselines-my/study.yaml")):
        monkeypatch.chdir(folder)
        assert main(["report", name]) == 0
        written.append([(runs / file).read_bytes() for file in FILES])
    assert written[0] == written[1]
    text = (runs / "README.md").read_text()
    assert "Which is best on my rows?" in text
    assert text.split("```")[1].split("\n")[1:3] == [
        "mgsr ablate baselines --config conf/my.yaml --question 'Which is best on my rows?' --arms full sft gkd "
        "--seeds 0 trainer.threads=1",
        "mgsr report runs/baselines-my",
    ]
    assert "Base `conf/my.yaml`" in text and "Difference to full with 95 %" in text
    page = (runs / "report.html").read_text()
    assert not [word for word in ("demo", "DistiLLM", "experiments/", "not recorded") if word in text + page]
    # the study among its runs is a study: what it has is complete, and it was typed as it was typed
    monkeypatch.chdir(own)
    before = (runs / "study.yaml").read_text()
    assert main(["ablate", "runs/baselines-my"]) == 0
    assert (
        "3 of 3 runs complete already" in capsys.readouterr().out and (runs / "study.yaml").read_text() == before
    )
    # a report at once, below another root
    (own / "runs").rename("my runs")
    assert main(["ablate", "my runs/baselines-my", "run_root=my runs", "--report"]) == 0
    said = capsys.readouterr().out
    assert "tensorboard --logdir 'my runs/baselines-my'" in said and "mgsr report 'my runs/baselines-my'" in said
    assert said.endswith("written to my runs/baselines-my/README.md and my runs/baselines-my/report.html\n")


def record(study: Study, arm: str, rouge_l: float, run_root: str = "runs") -> None:
    config = study.config(arm, 0)
    pool.record(study.pool(run_root, record=False), result_of(config, rouge_l))


def test_another_base_has_an_own_study_without_the_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = study_in(tmp_path, STUDY + "contrasts: {part: {with: [full], without: [removed]}}\n")
    Path("my.yaml").write_text(BASE + "train: {lr: 0.25}\n")
    study = load_study(made.path, "my.yaml")
    assert (study.name, study.question, study.asked, study.seeds, study.settings) == ("made_up-my", "", (), (), {})
    assert study.baseline == "full"
    assert (made.question, made.asked, made.seeds) == ("Does the part help?", ("removed",), (0, 1, 2, 3, 4))
    folder = Path("runs/made_up-my")
    write_study(study, folder, ["other"], ["train.epochs=7"], [3])
    write_study(study, folder, ["removed"], ["train.epochs=7"], [0])
    kept = load_study(folder)
    # what was typed counts, and an edit of the base after the runs does not
    Path("my.yaml").write_text(BASE + "train: {lr: 0.5}\n")
    config = kept.config("other", 0)
    assert (config.train.lr, config.train.epochs, config.scrg.passes) == (0.25, 7, 3)
    # arms and seeds of an earlier command with this base stay; without its arms there is no contrast
    assert list(kept.arms) == ["removed", "other"] and kept.baseline == "removed" and kept.contrasts == {}
    assert kept.seeds == (0, 3)
    for arm in kept.arms:
        record(kept, arm, 50.0)
    # and those of another base do not
    write_study(load_study(made.path, "my.yaml"), Path("runs/later"), ["other"], ["train.epochs=7"], [3])
    write_study(load_study(made.path, "my.yaml"), Path("runs/later"), ["removed"], ["train.epochs=8"], [0])
    later = load_study(Path("runs/later"))
    assert list(later.arms) == ["removed"] and later.seeds == (0,)
    # a word that changes no figure is no other base
    words = ["train.epochs=8", "trainer.threads=3", "run_root=elsewhere"]
    write_study(load_study(made.path, "my.yaml"), Path("runs/later"), ["other"], words, [1])
    assert list(load_study(Path("runs/later")).arms) == ["removed", "other"]
    text = report(kept)[0].read_text()
    assert "# Study: made_up-my\n\n**" in text
    assert "Base `my.yaml`, with `train.epochs=7`, 2 runs" in text and "All arms have the base's learning" in text
    assert text.split("```")[1].split("\n")[1:3] == [
        "mgsr ablate made_up/study.yaml --config my.yaml --arms removed other --seeds 0 train.epochs=7",
        "mgsr report runs/made_up-my",
    ]


def test_a_base_starts_from_the_study_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_in(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)
    study.path.write_text(STUDY.replace("base: base", "base: ../base.yaml"))
    study = load_study(study.path)
    fill(study, {"full": 0.0, "removed": -1.0})
    found = []
    (tmp_path / "base").mkdir()
    for number, folder in enumerate((tmp_path, study.path.parent, tmp_path / "base")):
        monkeypatch.chdir(folder)
        out = tmp_path / f"out{number}"
        report(load_study(study.path), out=out)
        found.append([(out / name).read_text() for name in FILES])
    assert found[0] == found[1] == found[2]
    assert (
        "Base `../base.yaml`" in found[0][0]
        and "# in this folder\nmgsr ablate ../made_up/study.yaml --arms full removed" in found[0][0]
    )
    monkeypatch.chdir(tmp_path)
    for base, said in (
        ("base.yaml", r"`base` is base\.yaml, and starts from .*; write \.\./base\.yaml"),
        ("gone", "no such"),
    ):
        (study.path.parent / "base.yaml").unlink(missing_ok=True)
        study.path.write_text(STUDY.replace("base: base", f"base: {base}"))
        with pytest.raises(ConfigError, match=said):
            load_study(study.path)


def test_what_a_written_study_holds_is_read_back(tmp_path: Path, tiny_file: Path) -> None:
    """Infinities, words that YAML changes, places that are filled in: every arm of these studies."""
    odd = """
study: odd
base: base
asked: [on, '010']
seeds: [7, 3]
margin: 0.25
arms:
  full: {}
  on: {clip.mode: fixed, clip.lower: -.inf}
  '010': {data.synthetic.seed: 4, arm_is: x}
  mean: {clip.mode: mean_of_run, clip.run: "{run:full}"}
""".replace(", arm_is: x", "")
    studies = [load_study(name, str(tiny_file)) for name in ("scrg", "span")]
    for study in [*studies, study_in(tmp_path / "own", odd)]:
        write_study(study, tmp_path / study.name, list(study.arms), (), study.seeds)
        kept = load_study(tmp_path / study.name)
        assert kept.arms == study.arms and kept.contrasts == study.contrasts and kept.asked == study.asked
        assert (kept.margin, kept.seeds) == (study.margin, tuple(sorted(study.seeds)))
        for arm in study.arms:
            mine, theirs = (each.config(arm, 3, recorded={"full": "r.json"}) for each in (study, kept))
            assert mine == theirs
            assert pool.key_of(mine) == pool.key_of(theirs)
    assert load_config(tmp_path / "scrg-tiny/base.yaml").train == load_config(tiny_file).train


def test_words_that_change_models_or_data_leave_the_shipped_question_out(
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
    own = study_in(tmp_path)
    assert main([*line, *words]) == main([*line, *words, "--question", "Mine?"]) == 2
    assert main([*line, "train.max_steps=1"]) == main([*line, *words, "--record"]) == 2
    assert main(["ablate", str(own.path), *words]) == 2
    found, asked, plain, recorded, mine = made
    assert (found.question, found.asked, found.seeds) == ("", (), ()) and asked.question == "Mine?"
    assert plain == recorded == load_study("baselines") and plain.question
    assert mine == replace(own, typed=mine.typed)
    folder = Path("runs/baselines")
    write_study(found, folder, ["sft"], words)
    kept = load_study(folder)
    record(kept, "sft", 50.0)
    text = report(kept)[0].read_text()
    assert "Base `demo 'teacher.source=./my teacher' data.train=d.jsonl`, with `train.max_steps=1`, 1 run" in text
    assert plain.question not in text
    assert "mgsr ablate baselines --arms sft --seeds 0 'teacher.source=./my teacher'" in text
    # among its runs it is as it was typed
    assert as_run(kept, words) == kept


def test_a_typed_learning_rate_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run_root=r2", "trainer.threads=1", "train.lr=0.5", "train.lr=0.02"]
    write_study(study_in(tmp_path), Path("r2/made_up"), ["full", "removed"], words)
    kept = load_study("r2/made_up")
    for arm in kept.arms:
        record(kept, arm, 50.0, "r2")
    text = report(kept)[0].read_text()
    assert "Base `made_up/base.yaml`, with `train.lr=0.02`, 2 runs" in text
    assert "All arms have the typed learning rate." in text


def test_a_run_of_another_length_is_refused_in_its_folder_and_found_in_the_pool(
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
    (run / "checkpoints").mkdir()
    # that key alone
    with pytest.raises(UserError, match=r"length/full/seed=0: .* \(train\.max_steps: 4 -> 0\)"):
        run_study(study, [0], words)
    # what was written before the run was refused says what was asked for
    kept = load_study("runs/length")
    assert kept.arguments == tuple(words) and kept.pool() == Path("runs/results")
    config = study.config("full", 0, words)
    pool.record(kept.pool(), result_of(config, 61.0, data=pool.data_of(config)))
    summary = run_study(study, [0], words)
    assert summary["full"]["rouge_l"] == 61.0
    # the study among its runs finds it without a word, the one that was typed only with those words
    assert [run.arm for run in look(kept, kept.pool()).runs] == ["full"]
    assert [run.arm for run in look(study, kept.pool(), words).runs] == ["full"]
