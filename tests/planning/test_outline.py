"""What a run will do, in words, agrees with what it does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mgsr.planning.outline
from mgsr import models
from mgsr.cli.main import main
from mgsr.config.load import load_config
from mgsr.config.schema import ExperimentConfig
from mgsr.data.splits import encode_quietly, read_split
from mgsr.data.tokenizer import train_tokenizer
from mgsr.models.preflight import check_run
from mgsr.planning.doctor_data import look_at_tokenizers
from mgsr.planning.findings import Report
from mgsr.planning.outline import outline
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train

Make = Callable[..., ExperimentConfig]


def lines_of(config: ExperimentConfig) -> dict[str, str]:
    rows = {split: read_split(config.data, split) for split in ("train", "dev", "test", *config.data.test_sets)}
    tokenizer = look_at_tokenizers(config, Report())
    assert tokenizer is not None
    found = outline(config, rows, check_run(config, rows), tokenizer)
    return {name: text.strip() for name, _, text in (line.partition(" ") for line in found)}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one's own and three files of rows."""
    root = tmp_path_factory.mktemp("own")
    texts = ["Below is an instruction that describes a task. Say the opposite of the word."] * 3
    tokenizer = train_tokenizer(texts, vocab_size=300)
    for name, layers in (("big", 4), ("small", 2)):
        shape = {"hidden_size": 8, "num_layers": layers, "num_heads": 2, "max_position_embeddings": 512, "seed": 0}
        model = models.build_causal_lm("llama", vocab_size=len(tokenizer), eos_token_id=1, **shape)
        models.save_model_folder(model, tokenizer, root / name)
    for split, number in (("train", 20), ("dev", 3), ("test", 3)):
        rows = [
            {"instruction": f"Say the opposite of {split} {i}.", "output": "a b " * i} for i in range(1, number)
        ]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def words(own: Path, *more: str) -> list[str]:
    return [
        *(f"data.{split}={own}/{split}.jsonl" for split in ("train", "dev", "test")),
        *(f"teacher.source={own}/big", f"student.source={own}/small", "trainer.accelerator=cpu"),
        *("scrg.max_new_tokens=4", "evaluation={seeds: [10], max_new_tokens: 4}", *more),
    ]


def test_rows_lengths_layers_and_steps(own: Path) -> None:
    found = lines_of(load_config(None, words(own)))
    assert found["teacher"].startswith(f"{own}/big, ") and found["teacher"].endswith("4 layers; taken as it is")
    assert found["rows"].startswith(f"train 19 rows of {own}/train.jsonl; dev 2 rows of {own}/dev.jsonl; ")
    assert "of the 19 rows 0 prompts cut to 256 tokens, 0 answers" in found["lengths"]
    assert found["lengths"].endswith("answers end with <eos>")
    assert found["training"] == "1 step (1 epoch) of 32 rows, learning rate 2e-05"
    assert "50% of what is trained on, in 1 round: SCRG" in found["text"]
    assert found["device"] == "cpu, precision 32-true" and found["result"] == "runs/mgsr/main/seed=0"
    limited = ["data.train_limit=8", "data.max_prompt_length=100", "data.max_length=108", "train.batch_size=4"]
    config = load_config(None, words(own, *limited, "student.source=teacher", "student.keep_layers=[0,3]"))
    found = lines_of(config)
    assert found["student"] == "a copy of the teacher with 2 of its 4 layers; taken as it is"
    assert found["rows"].startswith(f"train 8 of 19 rows (data.train_limit) of {own}/train.jsonl")
    cut = encode_quietly(read_split(config.data, "train"), models.load_tokenizer(own / "big"), config.data)
    assert cut.truncated_responses > 1
    assert f"of the 8 rows {cut.truncated_prompts} prompts cut to 100 tokens, " in found["lengths"]
    assert f"{cut.truncated_responses} answers cut so that both fit 108" in found["lengths"]
    assert found["training"].startswith("2 steps (1 epoch) of 4 rows")


