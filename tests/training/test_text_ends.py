"""An instruct teacher and a base student over the same ids: what closes their targets, and where text ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mgsr import models
from mgsr.cli.main import main
from mgsr.config.load import load_config
from mgsr.config.schema import ExperimentConfig
from mgsr.data.prompts import encode_rows
from mgsr.data.row_files import read_rows
from mgsr.data.tokenizer import train_tokenizer
from mgsr.generation import sample
from mgsr.models.from_config import with_end_token
from mgsr.runtime.errors import ConfigError
from mgsr.training.run_folder import load_run_config, run_folder
from mgsr.training.sft import prepare_models

Capture = pytest.CaptureFixture[str]

TEXTS = ["the red cat sat on the mat", "a dog saw the red cat", "on the mat sat a dog"] * 5
PAD, EOS, TURN = 0, 1, 2
"""Of padding, of the base model's end of text, and of the end of a turn of its instruct sister."""

CONFIG = """
experiment: ends
data: {{train: {folder}/rows.jsonl, dev: {folder}/same.jsonl, test: {folder}/same.jsonl, template: plain,
       max_length: 64, max_prompt_length: 48}}
teacher: {{source: {folder}/instruct, sft: {{max_steps: 1, batch_size: 4, micro_batch_size: 4, lr: 1.0e-6}}}}
student: {{source: {folder}/base}}
objective: {{w_span: 0.0}}
clip: {{mode: fixed}}
scrg: {{max_new_tokens: 12, batch_size: 8}}
mixture: {{student_fraction: 0.75}}
train: {{max_steps: 4, batch_size: 4, micro_batch_size: 4, lr: 1.0e-6}}
evaluation: {{seeds: [10], batch_size: 8, max_new_tokens: 12, temperature: 0.0}}
trainer: {{accelerator: cpu, log_every_n_steps: 1, checkpoint_every_n_steps: 100}}
"""


def tokenizer(end: int) -> Any:
    made = train_tokenizer(TEXTS, vocab_size=280)
    content = json.loads(made.backend_tokenizer.to_str())
    # the third id, that of a byte which no text holds, becomes the mark behind a turn
    byte = next(token for token, number in content["model"]["vocab"].items() if number == TURN)
    content["model"]["vocab"] = {
        "<|turn|>" if token == byte else token: number for token, number in content["model"]["vocab"].items()
    }
    content["added_tokens"].append(content["added_tokens"][0] | {"id": TURN, "content": "<|turn|>"})
    made = type(made)(
        tokenizer_object=made.backend_tokenizer.from_str(json.dumps(content)),
        pad_token="<pad>",
        eos_token="<|turn|>" if end == TURN else "<eos>",
        clean_up_tokenization_spaces=False,
    )
    assert made.eos_token_id == end
    return made


