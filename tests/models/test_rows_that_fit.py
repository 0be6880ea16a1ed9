"""Rows that a model cannot read or score are refused before a weight is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgsr import models
from mgsr.config.load import load_config
from mgsr.data.tokenizer import train_tokenizer
from mgsr.runtime.errors import UserError
from mgsr.training.train import train


def known_to(folder: Path, rows: int, *tokens: str) -> Path:
    """A model with further tokens that its embedding may hold or not."""
    tokenizer = train_tokenizer(["Say the opposite of the word."] * 3, vocab_size=280)
    tokenizer.add_tokens(list(tokens))
    shape = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 256, "seed": 0}
    model = models.build_causal_lm("llama", vocab_size=rows, eos_token_id=1, **shape)
    return models.save_model_folder(model, tokenizer, folder)


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize(
    ("rows", "own", "said"),
    [
        (
            277,
            ("<tool>", "<more>"),
            r"teacher: .*{split}\.jsonl:3 has the token `<more>` of id 277.* has 277 rows",
        ),
        (300, (), r"{split}\.jsonl:3: its answer has the token `<more>` of id 277, .* knows the ids below 276"),
    ],
)
def test_an_answer_with_a_token_that_a_model_lacks(
    tiny_file: Path, tmp_path: Path, rows: int, own: tuple[str, ...], split: str, said: str
) -> None:
    """Of a model's embedding, and of the teacher's tokenizer; the prompts have none."""
    teacher = known_to(tmp_path / "teacher", rows, *own)
    student = known_to(tmp_path / "student", rows, "<tool>", "<more>")
    words = []
    for name in ("train", "dev", "test"):
        answers = ["Yes.", "No.", "<more>" if name == split else "Yes."]
        lines = [json.dumps({"instruction": f"Say {n}.", "output": answer}) for n, answer in enumerate(answers)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        words.append(f"data.{name}={tmp_path / name}.jsonl")
    sources = [f"teacher.source={teacher}", f"student.source={student}", f"run_root={tmp_path / 'runs'}"]
    with pytest.raises(UserError, match=said.format(split=split)):
        train(load_config(tiny_file, [*sources, *words]))


def test_a_prompt_with_a_token_that_the_teacher_cannot_read(tiny_file: Path, tmp_path: Path) -> None:
    teacher, student = known_to(tmp_path / "teacher", 276), known_to(tmp_path / "student", 300, "<tool>")
    words = []
    for name in ("train", "dev", "test"):
        lines = [{"instruction": f"Say {n}." + " <tool>" * (name == "test"), "output": "Yes."} for n in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        words.append(f"data.{name}={tmp_path / name}.jsonl")
    sources = [f"teacher.source={teacher}", f"student.source={student}", f"run_root={tmp_path / 'runs'}"]
    with pytest.raises(UserError, match=r"test\.jsonl:1: its prompt has the token `<tool>` of id 276"):
        train(load_config(tiny_file, [*sources, *words]))


def test_an_answer_beyond_the_positions(tiny_file: Path, tmp_path: Path) -> None:
    folder = known_to(tmp_path / "model", 280)
    rows = [{"instruction": "Say it.", "output": "Yes."}, {"instruction": "Say it.", "output": "a b " * 90}]
    words = []
    for name, some in (("train", rows), ("dev", rows[:1]), ("test", rows[:1])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
        words.append(f"data.{name}={tmp_path / name}.jsonl")
    limits = ["data.max_length=400", "data.max_prompt_length=100"]
    sources = [f"teacher.source={folder}", f"student.source={folder}", f"run_root={tmp_path / 'runs'}"]
    with pytest.raises(UserError, match=r"train\.jsonl:2 takes \d+ tokens .* the model has 256 positions"):
        train(load_config(tiny_file, [*sources, *words, *limits]))
