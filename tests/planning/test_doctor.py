"""`mgsr doctor`: what it finds, and that its account of memory is true."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mgsr import models
from mgsr.cli.main import main
from mgsr.config.load import load_config
from mgsr.data.tokenizer import train_tokenizer
from mgsr.planning.doctor import examine
from mgsr.planning.model_size import fake_models, model_size
from mgsr.planning.peak_memory import activations, largest
from tests.reliability.harness import forked
from tests.reliability.memory_probe import probe

Capture = pytest.CaptureFixture[str]
# of malloc.h
M_MMAP_THRESHOLD = -3


def rows_file(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def task(i: int, answer: str = "yes") -> dict[str, str]:
    return {"instruction": f"Question number {i}?", "output": answer}


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Overrides that put small files in the place of the synthetic set."""
    files = {
        "train": rows_file(tmp_path / "train.jsonl", [task(i) for i in range(40)]),
        "dev": rows_file(tmp_path / "dev.jsonl", [task(i) for i in range(100, 106)]),
        "test": rows_file(tmp_path / "test.jsonl", [task(i) for i in range(200, 206)]),
    }
    return [f"run_root={tmp_path}", *(f"data.{name}={path}" for name, path in files.items())]


def by_section(report: Any) -> dict[str, Any]:
    return {finding.section: finding for finding in report.findings}


def test_a_sound_configuration_is_ready(tiny_file: Path, words: list[str], capsys: Capture) -> None:
    assert main(["doctor", str(tiny_file), *words]) == 0
    said = capsys.readouterr().out
    assert "ready to run: 0 errors, 0 warnings" in said and "█" in said
    assert main(["doctor", str(tiny_file), *words, "--json"]) == 0
    out, _ = capsys.readouterr()
    report = json.loads(out)
    assert report["well"] and report["figures"]["data.train"] == {"rows": 40, "bad_rows": 0, "repeated": 0}
    assert not list(Path(words[0].removeprefix("run_root=")).glob("tiny*")), "nothing is written"


