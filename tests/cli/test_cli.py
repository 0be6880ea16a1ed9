"""The real command line on tiny models: every command end to end, every mistake one line and exit code 2."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mgsr.cli.main import main
from mgsr.cli.parsing import parse
from mgsr.training.checkpoint import resume_points
from tests.reading import resume_content

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tiny_file: Path, shared_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, made by the command line."""
    root = tmp_path_factory.mktemp("cli")
    (root / "cache").symlink_to(shared_root / "cache")
    assert main(["train", str(tiny_file), f"run_root={root}", "train.epochs=2"]) == 0
    return root / "tiny" / "mgsr" / "seed=0"


def refused(capsys: Capture, *words: str, code: int = 2) -> str:
    capsys.readouterr()
    assert main(list(words)) == code
    error = capsys.readouterr().err
    assert error.startswith("mgsr: ") and error.count("\n") == 1 and "Traceback" not in error, error
    return error


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_train_prints_figures_and_where_they_are(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["steps"] == 8 and metrics["result"]["test"]["examples"] == 6


def test_resuming_a_complete_run_changes_nothing(run: Path, capsys: Capture) -> None:
    before = (run / "metrics.json").read_bytes()
    assert main(["train", "--resume", str(run)]) == 0
    assert "complete already" in capsys.readouterr().out
    assert (run / "metrics.json").read_bytes() == before


def test_resuming_with_another_key_is_refused(run: Path, capsys: Capture) -> None:
    assert "train.lr" in refused(capsys, "train", "--resume", str(run), "train.lr=0.1")


def test_a_folder_that_holds_a_run_is_not_overwritten(run: Path, tiny_file: Path, capsys: Capture) -> None:
    root = f"run_root={run.parents[2]}"
    metrics = (run / "metrics.json").rename(run / "kept.json")
    assert "--resume" in refused(capsys, "train", str(tiny_file), root, "train.epochs=2")
    metrics.rename(run / "metrics.json")
    assert "this run is complete" in refused(capsys, "train", str(tiny_file), root, "train.epochs=2")
    assert "train.lr" in refused(capsys, "train", str(tiny_file), root, "train.epochs=2", "train.lr=0.1")


def test_evaluate_a_run_and_a_folder(run: Path, tmp_path: Path, capsys: Capture) -> None:
    data = write(
        tmp_path / "questions.jsonl",
        {"instruction": "Repeat the words.", "input": "red cat", "output": "red cat"},
        {"instruction": "Say it.", "output": ["yes", "no"]},
    )
    out = tmp_path / "figures.json"
    assert main(["evaluate", str(run), "--data", str(data), "--seeds", "1", "2", "3", "--out", str(out)]) == 0
    figures = json.loads(out.read_text())[str(data)]
    by_seed = figures["sampled"]["rouge_l_by_seed"]
    assert set(by_seed) == {"1", "2", "3"} and figures["examples"] == 2
    assert figures["sampled"]["rouge_l"] == pytest.approx(sum(by_seed.values()) / 3)
    # greedily, and once per seed
    answers = [json.loads(line) for line in out.with_suffix(".responses.jsonl").read_text().splitlines()]
    assert [answer["seed"] for answer in answers] == [None, None, 1, 1, 2, 2, 3, 3]
    greedy = [answer["rouge_l"] for answer in answers if answer["seed"] is None]
    assert figures["rouge_l"] == pytest.approx(sum(greedy) / 2, abs=1e-3)
    assert "exists already" in refused(capsys, "evaluate", str(run), "--data", str(data), "--out", str(out))
    folder = tmp_path / "exported"
    assert main(["export", str(run), str(folder)]) == 0
    words = ["evaluate", str(folder), "--data", str(data), "--template", "plain", "--temperature", "0"]
    assert main([*words, "--max-new-tokens", "4"]) == 0
    assert "exists already" in refused(capsys, "export", str(run), str(folder))


def test_evaluate_against_a_teacher(run: Path, tmp_path: Path, capsys: Capture) -> None:
    data = write(tmp_path / "questions.jsonl", *({"instruction": f"Say {n}.", "output": n} for n in "abc"))
    words = ["evaluate", str(run), "--data", str(data), "--seeds", "1"]
    figures = []
    own = run.parents[2] / "cache" / json.loads((run / "teacher.json").read_text())["cache"]
    for number, teacher in enumerate(([], [str(own)])):
        out = tmp_path / f"{number}.json"
        assert main([*words, "--out", str(out), "--teacher", *teacher]) == 0
        assert "ExAccErr" in capsys.readouterr().out
        figures.append(json.loads(out.read_text())[str(data)]["exposure"])
    assert figures[0] == figures[1] and len(figures[0]["ex_acc_err"]) <= 6
    folder = tmp_path / "exported"
    assert main(["export", str(run), str(folder)]) == 0
    assert "--teacher FOLDER" in refused(capsys, "evaluate", str(folder), "--data", str(data), "--teacher")


def test_a_run_is_read_without_its_caches_and_data(run: Path, tmp_path: Path, capsys: Capture) -> None:
    moved = tmp_path / "elsewhere" / "arm" / "seed=0"
    shutil.copytree(run, moved)
    config = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(config.replace("train: synthetic", "train: gone.jsonl"))
    assert main(["export", str(moved), str(tmp_path / "out")]) == 0
    assert main(["export", str(run), str(tmp_path / "same")]) == 0
    left, right = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "same"))
    assert left == right and not (tmp_path / "cache").exists()
    data = write(tmp_path / "q.jsonl", {"instruction": "Say a.", "output": "a"})
    assert "no longer at" in refused(capsys, "evaluate", str(moved), "--data", str(data), "--teacher")