def model(seed: int, end: int, listed: list[int]) -> Any:
    """A model that likes both ends so much that its texts end soon; its `generation_config` lists `listed`."""
    made = models.build_causal_lm(
        "gpt2",
        vocab_size=len(tokenizer(end)),
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        max_position_embeddings=80,
        eos_token_id=end,
        pad_token_id=PAD,
        seed=seed,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    with torch.no_grad():
        norm: Any = made.transformer.ln_f
        norm.weight[0], norm.bias[0] = 0.0, 1.0
        head = made.get_output_embeddings().weight
        head[:, 0] = 0.0
        head[EOS, 0], head[TURN, 0] = 1.6, 2.8
    made.generation_config.eos_token_id = listed
    return made


class Ran(NamedTuple):
    config: ExperimentConfig
    folder: Path
    said: str


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ends")
    models.save_model_folder(model(0, TURN, [TURN, EOS]), tokenizer(TURN), folder / "instruct")
    models.save_model_folder(model(1, EOS, [EOS]), tokenizer(EOS), folder / "base")
    rows = [{"instruction": text, "output": text[::-1][:12]} for text in sorted(set(TEXTS))] * 3
    for name in ("rows", "same"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(folder=folder))
    return path


def run(file: Path, capsys: Capture, *overrides: str) -> Ran:
    given = [f"run_root={file.parent}/runs", *overrides]
    assert main(["train", str(file), *given]) == 0
    config = load_config(file, given)
    return Ran(config, run_folder(config), capsys.readouterr().out)


def texts(folder: Path) -> Iterator[dict[str, Any]]:
    for shard in sorted(folder.glob("scrg/round=*/shard-*.jsonl")):
        yield from map(json.loads, shard.read_text().splitlines())


@pytest.mark.parametrize("text", ["student", "teacher", "mixed", "interleaved", "switched", "paired"])
def test_written_text_ends_at_any_stop_and_training_text_at_one(file: Path, capsys: Capture, text: str) -> None:
    ran = run(file, capsys, f"scrg.text={text}", f"arm={text}", "scrg.teacher_token=argmax")
    assert "answers end with `<eos>` (id 1); written text ends at `<eos>` (id 1), `<|turn|>` (id 2)" in ran.said
    seen = set()
    for entry in texts(ran.folder):
        for name in ("rollout_ids", "response_ids"):
            ids = entry[name]
            assert not {*ids[:-1]} & {EOS, TURN} and (ids[-1] in (EOS, TURN) or len(ids) == 12)
            seen.add(ids[-1])
        assert "<|turn|>" not in entry["rollout"] + entry["response"]
        for correction in entry["corrections"]:
            if correction["teacher_token"] in (EOS, TURN):
                assert correction["length_after"] == correction["position"] + 1
    assert seen >= {EOS, TURN}
    # the test set was written to the same ends
    words = [json.loads(line)["prediction"] for line in (ran.folder / "predictions/test.jsonl").open()]
    assert len(words) == 9 and all("<|turn|>" not in word for word in words)


def test_a_row_has_the_same_prompt_wherever_it_is_read(
    file: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[str, set[tuple[int, ...]]] = {"training": set(), "evaluation": set()}

    def sampled(model: Any, prompts: Any, **options: Any) -> Any:
        read["evaluation"] |= {tuple(ids) for _, ids in prompts}
        assert options["eos_token_id"] == (EOS, TURN)
        return sample(model, prompts, **options)

    monkeypatch.setattr("mgsr.evaluation.test_set.sample", sampled)
    ran = run(file, capsys, "arm=prompts")
    rounds = {tuple(entry["prompt_ids"]) for entry in texts(ran.folder)}
    rows = read_rows(ran.config.data.train)
    encoded = encode_rows(
        rows, tokenizer(EOS), template="plain", max_length=64, max_prompt_length=48, end_token=""
    )
    read["training"] = {example.prompt_ids for example in encoded.examples}
    assert rounds == read["training"] == read["evaluation"]


def test_generate_on_an_export_stops_where_evaluation_stops(file: Path, capsys: Capture, tmp_path: Path) -> None:
    ran = run(file, capsys, "arm=export", "scrg.enabled=false")
    assert main(["export", str(ran.folder), str(tmp_path / "model")]) == 0
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [EOS, TURN] and settings["pad_token_id"] == PAD
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(tmp_path / "model")
    rows = encode_rows(
        read_rows(ran.config.data.test), words, template="plain", max_length=64, max_prompt_length=48
    )
    written = [json.loads(line)["prediction"] for line in (ran.folder / "predictions/test.jsonl").open()]
    last = set()
    for example, expected in zip(rows.examples, written, strict=True):
        ids = torch.tensor([example.prompt_ids])
        answer = exported.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, use_cache=False
        )
        answered = answer[0, ids.shape[1] :].tolist()
        last.add(answered[-1])
        assert words.decode(answered, skip_special_tokens=True).strip() == expected
    assert TURN in last
    # and so does mgsr, on the run as on the export
    for source in (ran.folder, tmp_path / "model"):
        out = tmp_path / f"{source.name}.json"
        options = ["--template", "plain", "--temperature", "0", "--max-new-tokens", "12", "--seeds", "10"]
        assert main(["evaluate", str(source), "--data", ran.config.data.test, *options, "--out", str(out)]) == 0
        lines = out.with_suffix(".responses.jsonl").read_text().splitlines()
        assert [json.loads(line)["prediction"] for line in lines] == written


def test_both_models_are_fine_tuned_to_the_students_end(file: Path, capsys: Capture) -> None:
    config = load_config(file, [f"run_root={file.parent}/runs", "teacher.sft.enabled=true", "arm=sft"])
    assert with_end_token(config).data.end_token == "<eos>" and config.data.end_token == ""
    named = load_config(file, ["data.end_token=<|turn|>"])
    assert with_end_token(named) is named
    rows = read_rows(config.data.train)
    for end, expected in (("", EOS), ("<eos>", EOS), ("<|turn|>", TURN)):
        encoded = encode_rows(rows, tokenizer(EOS), template="plain", end_token=end)
        assert {example.response_ids[-1] for example in encoded.examples} == {expected}
    start = prepare_models(config, {"train": rows, "dev": rows, "test": rows})
    assert start.ends.stop_ids == (EOS, TURN)
    assert "teacher: supervised fine-tuning" in capsys.readouterr().out


def test_the_end_of_a_turn_can_be_the_end_token(file: Path, capsys: Capture) -> None:
    ran = run(file, capsys, "data.end_token=<|turn|>", "arm=turn", "scrg.enabled=false")
    assert "answers end with `<|turn|>` (id 2)" in ran.said
    kept = json.loads((ran.folder / "student" / "generation_config.json").read_text())
    assert kept["eos_token_id"] == [TURN, EOS]
    assert main(["train", str(file), f"run_root={file.parent}/runs", "data.end_token=<turn>", "arm=no"]) == 2
    assert "did you mean `<|turn|>`?" in capsys.readouterr().err


def test_adapters_are_exported_with_the_ends_that_their_base_does_not_know(
    file: Path, capsys: Capture, tmp_path: Path
) -> None:
    ran = run(file, capsys, "student.lora.r=2", "student.lora.alpha=2", "arm=lora", "scrg.enabled=false")
    assert main(["export", str(ran.folder), str(tmp_path / "adapters")]) == 0
    settings = json.loads((tmp_path / "adapters" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [EOS, TURN]
    card = (tmp_path / "adapters" / "README.md").read_text()
    assert 'GenerationConfig.from_pretrained("THIS_FOLDER")' in card
    assert main(["export", str(ran.folder), str(tmp_path / "merged"), "--merge"]) == 0
    settings = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [EOS, TURN]


def test_a_folder_called_teacher_is_a_folder(
    file: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"run_root={tmp_path}/runs", "scrg.enabled=false", "train.max_steps=1"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="here is no folder of that name"):
        load_config(file, [*given, "teacher.source=teacher"])
    for name in ("teacher", "init"):
        shutil.copytree(file.parent / "instruct", tmp_path / name)
    # of the teacher it is the folder; of the student the word is the run's teacher, and the path the folder
    assert main(["train", str(file), *given, "teacher.source=teacher", "student.source=./teacher"]) == 0
    config = load_run_config(tmp_path / "runs" / "ends" / "main" / "seed=0")
    assert (config.teacher.source, config.student.source) == (f"{tmp_path}/teacher", f"{tmp_path}/teacher")
    capsys.readouterr()
    assert main(["train", str(file), *given, "student.source=teacher", "arm=word"]) == 0
    said = capsys.readouterr().out
    assert "student.source=teacher: not the folder of that name, which is written ./teacher" in said
    assert load_run_config(tmp_path / "runs" / "ends" / "word" / "seed=0").student.source == "teacher"