@pytest.mark.parametrize("units", [True, False])
def test_bf16_on_a_processor_without_units_is_said_to_be_slow(
    own: Path, monkeypatch: pytest.MonkeyPatch, units: bool
) -> None:
    monkeypatch.setattr(mgsr.planning.outline, "has_bf16_units", lambda: units)
    slow = ", which is slower than 32-true on this processor: it has no units for bf16 (AMX, AVX512-BF16)"
    for precision in ("bf16-mixed", "bf16-true"):
        device = lines_of(load_config(None, words(own, f"trainer.precision={precision}")))["device"]
        assert device == f"cpu, precision {precision}{'' if units else slow}"
    assert lines_of(load_config(None, words(own)))["device"] == "cpu, precision 32-true"


def test_adapters_ranks_and_no_text(own: Path) -> None:
    more = ["student.lora={r: 2, target_modules: [q_proj]}", "trainer.devices=2", "train.micro_batch_size=4"]
    found = lines_of(load_config(None, words(own, *more, "scrg.enabled=false", "train.batch_size=16")))
    assert found["student"].endswith(
        "2 layers; taken as it is; adapters of rank 2 on q_proj are trained, all else stays"
    )
    assert found["training"].endswith("a step is 2 forwards of 4 on each device")
    assert found["device"] == "2 x cpu, ddp, precision 32-true"
    assert found["text"] == "none is written: trained on the rows alone"


def test_what_is_fine_tuned_first_and_where_a_run_goes_on(make_config: Make, tmp_path: Path) -> None:
    config = make_config(f"run_root={tmp_path}", "train.epochs=1", "trainer.checkpoint_every_n_steps=2")
    before = lines_of(config)
    assert before["teacher"].endswith("2 layers; fine-tuned first on 48 rows: 6 steps (2 epochs)")
    assert before["student"].endswith("1 layer; fine-tuned first on 32 rows: 4 steps (2 epochs)")
    assert "synthetic" in before["rows"] and not list(tmp_path.iterdir()), "nothing is written"
    told: list[Any] = []
    metrics = train(config, announce=lambda *what: told.append(what))
    assert len(told) == 1 and metrics["steps"] == 4 and before["training"].startswith("4 steps (1 epoch)")
    after = lines_of(config)
    assert "fine-tuned already, in " in after["teacher"] and "fine-tuned already, in " in after["student"]
    assert after["result"].endswith("complete already: another arm, seed or experiment begins a new run")
    (run_folder(config) / "metrics.json").unlink()
    assert lines_of(config)["result"].endswith("begun: --resume goes on at step 4 of 4")


def test_train_and_doctor_need_no_file_and_say_the_same(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = words(own)
    assert main(["doctor", *given]) == 0
    said = capsys.readouterr().out.partition("what `mgsr train` will do:\n")[2].splitlines()[:9]
    assert not list(tmp_path.iterdir())
    assert main(["train", *given, "train.lr=1e-4", "train.lr=2e-5"]) == 0
    out = capsys.readouterr()
    assert out.out.splitlines()[: len(said)] == [line.strip() for line in said]
    assert "`train.lr` is given more than once; the last holds: train.lr=2e-5" in out.err
    assert main(["init", *given]) == 0
    (tmp_path / "my.yaml").write_text(capsys.readouterr().out)
    assert main(["doctor", "my.yaml"]) == 0
    assert main(["plan", *given, "--gpu", "1GB"]) == 0


def test_a_broken_student_is_refused_before_its_teacher_is_fine_tuned(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    broken = models.load_causal_lm(own / "small")
    with torch.no_grad():
        next(broken.parameters())[3] = float("nan")
    models.save_model_folder(broken, models.load_tokenizer(own / "small"), tmp_path / "broken")
    stage = ["teacher.sft.enabled=true", "teacher.sft.max_steps=1", f"student.source={tmp_path}/broken"]
    assert main(["train", *words(own, *stage)]) == 2
    told = capsys.readouterr()
    assert "holds NaN or infinity" in told.err and "supervised fine-tuning," not in told.out
