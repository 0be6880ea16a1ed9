"""Runs with adapters: what is checkpointed, resumed, refused and exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mgsr import models
from mgsr.cli.main import main
from mgsr.config.schema import ExperimentConfig
from mgsr.runtime import faults
from mgsr.runtime.errors import UserError
from mgsr.training.checkpoint import BEST, read_checkpoint
from mgsr.training.export import load_run
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train
from tests.reading import resume_content
from tests.reliability.harness import differences, small_config

Capture = pytest.CaptureFixture[str]

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])
LORA = ("student.lora.r=2", "student.lora.alpha=8", "student.lora.target_modules=[c_attn,c_fc]")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all runs here; teacher and fine-tuned student are made once. Nobody may harm what lies in its cache."""
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def run(root: Path) -> Path:
    """A finished run with adapters on a fine-tuned student."""
    config = small_config(root, "arm=lora", "student.lora.dropout=0.2", *LORA)
    train(config)
    return run_folder(config)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The run with its cache, to be harmed."""
    runs = tmp_path / "runs"
    shutil.copytree(run.parents[2], runs, ignore=lambda folder, names: [n for n in names if n == "other"])
    return runs / run.relative_to(run.parents[2])


@pytest.fixture(autouse=True)
def no_points_left() -> Any:
    yield
    faults.arm("")


def stopped(config: ExperimentConfig) -> Path:
    """A run that fails in its fifth step, behind a resume point."""
    faults.arm("step.begin=full@9")
    with pytest.raises(OSError, match="No space"):
        train(config)
    faults.arm("")
    return run_folder(config)


def base_of(run: Path) -> Path:
    return run.parents[2] / "cache" / json.loads((run / "base.json").read_text())["cache"]


def change(folder: Path) -> None:
    """Move one weight of a model folder by a little."""
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] + 1e-3}, weights, metadata={"format": "pt"})


def refused(capsys: Capture, *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("mgsr: error: ") and error.count("\n") == 1, error
    return error


def test_checkpoints_hold_adapters_and_clip_network_alone(run: Path) -> None:
    clip = {"price", "inner.weight", "inner.bias", "outer.weight", "outer.bias"}
    for content in (read_checkpoint(run / "checkpoints" / BEST), resume_content(run)):
        names = content["state_dict"].keys()
        own = {name for name in names if name.startswith("student.")}
        # matrices A and B on two layers of one block
        assert len(own) == 4 and all("lora_" in name for name in own)
        assert {name.removeprefix("clip.") for name in names - own} == clip
    optimised = resume_content(run)["optimizer_states"][0]
    assert [len(group["params"]) for group in optimised["param_groups"]] == [4, 4]
    assert (run / "base.json").exists() and not (base_of(run) / "base.json").exists()


def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(run: Path, root: Path) -> None:
    other = root / "other"
    shutil.copytree(root / "runs/cache", other / "runs/cache")
    config = small_config(other, "arm=lora", "student.lora.dropout=0.2", *LORA)
    stopped(config)
    assert resume_content(run_folder(config))["global_step"] == 4
    train(config, resume=True)
    assert differences(run, run_folder(config)) == []


def test_the_base_of_a_stopped_run_must_not_change(root: Path, tmp_path: Path, run: Path) -> None:
    shutil.copytree(root / "runs/cache", tmp_path / "runs/cache")
    config = small_config(tmp_path, "arm=stopped", *LORA)
    folder = stopped(config)
    change(base_of(folder))
    with pytest.raises(UserError, match=r"base of its adapters is not the one it began with.*student-") as caught:
        train(config, resume=True)
    assert "\n" not in str(caught.value) and not (folder / "metrics.json").exists()
    # made again from the same rows and seed it is the same
    shutil.rmtree(base_of(folder))
    assert train(config, resume=True)["steps"] == 6


def test_the_best_student_is_the_base_with_the_checkpoints_adapters(run: Path) -> None:
    student, tokenizer = load_run(run)
    state = read_checkpoint(run / "checkpoints" / BEST)["state_dict"]
    base = load_file(base_of(run) / "model.safetensors")
    prefix = "student.base_model.model."
    moved = 0
    for name, weight in student.state_dict().items():
        layer = name.removesuffix(".weight")
        parts = [state.get(f"{prefix}{layer}.lora_{part}.default.weight") for part in "AB"]
        expected = base.get(name, base["transformer.wte.weight"])
        if parts[0] is not None:
            expected = expected + 4.0 * (parts[1] @ parts[0]).T  # alpha / r; GPT-2 keeps [in, out]
            moved += not torch.equal(expected, base[name])
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=0, msg=name)
    assert moved == 2 and len(tokenizer) == student.config.vocab_size


def test_evaluate_takes_the_run_and_its_exports_for_the_same_model(run: Path, tmp_path: Path) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps({"instruction": f"Say {n}.", "output": n}) + "\n" for n in "abcd"))
    assert main(["export", str(run), str(tmp_path / "merged"), "--merge"]) == 0
    figures = []
    for number, source in enumerate((run, tmp_path / "merged")):
        words = ["--template", "plain", "--max-new-tokens", "5", "--seeds", "1"]
        assert (
            main(["evaluate", str(source), "--data", str(data), *words, "--out", f"{tmp_path}/{number}.json"]) == 0
        )
        figures.append((tmp_path / f"{number}.responses.jsonl").read_text())
    assert figures[0] == figures[1] and figures[0].count("\n") == 2 * 4


def test_exports_compute_what_the_adapted_student_computes(run: Path, tmp_path: Path) -> None:
    before = models.content_fingerprint(base_of(run))
    assert main(["export", str(run), str(tmp_path / "adapters")]) == 0
    assert main(["export", str(run), str(tmp_path / "merged"), "--merge"]) == 0
    held = {path.name for path in (tmp_path / "adapters").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= held
    assert "model.safetensors" not in held and "config.json" not in held
    assert len(load_file(tmp_path / "adapters/adapter_model.safetensors")) == 4
    card = (tmp_path / "adapters/README.md").read_text()
    assert str(base_of(run)) in card and before in card and "PeftModel" in card and "library_name: peft" in card
    assert "peft" not in (tmp_path / "merged/README.md").read_text().lower()
    # a plain transformers folder
    assert not list((tmp_path / "merged").glob("adapter*"))
    assert "auto_map" not in json.loads((tmp_path / "merged/config.json").read_text())

    base = AutoModelForCausalLM.from_pretrained(base_of(run))
    apart = logits(PeftModel.from_pretrained(base, tmp_path / "adapters"))
    assert not torch.allclose(apart, logits(AutoModelForCausalLM.from_pretrained(base_of(run))), atol=1e-5)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapters")), apart)
    torch.testing.assert_close(logits(load_run(run)[0]), apart, atol=1e-5, rtol=1e-5)
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(merged, apart, atol=1e-5, rtol=1e-5)
    assert models.content_fingerprint(base_of(run)) == before


def test_a_base_that_is_gone_or_has_changed_is_one_line(copy: Path, tmp_path: Path, capsys: Capture) -> None:
    base, out = base_of(copy), tmp_path / "out"
    data = tmp_path / "q.jsonl"
    data.write_text('{"instruction": "Say a.", "output": "a"}\n')
    commands = (
        ["export", str(copy), str(out)],
        ["export", str(copy), str(out), "--merge"],
        ["evaluate", str(copy), "--data", str(data)],
    )
    assert main(["export", str(copy), str(tmp_path / "well")]) == 0
    change(base)
    for words in commands:
        assert f"not the one it began with (its weights differ); put that one back ({base})" in refused(
            capsys, *words
        )
    shutil.rmtree(base)
    for words in commands:
        assert f"no longer at {base}; put that folder back" in refused(capsys, *words)
    assert not out.exists()


def test_a_base_that_was_not_fine_tuned_comes_from_its_source(
    run: Path, root: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A folder, named by the student's source; then a model that is made for the run."""
    source = tmp_path / "source"
    shutil.copytree(base_of(run), source)
    words = ["student.sft.enabled=false", "train.max_steps=2", *LORA]
    named = small_config(root, "arm=named", f"student.source={source}", *words)
    train(named)
    folder = run_folder(named)
    kept = json.loads((folder / "base.json").read_text())
    assert kept["cache"] is None and kept["source"] == str(source)
    assert kept["content"] == models.content_fingerprint(source)
    assert main(["export", str(folder), str(tmp_path / "adapters")]) == 0
    apart = logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapters"))
    torch.testing.assert_close(logits(load_run(folder)[0]), apart, atol=1e-5, rtol=1e-5)
    source.rename(tmp_path / "elsewhere")
    assert "put it back" in refused(capsys, "export", str(folder), str(tmp_path / "x"), "--merge")

    pruned = ["student.source=teacher", "student.keep_layers=[0]", "student.lora.target_modules=[q_proj]"]
    made = small_config(root, "arm=made", *words, *pruned)
    train(made)
    assert "--merge" in refused(capsys, "export", str(run_folder(made)), str(tmp_path / "x"))
    assert main(["export", str(run_folder(made)), str(tmp_path / "made"), "--merge"]) == 0
    exported = models.load_causal_lm(tmp_path / "made")
    assert torch.equal(logits(exported), logits(load_run(run_folder(made))[0]))


