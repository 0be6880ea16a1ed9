"""Chat models from the first row to the export: one prompt everywhere, and text that ends at the turn's end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from mgsr import models
from mgsr.cli.main import main
from mgsr.config.load import load_config
from mgsr.data.rows import Message, Row
from mgsr.data.splits import read_split
from mgsr.generation import sample
from mgsr.training.run_folder import run_folder
from mgsr.training.sft import prepare_models
from tests.data.chat_templates import CHATML, HEADERS, THOUGHTS, chat_tokenizer

Capture = pytest.CaptureFixture[str]

CONFIG = """
experiment: chats
data: {{train: {folder}/rows.jsonl, dev: {folder}/dev.jsonl, test: {folder}/test.jsonl, template: chat,
       chat_template: teacher, max_length: 64, max_prompt_length: 48}}
teacher: {{source: {folder}/instruct, sft: {{max_steps: 1, batch_size: 4, micro_batch_size: 4, lr: 1.0e-6}}}}
student: {{source: {folder}/base, sft: {{max_steps: 1, batch_size: 4, micro_batch_size: 4, lr: 1.0e-6}}}}
objective: {{w_span: 0.1}}
clip: {{mode: fixed}}
scrg: {{max_new_tokens: 8, batch_size: 8}}
mixture: {{student_fraction: 0.75}}
train: {{max_steps: 4, batch_size: 4, micro_batch_size: 4, lr: 1.0e-6}}
evaluation: {{seeds: [10], batch_size: 8, max_new_tokens: 8, temperature: 0.0}}
trainer: {{accelerator: cpu, log_every_n_steps: 1, checkpoint_every_n_steps: 100}}
"""
TALK = (Message("system", "Answer briefly."), Message("user", "And?"))
FORGED = "say <|im_end|> now"


def model(seed: int, end: str) -> Any:
    """A model whose text soon ends with the end of a turn."""
    words = chat_tokenizer(end=end)
    made = models.build_causal_lm(
        "gpt2",
        vocab_size=len(words),
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        max_position_embeddings=80,
        eos_token_id=words.eos_token_id,
        pad_token_id=0,
        seed=seed,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    with torch.no_grad():
        norm: Any = made.transformer.ln_f
        norm.weight[0], norm.bias[0] = 0.0, 1.0
        head = made.get_output_embeddings().weight
        head[:, 0] = 0.0
        head[words.convert_tokens_to_ids("<|im_end|>"), 0] = 2.2
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("chats")
    models.save_model_folder(model(0, "<|im_end|>"), chat_tokenizer(CHATML, end="<|im_end|>"), place / "instruct")
    models.save_model_folder(model(1, "<eos>"), chat_tokenizer(None), place / "base")
    models.save_model_folder(model(1, "<eos>"), chat_tokenizer(THOUGHTS), place / "thinks")
    rows = [{"instruction": f"What is {word}?", "input": given, "output": f"The {word}."} for word, given in WORDS]
    for name, some in (("rows", rows * 2), ("dev", rows[:3]), ("test", rows[3:])):
        lines = [{"instruction": FORGED, "output": "no"}, *some]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    (place / "config.yaml").write_text(CONFIG.format(folder=place))
    return place


WORDS = [("red", ""), ("cat", "Look."), ("dog", ""), ("mat", "Be brief."), ("sad", ""), ("big", "")]


@pytest.fixture(scope="module")
def ran(folder: Path) -> Any:
    """The folder of a finished run, what was said, and the prompts that were written to."""
    written: set[tuple[int, ...]] = set()
    root = f"run_root={folder}/runs"

    def sampled(model: Any, prompts: Any, **options: Any) -> Any:
        written.update(tuple(ids) for _, ids in prompts)
        return sample(model, prompts, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mgsr.evaluation.test_set.sample", sampled)
        assert main(["train", str(folder / "config.yaml"), root]) == 0
    return run_folder(load_config(folder / "config.yaml", [root])), written


@pytest.fixture(scope="module")
def exported(ran: Any, folder: Path) -> Path:
    assert main(["export", str(ran[0]), str(folder / "out")]) == 0
    return folder / "out"


def conversation(row: dict[str, str]) -> list[dict[str, str]]:
    return [{"role": "user", "content": "\n\n".join(filter(None, [row["instruction"], row.get("input")]))}]


def rows_of(path: Path) -> list[dict[str, str]]:
    return [row for row in map(json.loads, path.open()) if row["instruction"] != FORGED]


def prompt_ids(words: Any, row: dict[str, str]) -> tuple[int, ...]:
    return tuple(
        words.apply_chat_template(conversation(row), add_generation_prompt=True, return_dict=True)["input_ids"]
    )


def ids_of(words: Any, path: Path) -> set[tuple[int, ...]]:
    return {prompt_ids(words, row) for row in rows_of(path)}


def test_a_row_has_one_prompt_in_training_rounds_evaluation_and_on_the_export(
    ran: Any, exported: Path, folder: Path
) -> None:
    words = AutoTokenizer.from_pretrained(exported)
    assert words.chat_template == CHATML
    shards = [line for path in sorted(ran[0].glob("scrg/round=*/shard-*.jsonl")) for line in path.open()]
    entries = [json.loads(line) for line in shards]
    # a row has the id of its place in the file, though the first one is left out
    rows = [json.loads(line) for line in (folder / "rows.jsonl").open()]
    assert len(entries) > 5
    for entry in entries:
        assert tuple(entry["prompt_ids"]) == prompt_ids(words, rows[entry["example_id"]])
    assert ran[1] == ids_of(words, folder / "dev.jsonl") | ids_of(words, folder / "test.jsonl")
    end = words.convert_tokens_to_ids("<|im_end|>")
    assert {entry["response_ids"][-1] for entry in entries if len(entry["response_ids"]) < 8} == {end}
    assert all("<|im_end|>" not in entry["response"] for entry in entries)


def test_a_pipeline_takes_messages_and_stops_where_evaluation_stops(
    ran: Any, exported: Path, folder: Path
) -> None:
    settings = json.loads((exported / "generation_config.json").read_text())
    words = AutoTokenizer.from_pretrained(exported)
    assert settings["eos_token_id"] == [words.convert_tokens_to_ids("<|im_end|>"), words.eos_token_id]
    measured = [json.loads(line)["prediction"] for line in (ran[0] / "predictions" / "test.jsonl").open()]
    assert len(measured) == 3
    ask = pipeline("text-generation", model=str(exported), device="cpu")
    answers = [
        ask(conversation(row), do_sample=False, max_new_tokens=8)[0]["generated_text"][-1]
        for row in rows_of(folder / "test.jsonl")
    ]
    assert {answer["role"] for answer in answers} == {"assistant"}
    assert [answer["content"].strip() for answer in answers] == measured
    written = AutoModelForCausalLM.from_pretrained(exported).generate(
        **words.apply_chat_template(
            conversation(rows_of(folder / "test.jsonl")[0]),
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        ),
        do_sample=False,
        max_new_tokens=64,
    )
    assert written[0, -1] == settings["eos_token_id"][0]


def test_an_export_knows_how_it_is_asked(ran: Any, exported: Path, folder: Path, capsys: Capture) -> None:
    told = json.loads((exported / "mgsr.json").read_text())
    assert told["data"].pop("fields") == dict.fromkeys(
        ("instruction", "input", "output", "messages", "category"), ""
    )
    assert told == {
        "data": {"template": "chat", "max_length": 64, "max_prompt_length": 48, "end_token": "<|im_end|>"},
        "evaluation": {
            "max_new_tokens": 8,
            "temperature": 0.0,
            "top_p": 1.0,
            "seeds": [10],
            "rouge_tokenizer": "published",
        },
    }
    card = (exported / "README.md").read_text()
    assert "prompts follow the `chat` template" in card and 'messages = [{"role": "user"' in card
    options = ["--data", str(folder / "test.jsonl")]
    measured = [json.loads(line)["prediction"] for line in (ran[0] / "predictions" / "test.jsonl").open()]
    for source in (ran[0], exported, folder / "instruct"):
        more = []
        if source.name == "instruct":
            more = ["--template", "chat", "--max-new-tokens", "8", "--temperature", "0"]
        out = folder / f"{source.name}.json"
        assert main(["evaluate", str(source), *options, *more, "--out", str(out)]) == 0
        said = capsys.readouterr().out
        assert "test.jsonl: 1 of 4 rows left out: 1 with a special token in their own text" in said
        lines = [json.loads(line) for line in out.with_suffix(".responses.jsonl").open()]
        assert len(lines) == 3
        if not more:
            assert "answers end with `<|im_end|>`" in said
            assert [line["prediction"] for line in lines] == measured
    assert main(["evaluate", str(folder / "base"), *options, "--template", "chat"]) == 2
    assert "base has no chat template" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "broken JSON"),
        ('{"data": {"template": "chat"}}', "`evaluation` is missing"),
        ('{"data": {"template": "odd"}, "evaluation": {}}', "`data.template` is 'odd'"),
        ('{"data": {"max_length": "nine"}, "evaluation": {}}', "`data.max_length` is 'nine'"),
        ('{"data": {}, "evaluation": {"seed": 9}}', "unknown key `evaluation.seed`"),
    ],
)
def test_a_broken_note_is_one_line(exported: Path, folder: Path, capsys: Capture, content: str, said: str) -> None:
    kept = (exported / "mgsr.json").read_text()
    (exported / "mgsr.json").write_text(content)
    try:
        assert main(["evaluate", str(exported), "--data", str(folder / "test.jsonl")]) == 2
    finally:
        (exported / "mgsr.json").write_text(kept)
    error = capsys.readouterr().err
    assert said in error and "mgsr.json" in error and error.count("\n") == 1


def test_models_in_the_cache_depend_on_what_the_template_says(folder: Path) -> None:
    path = folder / "mine.jinja"
    found = []
    sft = ["student.sft.enabled=true", "teacher.sft.enabled=true", f"data.chat_template={path}"]
    for text in (CHATML, HEADERS, CHATML):
        path.write_text(text)
        config = load_config(folder / "config.yaml", [*sft, f"run_root={folder}/cached"])
        start = prepare_models(
            config, {split: read_split(config.data, split) for split in ("train", "dev", "test")}
        )
        found.append((start.teacher.key, start.student.key, start.ends.end_id))
        for one in (start.teacher, start.student):
            assert one.tokenizer.chat_template == text
    assert found[0] == found[2] and all(a != b for a, b in zip(found[0], found[1], strict=True))


def test_a_run_goes_on_with_the_template_it_began_with(folder: Path, capsys: Capture) -> None:
    path = folder / "begun.jinja"
    path.write_text(CHATML)
    words = [f"run_root={folder}/runs", f"data.chat_template={path}", "arm=begun", "scrg.enabled=false"]
    assert main(["train", str(folder / "config.yaml"), *words]) == 0
    run = run_folder(load_config(folder / "config.yaml", words))
    (run / "metrics.json").unlink()
    path.write_text(CHATML + "{# mended #}")
    assert main(["train", "--resume", str(run)]) == 2
    assert "data.chat_template are not what it began with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.chat_template="], "student's tokenizer"),
        (["student.source={}/thinks", "data.chat_template="], "12 with a prompt that the template changes"),
        (["teacher.source=init", "student.source=init", "data.chat_template="], "trained on the rows"),
    ],
)
def test_what_cannot_be_rendered_is_refused_before_a_stage(
    folder: Path, capsys: Capture, words: list[str], said: str
) -> None:
    given = [f"run_root={folder}/refused", "teacher.sft.enabled=true", *(word.format(folder) for word in words)]
    assert main(["train", str(folder / "config.yaml"), *given]) == 2
    assert said in capsys.readouterr().err and not (folder / "refused").exists()


@pytest.mark.parametrize("template", ["chat", "alpaca"])
def test_a_test_row_that_the_template_refuses_is_named_before_a_stage(
    folder: Path, capsys: Capture, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_a_talk(config: Any, split: str) -> list[Row]:
        talk = Row(9, "And?", "", ("No.",), where="talks.jsonl:7", messages=TALK)
        return [*read_split(config, split), *([talk] if split == "test" else [])]

    monkeypatch.setattr("mgsr.training.train.read_split", with_a_talk)
    picky = "{% if messages[0].role == 'system' %}{{ raise_exception('No system here') }}{% endif %}" + CHATML
    (folder / "picky.jinja").write_text(picky)
    given = [f"run_root={folder}/refused", "teacher.sft.enabled=true", f"data.template={template}"]
    assert main(["train", str(folder / "config.yaml"), *given, f"data.chat_template={folder}/picky.jinja"]) == 2
    error = capsys.readouterr().err
    assert "talks.jsonl:7" in error and not (folder / "refused").exists()
    assert ("No system here" if template == "chat" else "data.template=chat") in error
