"""The file that `mgsr init` prints, and what a shipped file may not hand on to another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mgsr.config.keys import describe
from mgsr.config.load import dump, load_config
from mgsr.config.schema import ExperimentConfig
from mgsr.config.starting_file import starting_file
from mgsr.data.splits import is_file
from mgsr.runtime.errors import ConfigError

SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
WORDS = ["data.train=a.jsonl", "teacher.source=t", "student.source=s"]


def test_it_loads_as_soon_as_names_are_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(starting_file())
    with pytest.raises(ConfigError, match=r"my\.yaml:\d+ \(data\.train\), .*are empty: set data\.train=FILE t"):
        load_config(path)
    # what stands in it are the defaults
    assert dump(load_config(path, WORDS)) == dump(load_config(None, WORDS))
    path.write_text(
        starting_file([*WORDS, "clip.mode=fixed", "student.keep_layers=[0, 1]", "data.test_sets={a: b}"])
    )
    found = load_config(path)
    assert (found.clip.mode, found.student.keep_layers, found.data.test_sets) == ("fixed", [0, 1], {"a": "b"})


def test_its_comments_are_those_of_the_schema() -> None:
    text, helps = starting_file(), {name: line for name, _, _, line in describe(ExperimentConfig())}
    for name in ("data.train", "teacher.sft.enabled", "train.lr", "trainer.precision"):
        assert helps[name] in text
    assert "alpaca | plain" in text and "the sections objective, clip, spans, mixture" in text


def test_it_says_nothing_that_no_file_may_say() -> None:
    with pytest.raises(ConfigError, match="`run_root`"):
        starting_file(["run_root=/elsewhere"])
    with pytest.raises(ConfigError, match="unknown key"):
        starting_file(["train.rate=1"])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_needs_nothing_of_the_users(path: Path) -> None:
    config = load_config(path)
    for source in (config.data.train, config.data.dev, config.data.test, *config.data.test_sets.values()):
        assert source in ("", "synthetic") or not is_file(source)


OWN = "data.train: a.jsonl\nteacher.source: t\nstudent:\n  source: teacher\n  keep_layers: [0, 2]\n"


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (
            ["student.source=s"],
            r"own\.yaml:5: `student.keep_layers` is of student.source=teacher, and command line",
        ),
        (["teacher.source=u"], r"is of teacher.source=t, and command line names another model, u"),
        (["student.source=s", "student.keep_layers=[]"], ""),
        (["student.source=s", "student.keep_layers=[0]"], ""),
        (["teacher.source=t"], ""),
        (["train.epochs=2"], ""),
    ],
)
def test_what_is_part_of_a_model_does_not_pass_to_another(words: list[str], refused: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(OWN)
    if not refused:
        assert load_config(path, words).data.train == "a.jsonl"
        return
    with pytest.raises(ConfigError, match=refused):
        load_config(path, words)


@pytest.mark.parametrize("name", ["revision", "gguf_file", "trust_remote_code"])
def test_nor_do_a_revision_a_file_and_the_leave_to_run_code(name: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"data.train: a.jsonl\nteacher: {{source: t, {name}: yes}}\nstudent.source: s\n")
    with pytest.raises(ConfigError, match=rf"own\.yaml:2: `teacher\.{name}` is of teacher\.source=t"):
        load_config(path, ["teacher.source=u"])


@pytest.mark.parametrize("name", ["train.lr", "teacher.sft.lr", "student.sft.lr", "clip.lr"])
def test_a_rate_of_0_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"command line: `{name}` is 0"):
        load_config(None, [*WORDS, f"{name}=0"])


def test_all_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(
        ConfigError, match=r"^`data.train`, `teacher.source`, `student.source` are empty.*mgsr init"
    ):
        load_config(None)
    nothing: list[Any] = ["objective.w_dac=0", "objective.w_span=0", "scrg.enabled=false"]
    with pytest.raises(ConfigError, match=r"^`data.train`, `student.source` are empty"):
        load_config(None, nothing)
