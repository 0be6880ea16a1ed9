"""What is written is what is read, and a mistake is blamed on the place where it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mgsr.cli.main import main
from mgsr.config.load import config_from_tree, dump, load_config
from mgsr.config.yaml_reader import read_yaml, words_of
from mgsr.runtime.errors import ConfigError
from mgsr.study.study import load_study

MODELS = ["teacher.source=init", "student.source=init", "data.train=synthetic"]
BASE = "teacher: {source: init}\nstudent: {source: init}\ndata.train: synthetic\n"
WORDS = ("on", "off", "010", "1.10", "12:30", "2026-11-27", "1_000", "0x10", "1e3", "inf", "y", "0o7")


def refused(path: Path | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("word", WORDS)
def test_a_key_of_words_keeps_what_was_written(write: Any, word: str) -> None:
    path = write(
        f"{BASE}arm: {word}\ndata: {{test_sets: {{{word}: {word}}}, synthetic: {{families: [{word}]}}}}\n"
    )
    for config in (
        load_config(path),
        load_config(
            None, [*MODELS, f"arm={word}", f"data.test_sets.{word}={word}", f"data.synthetic.families=[{word}]"]
        ),
    ):
        assert (config.arm, config.data.test_sets, config.data.synthetic.families) == (word, {word: word}, [word])
    # and is kept when it is written to a run's folder and read again
    assert load_config(write(dump(config))) == config


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("#1", "#1"),
        ("a #b", "a #b"),
        ("'a b'", "a b"),
        ('"on"', "on"),
        (" x ", "x"),
        ("a: 'b", "a: 'b"),
        ("@a", "@a"),
    ],
)
def test_a_word_on_the_command_line_needs_no_quotes(written: str, read: str) -> None:
    assert load_config(None, [*MODELS, f"teacher.revision={written}", "teacher.source=x"]).teacher.revision == read


def test_a_choice_may_be_called_on_or_off(write: Any) -> None:
    assert load_config(write(f"{BASE}mixture: {{replay: on}}\n")).mixture.replay == "on"
    assert load_config(None, [*MODELS, "mixture.replay=off"]).mixture.replay == "off"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.lr", "1e-3", 1e-3),
        ("train.lr", "1", 1.0),
        ("train.max_steps", "1e3", 1000),
        ("seed", "0x10", 16),
        ("seed", "1_000", 1000),
        ("clip.mass_price", "3", 3.0),
        ("clip.mass_price", "1e-3", 1e-3),
        ("clip.lower", "-.inf", float("-inf")),
        ("scrg.enabled", "on", True),
        ("scrg.enabled", "'no'", False),
        ("student.sft.seed", "null", None),
        ("student.sft.seed", "", None),
        ("data.dev", "", ""),
    ],
)
def test_a_number_is_the_one_that_is_seen(write: Any, key: str, text: str, value: Any) -> None:
    overrides = [*MODELS, "train.epochs=1"]
    for config in (
        load_config(None, [*overrides, f"{key}={text}"]),
        load_config(write(f"{key}: {text}\n"), overrides),
    ):
        found: Any = config
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "takes"),
    [
        ("seed", "010", "a whole number"),
        ("seed", "12:30", "a whole number"),
        ("seed", "on", "a whole number"),
        ("seed", "1.5", "a whole number"),
        ("seed", "9" * 5000, "a whole number"),
        ("seed", "0x" + "f" * 400, "a whole number"),
        ("train.lr", "010", "a number"),
        ("train.lr", "1:30.5", "a number"),
        ("train.lr", "true", "a number"),
        ("train.betas", "[0.9, x]", "a number"),
        ("train.betas", "[[0.9], 0.9]", "single value, not a list"),
        ("clip.mass_price", "010", "a number or auto"),
        ("scrg.enabled", "2", "true or false"),
        ("data.test_sets", "[a.jsonl]", "names and values"),
        ("data.test_sets", "a.jsonl", "names and values"),
        ("data.test_sets", "{a: [b]}", "test_sets.a` is a single value, not a list"),
        ("arm", "[a]", "single value, not a list"),
        ("arm", "null", "is empty"),
        ("train.lr", "null", "is empty"),
        ("train", "3", "a section with keys of its own"),
        ("train.lr.x", "3", "a single value, not a section"),
        ("evaluation.seeds", "3", "takes a list"),
        ("data.dev", '"a\\0b"', "no text"),
        ("data.dev", '"a\\ud800b"', "no text"),
        ("arm", '"a\\nb"', "names a folder"),
        ("arm", "a" * 201, "names a folder"),
        ("experiment", "results", "a folder with a meaning below the run root"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_place(write: Any, key: str, text: str, takes: str) -> None:
    path = write(f"{BASE}{key}: {text}\n")
    said = refused(path)
    assert said.startswith(f"{path}:4: `{key.removesuffix('.x')}") and takes in said
    said = refused(None, *MODELS, f"{key}={text}")
    assert said.startswith(f"command line: `{key.removesuffix('.x')}") and takes in said


@pytest.mark.parametrize(
    "text",
    [
        "train: {lr: 1}\ntrain.lr: 2",
        "train.lr: 2\ntrain: {lr: 1}",
        "teacher.sft: {lr: 1}\nteacher: {sft: {lr: 1}}",
        "data.test_sets: {a: b}\ndata: {test_sets.a: c}",
    ],
)
def test_a_key_given_in_a_section_and_dotted_is_refused(write: Any, text: str) -> None:
    path = write(text)
    assert refused(path, *MODELS).startswith(f"{path}:2: `") and "given twice" in refused(path, *MODELS)
    study = write(f"base: {write(BASE)}\narms:\n  a:\n    {text}\n".replace("\ndata", "\n    data"), "study.yaml")
    if "\n    data: " in study.read_text():
        with pytest.raises(ConfigError, match=r"arm `a`: `data.test_sets` is given twice"):
            load_study(study)


def test_test_sets_are_added_and_cleared(write: Any) -> None:
    path = write(f"{BASE}data: {{test_sets: {{a: a.jsonl}}, test_sets.b: b.jsonl}}\n")
    assert load_config(path, ["data.test_sets.c=1"]).data.test_sets == {"a": "a.jsonl", "b": "b.jsonl", "c": "1"}
    assert load_config(path, ["data.test_sets={a: x}"]).data.test_sets == {"a": "x", "b": "b.jsonl"}
    assert load_config(path, ["data.test_sets={}"]).data.test_sets == {}
    assert load_config(path, ["data.test_sets={}", "data.test_sets.c.d=1"]).data.test_sets == {"c.d": "1"}


@pytest.mark.parametrize(
    "text",
    [
        "data: &a {synthetic: *a}",
        "train: {betas: &a [*a]}",
        "data: {test_sets: &a {x: *a}}",
        "arm: &a [*a]",
        "data: {synthetic: {families: &a [*a]}}",
    ],
)
def test_a_value_that_holds_itself_is_refused(write: Any, text: str) -> None:
    path = write(text)
    assert refused(path, *MODELS).startswith(f"{path}:1: ")


def test_a_study_that_holds_itself_is_refused(write: Any) -> None:
    for text in (
        "answer: &a {also: *a}",
        "contrasts: &a {x: *a}",
        "arms: {a: &a {train: *a}}",
        "question: &a [*a]",
    ):
        with pytest.raises(ConfigError, match=r"study\.yaml:\d"):
            load_study(write(f"base: x\n{text}\n" + ("" if "arms" in text else "arms: {b: {}}\n"), "study.yaml"))


def test_many_aliases_are_no_bomb(write: Any) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    assert "unknown key `a0`" in refused(write("\n".join(lines)))
    words = words_of(read_yaml(write("\n".join(lines))), "")
    assert words["a1"] == [["x", "x"], ["x", "x"]]


def test_merged_keys_are_read(write: Any) -> None:
    path = write(f"{BASE}train: &t {{lr: 1, epochs: 2}}\nstudent.sft: {{<<: *t, lr: 2}}\n")
    sft = load_config(path).student.sft
    assert (sft.lr, sft.epochs) == (2, 2)


def test_config_without_a_file_applies_the_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "arm=on", "scrg.passes=7", "data.test_sets={a: b}"]) == 0
    out = capsys.readouterr().out
    assert "\narm (str) = on\n" in out and "\nscrg.passes (int) = 7\n" in out and "= {'a': 'b'}\n" in out
    for bad in ("scrg.passes=-1", "scrg.pases=1", "arm=[a]"):
        assert main(["config", bad]) == 2
        assert capsys.readouterr().err.startswith("mgsr: error: command line: ")


def test_trees_in_memory_are_read_alike() -> None:
    tree = {"arm": "on", "train.lr": 1, "clip": {"lower": float("-inf")}, "student.sft.seed": None}
    config = config_from_tree(tree, MODELS)
    assert (config.arm, config.train.lr, config.clip.lower) == ("on", 1.0, float("-inf"))
    with pytest.raises(ConfigError, match="words, numbers, lists"):
        config_from_tree({"arm": object()})