def test_bad_rows_are_counted_and_the_first_ones_shown(
    tiny_file: Path, words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    rows_file(tmp_path / "train.jsonl", [task(0), "{broken", {"output": "x"}, task(1, ""), task(2), task(2)])
    rows_file(tmp_path / "test.jsonl", [task(0), task(9)])
    assert main(["doctor", str(tiny_file), *words]) == 1
    said = capsys.readouterr().out
    line = next(row for row in said.splitlines() if "data.train" in row)
    assert line.startswith("ERROR") and "3 bad rows" in line
    assert all(f"train.jsonl:{n}: " in line for n in (2, 3, 4))
    rows_file(tmp_path / "train.jsonl", [task(0), task(2), task(2)] * 4)
    found = by_section(examine(tiny_file, words))
    assert found["data.train"].level == "warning" and "10 of them ask what another" in found["data.train"].text
    leaks = [f for f in examine(tiny_file, words).findings if "trained on too" in f.text]
    assert len(leaks) == 1 and leaks[0].section == "data.test" and "test.jsonl:1 as" in leaks[0].text


def test_one_file_is_cut_and_told_once_where_it_is_bad(tiny_file: Path, words: list[str], tmp_path: Path) -> None:
    one = tmp_path / "all.csv"
    one.write_text("ask,answer\n" + "".join(f"Question {i}?,yes\n" for i in range(40)))
    words = [*words, f"data.train={one}", "data.dev=''", "data.test=''"]
    found = by_section(examine(tiny_file, [*words, "data.fields.instruction=ask"]))
    assert found["data.train"].text == "32 rows"
    for split in ("dev", "test"):
        assert found[f"data.{split}"].text == "4 rows, cut from data.train by a fixed rule (data.split)"
    report = examine(tiny_file, words)
    assert "40 bad rows" in by_section(report)["data.train"].text
    assert not {"data.dev", "data.test"} & by_section(report).keys()


def test_cut_answers_are_warned_of(tiny_file: Path, words: list[str], tmp_path: Path) -> None:
    rows_file(tmp_path / "train.jsonl", [task(i, "word " * 400) for i in range(20)])
    report = examine(tiny_file, words)
    assert by_section(report)["lengths.train"].level == "warning"
    assert report.figures["lengths.train"]["cut_responses"] == 20
    assert report.figures["lengths.train"]["longest"] == 96


@pytest.mark.parametrize(
    ("override", "section", "part"),
    [
        ("train.epochs=none", "config", "train.epochs"),
        ("teacher.source=/nowhere", "teacher", "does not exist"),
        ("data.dev=/nowhere.jsonl", "data.dev", "no such file"),
        ("trainer.accelerator=mps", "config", "auto | cpu | gpu | cuda"),
    ],
)
def test_what_is_wrong_is_named(
    tiny_file: Path, words: list[str], override: str, section: str, part: str, capsys: Capture
) -> None:
    report = examine(tiny_file, [*words, override])
    errors = {f.section: f.text for f in report.findings if f.level == "error"}
    assert part in errors[section] and not report.well
    assert main(["doctor", str(tiny_file), *words, override, "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["well"]


def test_vocabularies_that_differ_are_an_error(tiny_file: Path, words: list[str], tmp_path: Path) -> None:
    for name, text in (("a", "lolololo pipipi"), ("b", "rarara tututu")):
        tokenizer = train_tokenizer([text] * 20, vocab_size=266)
        shape = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 128}
        model = models.build_causal_lm("llama", vocab_size=len(tokenizer), eos_token_id=1, seed=0, **shape)
        models.save_model_folder(model, tokenizer, tmp_path / name)
    sources = [f"teacher.source={tmp_path}/a", f"student.source={tmp_path}/b"]
    report = examine(tiny_file, [*words, *sources])
    assert by_section(report)["tokenizers"].level == "error"


def test_too_little_memory_names_the_batch_that_fits(tiny_file: Path, words: list[str]) -> None:
    whole = examine(tiny_file, words).figures["memory"]
    half = whole["static"] + (whole["training"] - whole["static"]) * 3 // 4
    report = examine(tiny_file, words, available=half)
    finding = by_section(report)["memory.training"]
    fits = report.figures["memory"]["largest_micro_batch"]
    assert finding.level == "error" and f"set train.micro_batch_size={fits}" in finding.text
    assert 0 < fits < 8
    assert (
        by_section(examine(tiny_file, [*words, f"train.micro_batch_size={fits}"], available=half))[
            "memory.training"
        ].level
        == "ok"
    )
    none = by_section(examine(tiny_file, words, available=1000))["memory.training"]
    assert none.level == "error" and "weights and moments alone take" in none.text


def test_largest() -> None:
    assert largest(lambda n: n * n <= 1000) == 31 and largest(lambda n: n < 1) == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen3"])
def test_sizes_are_those_of_the_real_model(tiny_file: Path, family: str) -> None:
    config = load_config(tiny_file, [f"student.architecture.family={family}", "run_root=runs"])
    _, _, fake = fake_models(config, 300)
    real = models.build_causal_lm(
        family,
        vocab_size=300,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        intermediate_size=16,
        max_position_embeddings=104,
        eos_token_id=0,
        seed=0,
    )
    size = model_size(fake)
    assert size.parameters == sum(p.numel() for p in real.parameters())
    assert size.weights == sum(t.numel() * t.element_size() for t in (*real.parameters(), *real.buffers()))
    ids = torch.zeros(3, 7, dtype=torch.long)
    cache = real(input_ids=ids, use_cache=True).past_key_values
    kept = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert size.kv_per_token * ids.numel() == kept


def test_what_backward_needs_grows_with_the_batch_and_shrinks_by_checkpointing(tiny_file: Path) -> None:
    config = load_config(tiny_file, ["student.architecture.num_layers=6", "run_root=runs"])
    mode, _, student = fake_models(config, 300)
    plain = activations(mode, student, 64, checkpointing=False, mixed=None)
    assert plain.of(8) - plain.of(4) == 4 * plain.per_sequence
    assert activations(mode, student, 64, checkpointing=True, mixed=None).of(8) < plain.of(8) / 2
    assert activations(mode, student, 128, checkpointing=False, mixed=None).per_sequence > 1.9 * plain.per_sequence


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_account_of_memory_is_true(family: str, tmp_path: Path) -> None:
    """10M parameters on a CPU: weights and moments to the byte, a step's peak within a fifth."""
    out = tmp_path / "probe.json"

    def measure() -> None:
        # the heap gives pages back at once, so that resident memory is that of tensors
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 131072)
        out.write_text(json.dumps(probe(family, 4, 256, [])))

    assert forked(measure, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    found = json.loads(out.read_text())
    assert found["parameters"] > 10e6
    for name in ("parameters", "weights", "optimiser"):
        assert found[name] == found[f"said_{name}"], name
    assert 0.8 < found["said_added"] / found["added"] < 1.2, found


def test_memory_of_one_of_several_devices(tiny_file: Path) -> None:
    def memory(*overrides: str) -> dict[str, int]:
        words = ["train.batch_size=8", "train.micro_batch_size=8", *overrides]
        return examine(tiny_file, words, available=10**9).figures["memory"]

    one, ddp = memory(), memory("trainer.devices=2")
    assert (one["rows"], ddp["rows"]) == (8, 4) and ddp["trained"] == one["trained"]
    # gradients stay in DDP's buckets
    assert ddp["static"] == one["static"] + one["trained"]
    fsdp2 = memory("trainer.devices=2", "trainer.strategy=fsdp2")
    own = one["student_weights"] + one["optimiser"]
    assert fsdp2["static"] == one["static"] - own + own // 2
    sharded = memory("trainer.devices=2", "trainer.strategy=fsdp2", "teacher.placement=sharded")
    assert fsdp2["static"] - sharded["static"] == one["teacher_weights"] - one["teacher_weights"] // 2
    # a checkpoint is one whole file, of the adapters alone where there are any; fine-tuning has gradients too
    for words in ([], ["student.lora.r=2", "student.sft.enabled=false"]):
        figures = [
            examine(tiny_file, [*words, *more], available=10**9).figures
            for more in ([], ["trainer.devices=2"], ["trainer.devices=2", "trainer.strategy=fsdp2"])
        ]
        assert len({found["disk"]["resume_points"] for found in figures}) == 1
        if not words:
            assert figures[0]["memory"]["student_sft"] == figures[1]["memory"]["student_sft"]
            assert figures[2]["memory"]["student_sft"] < figures[0]["memory"]["student_sft"]
    away = memory("teacher.placement=cpu")
    # all but the output layer: 16 wide, in float32
    vocabulary = (one["static"] - away["static"] - one["teacher_weights"]) // -(16 * 4)
    assert 250 < vocabulary <= 300
    assert away["generation_added"] - one["generation_added"] == one["teacher_weights"] - one["student_weights"]


def test_memory_follows_what_a_run_computes_in(tiny_file: Path) -> None:
    def memory(*overrides: str) -> dict[str, int]:
        return examine(tiny_file, overrides, available=10**9).figures["memory"]

    wide, mixed = memory(), memory("trainer.precision=bf16-mixed")
    assert mixed["teacher_weights"] == wide["teacher_weights"] // 2
    assert wide["static"] - mixed["static"] == mixed["teacher_weights"] and mixed["trained"] == wide["trained"]
    assert mixed["generation_added"] < wide["generation_added"] + wide["student_weights"] // 2
    own = memory("trainer.precision=bf16-mixed", "teacher.frozen_dtype=float32")
    assert own["teacher_weights"] == wide["teacher_weights"]


def test_a_cpu_is_shared_by_its_ranks(tiny_file: Path) -> None:
    alone, both = (
        examine(tiny_file, words).figures["memory"]["available"] for words in ([], ["trainer.devices=2"])
    )
    assert both == pytest.approx(alone / 2, rel=0.1)


def test_text_is_counted_from_the_steps_that_are_trained(tiny_file: Path) -> None:
    """32 rows in steps of 8: four steps an epoch, three epochs of them where `max_steps` says nothing."""

    def text(*overrides: str) -> int:
        report = examine(tiny_file, list(overrides))
        assert report.figures["disk"]["text"] == report.figures["text"]["bytes"]
        return report.figures["text"]["bytes"]

    three = text()
    assert text("train.max_steps=12") == three
    assert text("train.max_steps=120") == 10 * three
    assert text("train.max_steps=120", "train.epochs=1") == 10 * three
    assert text("train.max_steps=4") == pytest.approx(three / 3, abs=1)


def test_a_folder_is_looked_at_without_its_weights(tiny_file: Path, words: list[str], tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["lolo pipi"] * 20, vocab_size=266)
    shape = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 128}
    model = models.build_causal_lm("llama", vocab_size=len(tokenizer), eos_token_id=1, seed=0, **shape)
    folder = models.save_model_folder(model, tokenizer, tmp_path / "a")
    sources = [f"{name}.source={folder}" for name in ("teacher", "student")]
    assert examine(tiny_file, [*words, *sources]).well
    config = json.loads((folder / "config.json").read_text())
    for change, part in (
        ({"hidden_size": 10**9}, "by its config.json"),
        ({"max_position_embeddings": 16}, "the model has 16 positions"),
        ({"num_hidden_layers": 7}, "lacks 54 weights"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        errors = [f.text for f in examine(tiny_file, [*words, *sources]).findings if f.level == "error"]
        assert any(part in text for text in errors), errors
