"""Whose chat template a run takes, and what both tokenizers make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mgsr.config.load import load_config
from mgsr.config.schema import ExperimentConfig
from mgsr.data.chat import prompt_text
from mgsr.data.rows import Row
from mgsr.models import save_tokenizer
from mgsr.models.chat_template import run_template
from mgsr.models.from_config import build_tokenizer, with_end_token
from mgsr.runtime.errors import ConfigError
from tests.data.chat_templates import CHATML, GEMMA, HEADERS, INST, chat_tokenizer

ROW = Row(0, "What is red?", "", ("The cat.",))


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """A configuration whose tokenizers lie in folders, by name: teacher's, student's."""
    for name, template, end in (
        ("instruct", CHATML, "<|im_end|>"),
        ("roles", INST, "<|im_end|>"),
        ("base", None, "<eos>"),
        ("own", HEADERS, "<eos>"),
        ("ends", INST, "<eos>"),
        ("several", {"rag": GEMMA}, "<eos>"),
    ):
        (tmp_path / name).mkdir()
        save_tokenizer(chat_tokenizer(template, end=end), tmp_path / name)

    def make(teacher: str, student: str, *words: str) -> ExperimentConfig:
        def place(name: str) -> str:
            return str(tmp_path / name) if name and (tmp_path / name).is_dir() else name

        sources = [f"teacher.source={place(teacher)}", f"student.source={place(student)}"]
        return load_config(None, [*sources, "data.train=synthetic", "data.template=chat", *words])

    return make


def test_it_is_the_students_unless_another_is_named(config: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text(GEMMA + "\n")
    assert run_template(config("instruct", "own")) == HEADERS
    assert run_template(config("instruct", "base", "data.chat_template=teacher")) == CHATML
    assert run_template(config("instruct", "base", f"data.chat_template={tmp_path}/mine.jinja")) == GEMMA + "\n"
    assert run_template(config("instruct", "own", "data.template=plain", "data.chat_template=teacher")) == ""
    for made in ("teacher", "init"):
        assert run_template(config("instruct", made)) == CHATML
    # both models' tokenizers render by it
    for one in ("teacher", "student"):
        chosen = config("instruct", "base", "data.chat_template=teacher")
        assert build_tokenizer(chosen, getattr(chosen, one), ()).chat_template == CHATML


@pytest.mark.parametrize(
    ("teacher", "student", "words", "end"),
    [("roles", "base", ["data.chat_template=teacher"], "<|im_end|>"), ("instruct", "ends", [], "<eos>")],
)
def test_tokens_that_it_writes_by_their_role_are_those_of_its_owner(
    config: Any, teacher: str, student: str, words: list[str], end: str
) -> None:
    chosen = config(teacher, student, *words)
    made = [build_tokenizer(chosen, model, ()) for model in (chosen.teacher, chosen.student)]
    assert made[0].eos_token != made[1].eos_token
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    texts = {one.apply_chat_template(conversation, tokenize=False) for one in made}
    assert texts == {f"<s>[INST] a [/INST] b{end}"}
    assert {prompt_text(ROW, one) for one in made} == {"<s>[INST] What is red? [/INST]"}


def test_both_models_are_fine_tuned_to_the_templates_end(config: Any) -> None:
    same = config("instruct", "base", "data.chat_template=teacher")
    assert with_end_token(same) is same
    # a template that writes none: each tokenizer would close with its own end of text
    named = config("instruct", "base", "data.template=plain")
    assert with_end_token(named).data.end_token == "<eos>"


@pytest.mark.parametrize(
    ("teacher", "student", "words", "said"),
    [
        (
            "instruct",
            "base",
            [],
            r"student's tokenizer \(.*base\) has no .*; set data.chat_template=teacher, or data",
        ),
        (
            "base",
            "own",
            ["data.chat_template=teacher"],
            r"teacher's tokenizer \(.*base\) has no .*; set data.chat_te",
        ),
        ("instruct", "several", [], "has no chat template named default, only rag"),
        ("init", "init", [], "teacher's tokenizer is trained on the rows .*data.template=plain, or name the file"),
        ("instruct", "own", ["data.chat_template={}/none.jinja"], "none.jinja': no such file"),
        ("instruct", "own", ["data.chat_template={}/own"], "own': cannot be read"),
        ("instruct", "own", ["data.chat_template={}/empty"], "empty': is empty"),
        ("instruct", "own", ["data.chat_template={}/bytes"], r"bytes': is no text \(not UTF-8\)"),
    ],
)
def test_what_is_missing_is_named(
    config: Any, tmp_path: Path, teacher: str, student: str, words: list[str], said: str
) -> None:
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match=said):
        run_template(config(teacher, student, *(word.format(tmp_path) for word in words)))


def test_a_run_without_a_teacher_has_no_template_of_one(config: Any) -> None:
    words = ["data.chat_template=teacher", "objective.w_dac=0", "objective.w_span=0", "scrg.enabled=false"]
    with pytest.raises(ConfigError, match=r"`data.chat_template=teacher` and `teacher.source` is empty"):
        run_template(config("", "own", *words))


def test_a_tokenizer_that_is_trained_on_the_rows_takes_a_file(config: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    chosen = config("init", "init", f"data.chat_template={tmp_path}/mine.jinja")
    tokenizer = build_tokenizer(chosen, chosen.teacher, [ROW])
    assert prompt_text(ROW, tokenizer) == "What is red?<eos>"
