"""`mgsr plan` by the real command line, for every family that is shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mgsr.cli.main import main
from mgsr.config.load import load_config

Capture = pytest.CaptureFixture[str]
CONFIGS = sorted(Path("configs").glob("*.yaml"))
# devices -> what fits, and what is recommended first
FAMILIES: dict[str, tuple[int, set[str]]] = {
    "gpt2": (1, {"auto replicated", "auto cpu"}),
    "opt": (4, {"fsdp2 replicated", "fsdp2 sharded", "fsdp2 cpu"}),
    "openllama2": (4, {"fsdp2 replicated", "fsdp2 sharded", "fsdp2 cpu"}),
    "llama2": (8, {"fsdp2 replicated", "fsdp2 sharded", "fsdp2 cpu"}),
    "qwen3": (4, {"fsdp2 replicated", "fsdp2 sharded", "fsdp2 cpu"}),
}


def said(capsys: Capture, *words: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["plan", *words]) == code
    out, error = capsys.readouterr()
    assert not error
    return out


def as_json(capsys: Capture, *words: str, code: int = 0) -> dict[str, Any]:
    return json.loads(said(capsys, *words, "--json", code=code))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_parses_and_has_its_command_on_top(path: Path) -> None:
    assert load_config(path).experiment == path.stem
    first, second = path.read_text().splitlines()[:2]
    assert first.startswith("# ") and second.startswith("# ")
    if path.stem in FAMILIES:
        assert first.startswith(f"# mgsr plan {path} --devices {FAMILIES[path.stem][0]} --gpu 80GB")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_protocol(name: str) -> None:
    config = load_config(f"configs/{name}.yaml")
    assert (config.data.max_length, config.data.max_prompt_length, config.data.template) == (512, 256, "alpaca")
    assert config.data.train == "databricks/databricks-dolly-15k" and not config.data.test_sets
    assert config.evaluation.seeds == [10, 20, 30, 40, 50] and config.evaluation.max_new_tokens == 256
    assert (config.evaluation.temperature, config.evaluation.top_p) == (1.0, 1.0)
    assert config.mixture.student_fraction == 0.5 and config.scrg.passes == 1 and config.teacher.sft.enabled
    for stage in (config.train, config.teacher.sft):
        assert (stage.weight_decay, stage.grad_clip) == (0.01, 1.0)
    stated = {"gpt2": (5e-4, 20), "opt": (5e-5, 10), "openllama2": (5e-4, 10)}
    if name in stated:
        assert (config.train.lr, config.train.epochs) == stated[name]
    sft, lora = config.student.sft, config.student.lora
    assert (sft.enabled, sft.epochs if sft.enabled else 0) == ((True, 3) if name == "gpt2" else (False, 0))
    assert (lora.r, lora.alpha if lora.r else 0) == ((16, 64) if name == "openllama2" else (0, 0))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_fits_somewhere(name: str, capsys: Capture) -> None:
    devices, fitting = FAMILIES[name]
    out = said(capsys, f"configs/{name}.yaml", "--devices", str(devices), "--gpu", "80GB")
    lines = out.splitlines()
    last = lines[-1]
    assert last.startswith("fits under ") and "recommended: trainer.strategy=" in last
    assert set(last.removeprefix("fits under ").split(";")[0].split(", ")) == fitting
    assert sum("shape from the table of known shapes" in line for line in lines) == 2
    assert "11,430, assumed" in out and all(len(line) <= 160 for line in lines)
    own = "auto replicated, fits" if devices == 1 else "ddp replicated, does not fit"
    assert lines[-2] == f"as configured: {own}"
    # every column of the table of memory has its verdict
    verdicts = next(line for line in lines if line.startswith("│ fits"))
    assert verdicts.count("yes") == len(fitting)


def test_everything_as_json(capsys: Capture) -> None:
    found = as_json(capsys, "configs/openllama2.yaml", "--devices", "2", "--nodes", "2", "--rows", "3200")
    assert found["fits"] and found["recommended"]["strategy"] == "fsdp2" and found["text"]["rows"] == 3200
    assert found["models"]["teacher"]["parameters"] == 6_738_415_616
    student = found["models"]["student"]
    assert student["parameters"] - student["adapters"] == 3_426_473_600 and student["shape_from"] == "table"
    # q_proj and v_proj of 26 layers, 3200 x 3200, rank 16
    assert student["adapters"] == 26 * 2 * 2 * 16 * 3200
    assert found["stages"]["main job"]["length"] == {
        "steps_per_epoch": 100, "total_steps": 1000, "epochs": 10, "micro_batches": 2,
    }  # fmt: skip
    assert found["tokens"]["main_job"] == 3200 * 10 * 512 and found["tokens"]["per_epoch"] == 3200 * 512
    phases = [
        "teacher SFT",
        "student forward and backward",
        "teacher forward",
        "student prefill",
        "student decode",
    ]
    assert list(found["flops"]) == list(found["seconds"]) == [
        *phases, "scoring", "continuation", "test sets, student twice", "test sets, teacher", "exposure bias",
    ]  # fmt: skip
    assert {row["strategy"] + " " + row["placement"] for row in found["strategies"]} == {
        "ddp replicated", "ddp cpu", "fsdp2 replicated", "fsdp2 sharded", "fsdp2 cpu",
    }  # fmt: skip
    computing = sum(phase["seconds"] for phase in found["seconds"].values())
    computing += sum(one["held"] for one in found["checkpoints"].values())
    for row in found["strategies"]:
        assert row["seconds"] == pytest.approx(computing + row["communication"]["seconds"])
        assert row["fits"] == (row["peak"] <= 0.9 * found["available"])
        assert row["peak"] == max(row["training"], row["generation"], row["tests"], *row["sft"].values())
    ddp = found["strategies"][0]
    assert ddp["communication"]["step"] == pytest.approx(2 * 3 / 4 * 4 * student["adapters"])
    # and a few buffers
    assert 0 <= ddp["weights"] - 4 * student["parameters"] < 1000
    assert 0 <= ddp["teacher"] - 2 * 6_738_415_616 < 1000, "frozen in what bf16-mixed computes in"
    assert found["configured"] == {
        "strategy": "ddp", "placement": "replicated", "seconds": ddp["seconds"], "fits": False,
    }  # fmt: skip


def test_hardware_is_taken_as_given(tiny_file: Path, capsys: Capture) -> None:
    words = [str(tiny_file), "teacher.sft.enabled=false", "student.sft.enabled=false", "--devices", "2"]
    slow = as_json(capsys, *words)
    fast = as_json(
        capsys, *words, "--flops", "624", "--flops-float32", "39", "--bandwidth", "4078", "--interconnect", "600",
        "--host", "50",
    )  # fmt: skip
    for phase, value in slow["seconds"].items():
        assert value["seconds"] == pytest.approx(2 * fast["seconds"][phase]["seconds"])
    for one, two in zip(slow["strategies"], fast["strategies"], strict=True):
        assert one["communication"]["seconds"] == pytest.approx(2 * two["communication"]["seconds"])
    half = as_json(capsys, *words, "--mfu", "0.2")
    assert half["seconds"]["scoring"]["seconds"] == pytest.approx(2 * slow["seconds"]["scoring"]["seconds"])
    assert list(slow["stages"]) == ["main job"]


def test_every_phase_and_all_memory_follow_the_precision(tiny_file: Path, capsys: Capture) -> None:
    words = [str(tiny_file), "--devices", "2", "student.architecture.hidden_size=64", "train.epochs=1"]
    wide, narrow = as_json(capsys, *words), as_json(capsys, *words, "trainer.precision=bf16-mixed")
    for phase, value in wide["seconds"].items():
        assert narrow["seconds"][phase]["seconds"] < value["seconds"], phase
    ddp, mixed, fsdp2 = wide["strategies"][0], narrow["strategies"][0], narrow["strategies"][2]
    assert mixed["weights"] == ddp["weights"] and mixed["teacher"] == ddp["teacher"] // 2
    # a copy of the student writes beside it, with half a cache
    assert mixed["generation"] - ddp["generation"] < ddp["weights"] // 2
    assert mixed["kv_cache"] < ddp["kv_cache"] and fsdp2["gathered"] < wide["strategies"][2]["gathered"]
    assert fsdp2["communication"]["round"] == wide["strategies"][2]["communication"]["round"] / 2
    own = as_json(capsys, *words, "trainer.precision=bf16-mixed", "teacher.frozen_dtype=float32")
    assert own["strategies"][0]["teacher"] == ddp["teacher"]
    assert own["seconds"]["scoring"]["seconds"] == wide["seconds"]["scoring"]["seconds"]
    out = said(capsys, *words)
    assert "AdamW and casting weights take a tenth of one of " in out and wide["tokens_per_step"]["worthwhile"] > 0


def test_too_small_a_device(tiny_file: Path, capsys: Capture) -> None:
    out = said(capsys, str(tiny_file), "--devices", "2", "--gpu", "1MB", code=1)
    last = out.splitlines()[-1]
    assert last.startswith("fits under no strategy: ") and "more devices" in last and "micro_batch_size" in last
    found = as_json(capsys, str(tiny_file), "--gpu", "1MB", code=1)
    assert not found["fits"] and found["recommended"] is None


def test_a_run_that_is_all_here(tiny_file: Path, capsys: Capture) -> None:
    """Rows, tokenizer and shapes of the configuration's own: nothing is assumed."""
    out = said(capsys, str(tiny_file), "--gpu", "1GB")
    assert "measured on the rows" in out and "shape from the configuration" in out and "assumed, no" not in out
    out = said(capsys, str(tiny_file), "--gpu", "1GB", "student.source=teacher", "student.keep_layers=[0]")
    assert "shape from the teacher" in out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["no_such.yaml"], ("no_such.yaml",)),
        (["configs/gpt2.yaml", "student.source=nobody/nothing"], ("nobody/nothing", "give a folder")),
        (["configs/gpt2.yaml", "data.train=some/set"], ("some/set", "--rows N")),
        (["configs/gpt2.yaml", "data.train=gone.jsonl"], ("gone.jsonl",)),
        (["configs/gpt2.yaml", "data.max_length=2048"], ("data.max_length", "1024 positions")),
        (["configs/gpt2.yaml", "--gpu", "large"], ("`large` is no size",)),
        (["configs/gpt2.yaml", "train.epoch=3"], ("did you mean `epochs`",)),
        (["configs/gpt2.yaml", "student.source=init"], ("source: init", "data.train=FILE")),
    ],
    ids=["config", "model", "data set", "file", "length", "size", "key", "init"],
)
def test_mistakes_are_one_line(words: list[str], parts: tuple[str, ...], capsys: Capture) -> None:
    capsys.readouterr()
    assert main(["plan", *words]) == 2
    out, error = capsys.readouterr()
    assert not out and error.startswith("mgsr: error: ") and error.count("\n") == 1 and "Traceback" not in error
    for part in parts:
        assert part in error, error


@pytest.mark.parametrize("option", [["--devices", "0"], ["--mfu", "1.5"], ["--flops", "inf"], ["--rows", "x"]])
def test_numbers_out_of_range(option: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["plan", "configs/gpt2.yaml", *option])
    assert end.value.code == 2 and option[0] in capsys.readouterr().err


def test_help_has_an_example(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    assert "mgsr plan llama2 --devices 8 --gpu 80GB" in capsys.readouterr().out