def test_without_adapters_merging_changes_nothing_and_no_base_is_kept(root: Path, tmp_path: Path) -> None:
    config = small_config(root, "arm=plain", "train.max_steps=2")
    train(config)
    folder = run_folder(config)
    assert main(["export", str(folder), str(tmp_path / "a")]) == 0
    assert main(["export", str(folder), str(tmp_path / "b"), "--merge"]) == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    assert not (folder / "base.json").exists()
    held = {name for name in resume_content(folder)["state_dict"] if name.startswith("student.")}
    assert held == {f"student.{name}" for name in load_run(folder)[0].state_dict()}


def test_a_precision_of_its_own_type_knows_its_models_again(tmp_path: Path) -> None:
    """Teacher and base of a run are the same whether it has just made them or finds them when it goes on."""
    words = ["trainer.precision=bf16-true", "student.sft.enabled=false", *LORA]
    config = small_config(tmp_path, *words)
    faults.arm("checkpoint.renamed=full@4")
    with pytest.raises(UserError, match="No space"):
        train(config)
    faults.arm("")
    assert train(config, resume=True)["steps"] == 6
    # the frozen weights are those that were trained upon: rounded to bfloat16
    embedding = load_run(run_folder(config))[0].get_input_embeddings().weight
    assert embedding.dtype == torch.float32 and torch.equal(embedding, embedding.bfloat16().float())


def test_checkpointed_activations_train_the_same_adapters(
    run: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout included: what is gone through again draws the same numbers."""
    layers = []
    original = transformers.modeling_utils.checkpoint

    def watched(function: Any, *args: Any, **kwargs: Any) -> Any:
        layers.append(function)
        return original(function, *args, **kwargs)

    monkeypatch.setattr(transformers.modeling_utils, "checkpoint", watched)
    words = ["student.lora.dropout=0.2", "train.gradient_checkpointing=true", *LORA]
    config = small_config(root, "arm=checkpointing", *words)
    train(config)
    found, expected = (resume_content(folder)["state_dict"] for folder in (run_folder(config), run))
    assert layers and found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