def test_overrides_stand_anywhere(tiny_file: Path) -> None:
    words = parse(
        ["ablate", "study.yaml", "--seeds", "0", "1", "scrg.passes=3", "--config", str(tiny_file), "seed=2"]
    )
    assert words.seeds == [0, 1] and words.overrides == ["scrg.passes=3", "seed=2"] and words.study == "study.yaml"
    assert parse(["train", "scrg.passes=3"]).config is None
    for bad in (["train", "a.yaml", "scrg"], ["evaluate", "run", "--data", "f", "a.b=1"]):
        with pytest.raises(SystemExit):
            parse(bad)
    for number in (["--temperature", "-1"], ["--batch-size", "0"], ["--max-new-tokens", "x"]):
        with pytest.raises(SystemExit):
            parse(["evaluate", "run", "--data", "f", *number])


def test_an_override_may_be_longer_than_a_file_name(tiny_file: Path) -> None:
    word = f"data.train={'a' * 5000}"
    assert parse(["train", str(tiny_file), word]).overrides == [word]


def test_texts_shows_what_was_corrected(run: Path, capsys: Capture) -> None:
    entries = [json.loads(line) for line in (run / "scrg/round=1/shard-00000-00000.jsonl").open()]
    corrected = [entry for entry in entries if entry["corrections"]]
    capsys.readouterr()
    assert main(["texts", str(run), "--number", "3"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("### round 1, example ") == min(3, len(corrected)) > 0
    first = min(corrected, key=lambda entry: entry["example_id"])
    assert f"example {first['example_id']}\n" in shown
    assert f"position {first['corrections'][0]['position']}, KL {first['corrections'][0]['kl']:.2f}" in shown
    assert "it has 0, 1" in refused(capsys, "texts", str(run), "--round", "7")


def test_an_export_needs_no_mgsr(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    assert main(["export", str(run), str(folder)]) == 0
    assert (folder / "README.md").read_text().startswith("---\n") and (folder / "model.safetensors").exists()
    code = (
        "import sys; sys.modules['mgsr'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"m = AutoModelForCausalLM.from_pretrained({str(folder)!r})\n"
        f"t = AutoTokenizer.from_pretrained({str(folder)!r})\n"
        "ids = t('Repeat the words.', return_tensors='pt').input_ids\n"
        "print(m.config.hidden_size, m(ids).logits.shape[-1] == len(t))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "8 True"
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    from safetensors.torch import load_file

    exported = load_file(folder / "model.safetensors")
    for name, value in exported.items():
        assert torch.equal(value, best[f"student.{name}"]), name


def test_a_study_runs_skips_and_summarises(tiny_file: Path, tmp_path: Path, capsys: Capture) -> None:
    study = write(
        tmp_path / "study.yaml",
        f"study: small\nbase: {tiny_file}\narms:\n  mgsr: {{}}\n"
        "  sft_control: {scrg.enabled: false, objective.w_dac: 0.0, objective.w_span: 0.0}",
    )
    words = ["ablate", str(study), f"run_root={tmp_path}/runs", "train.epochs=1", "--seeds", "0", "1"]
    assert main(words) == 0
    summary = json.loads((tmp_path / "runs/small/metrics.json").read_text())
    assert {"teacher", "sft_start", "sft_control", "mgsr"} <= set(summary) and summary["seeds"] == [0, 1]
    assert set(summary["floors"]) == {"echo", "constant", "nearest"}
    found = summary["comparisons"]["sft_control - mgsr"]
    assert found["effect"] == pytest.approx(summary["sft_control"]["rouge_l"] - summary["mgsr"]["rouge_l"])
    assert found["blocks"] == 2
    runs = [json.loads((tmp_path / f"runs/small/mgsr/seed={seed}/metrics.json").read_text()) for seed in (0, 1)]
    for name, read in (("mgsr", "result"), ("sft_start", "sft_start"), ("teacher", "teacher")):
        mean = sum(run[read]["test"]["rouge_l"] for run in runs) / 2
        assert summary[name]["rouge_l"] == pytest.approx(mean)
    shown = capsys.readouterr().out
    assert f"sft_control - mgsr: {found['effect']:+.2f} ROUGE-L" in " ".join(shown.split())
    assert main(words) == 0
    assert "4 of 4 runs complete already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        (['{"instruction": "a", "output": "b"}', '{"instruction": '], (":2:",)),
        ([{"instruction": "a"}], (":1:", "output")),
        ([{"instruction": "a", "output": ""}], (":1:", "output")),
        ([{"instruction": 3, "output": "b"}], (":1:", "instruction")),
        ([], ("data.jsonl",)),
    ],
    ids=["broken line", "missing field", "empty response", "not a string", "empty file"],
)
def test_bad_data_is_named_before_anything_is_written(
    lines: list[object], parts: tuple[str, ...], tiny_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    data = write(tmp_path / "data.jsonl", *lines)
    root = tmp_path / "runs"
    error = refused(capsys, "train", str(tiny_file), f"run_root={root}", f"data.train={data}", f"data.dev={data}")
    for part in (*parts, "data.jsonl"):
        assert part in error, error
    assert not root.exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train", "no_such.yaml"], "no_such.yaml"),
        (["train"], "mgsr init"),
        (["train", "{tiny}", "scrg.pases=1"], "did you mean `passes`"),
        (["train", "{tiny}", "data.train=none.jsonl"], "none.jsonl"),
        (["train", "{tiny}", "teacher.source=nowhere/at/all"], "nowhere/at/all"),
        (["train", "--resume", "nowhere"], "nowhere"),
        (["evaluate", "nowhere", "--data", "{tiny}"], "{tiny}"),
        (["export", "nowhere", "out"], "nowhere"),
        (["ablate", "no_study.yaml"], "no_study.yaml"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], part: str, tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [word.replace("{tiny}", str(tiny_file)) for word in words]
    assert part.replace("{tiny}", str(tiny_file)) in refused(capsys, *filled)


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(Exception, match="no_such"):
        main(["train", "no_such.yaml", "--debug"])


@pytest.mark.parametrize("command", ["train", "evaluate", "export", "ablate", "texts", "config"])
def test_help_has_an_example(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert len(text) > 200 and (command == "config" or f"mgsr {command} " in text)


def test_config_lists_and_checks(tiny_file: Path, capsys: Capture) -> None:
    assert main(["config"]) == 0
    assert "scrg.passes (int) = 1" in capsys.readouterr().out
    assert main(["config", str(tiny_file), "scrg.passes=5"]) == 0
    assert "passes: 5" in capsys.readouterr().out


def test_ctrl_c_ends_with_a_checkpoint_and_the_run_goes_on(tiny_file: Path, tmp_path: Path) -> None:
    """A real signal to a real process: a fork, which need not import everything again."""
    words = ["train", str(tiny_file), f"run_root={tmp_path}", "train.epochs=400"]
    log = tmp_path / "error.txt"

    def command() -> None:
        with log.open("w", buffering=1) as error, contextlib.redirect_stderr(error):
            torch.set_num_threads(1)
            code = main(words)
        sys.exit(code)

    process = multiprocessing.get_context("fork").Process(target=command)
    process.start()
    run = tmp_path / "tiny/mgsr/seed=0"
    for _ in range(1200):
        if resume_points(run) or not process.is_alive():
            break
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(120)
    error = log.read_text()
    assert process.exitcode == 130, error
    last = error.strip().splitlines()[-1]
    assert last.startswith("mgsr: ") and "--resume" in last and "Traceback" not in error
    assert resume_content(run)["global_step"] >= 3
