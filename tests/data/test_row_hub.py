"""Data sets of the hub: which split is read for what, and one line at once where one cannot be had."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict

from mgsr.config.load import load_config
from mgsr.data import row_hub
from mgsr.data.row_hub import hub_id, is_file
from mgsr.data.rows import Row
from mgsr.data.splits import cut_splits, read_split
from mgsr.runtime import network
from mgsr.runtime.errors import DataError, UserError


def hub(**sizes: int) -> DatasetDict:
    """A set with these splits; every row has the name of its split in it."""
    rows = {
        name: [{"instruction": f"{name} {index}", "context": None, "response": "r"} for index in range(size)]
        for name, size in sizes.items()
    }
    return DatasetDict({name: Dataset.from_list(split) for name, split in rows.items()})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the hub was asked for; its answer is `asked[0]`."""
    log: list[Any] = [hub(train=30)]

    def load(*words: str) -> DatasetDict:
        log.append(words)
        if isinstance(log[0], Exception):
            raise log[0]
        return log[0]

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(row_hub, "is_reachable", lambda: True)
    return log


def parts(*words: str) -> dict[str, list[Row]]:
    data = load_config(None, ["data.train=some/set", *words, "student.source=a/b", "teacher.source=a/b"]).data
    return {split: read_split(data, split) for split in ("train", "dev", "test")}


def origins(rows: dict[str, list[Row]]) -> dict[str, tuple[int, str]]:
    return {name: (len(part), part[0].instruction.split()[0]) for name, part in rows.items()}


def test_a_set_with_one_split_is_cut(asked: list[Any]) -> None:
    found = parts("data.split.dev=10", "data.split.test=5", "data.split.seed=1")
    assert origins(found) == {"train": (15, "train"), "dev": (10, "train"), "test": (5, "train")}
    assert found["dev"][0].where == f"some/set[train]:{found['dev'][0].id + 1}"
    assert cut_splits(found) == ["dev", "test"]
    assert origins(parts())["dev"] == (3, "train")


def test_splits_are_used_where_they_exist(asked: list[Any]) -> None:
    asked[0] = hub(train=9, validation=4, test=3)
    found = parts()
    assert origins(found) == {"train": (9, "train"), "dev": (4, "validation"), "test": (3, "test")}
    assert cut_splits(found) == []
    asked[0] = hub(train=9, test=3)
    assert origins(parts()) == {"train": (8, "train"), "dev": (1, "train"), "test": (3, "test")}


def test_configurations_and_splits_may_be_named(asked: list[Any]) -> None:
    asked[0] = hub(train_sft=30, test_sft=20, test=4)
    words = ("data.train=some/set:main[train_sft]", "data.test=some/set:main[test_sft]")
    found = parts(*words)
    assert origins(found) == {"train": (27, "train_sft"), "dev": (3, "train_sft"), "test": (20, "test_sft")}
    assert asked[1] == ("some/set", "main") and found["test"][0].where == "some/set:main[test_sft]:1"
    # a set to test on needs nothing to train on
    assert origins(parts(*words[:1], "data.test=other/set"))["test"] == (4, "test")
    with pytest.raises(
        UserError, match=r"no split `train`, only test, test_sft, train_sft; .*data\.train='some/set\["
    ):
        parts()
    with pytest.raises(UserError, match=r"no split `x`, only test.*data\.test='some/set\[test\]'"):
        parts(*words[:1], "data.test=some/set[x]")
    assert hub_id("some/set:main[train]") == "some/set"


def test_a_bad_row_is_named(asked: list[Any]) -> None:
    asked[0] = DatasetDict(
        {"train": Dataset.from_list([{"instruction": "Q", "response": r} for r in ("r", None)])}
    )
    with pytest.raises(DataError, match=r"^some/set\[train\]:2: `response` is null.*fill it in"):
        parts()


def test_a_set_of_several_configurations_says_which(asked: list[Any]) -> None:
    asked[0] = ValueError(
        "Config name is missing.\nPlease pick one among the available configs: ['main', 'socratic']\nExample"
    )
    with pytest.raises(UserError, match=r"several configurations, main, socratic: name one, as in some/set:main$"):
        parts()
    asked[0] = ValueError("BuilderConfig 'x' not found. Available: ['main']\nmore")
    with pytest.raises(UserError, match=r"ValueError: BuilderConfig 'x' not found\. Available: \['main'\]$"):
        parts("data.train=some/set:x")
    asked[0] = datasets.exceptions.DatasetNotFoundError("Dataset 'some/set' doesn't exist")
    with pytest.raises(UserError, match="no file and no public data set of the hub has this name"):
        parts()


def test_a_hub_that_does_not_answer_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def head(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise OSError("Name or service not known")

    monkeypatch.setattr(network.constants, "ENDPOINT", f"https://{tmp_path.name}.invalid")
    monkeypatch.setattr(network.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(network, "get_session", lambda: type("Client", (), {"head": staticmethod(head)}))
    monkeypatch.chdir(tmp_path)
    Path("training.jsonl").write_text("")
    for name, hint in (("some/set", "$"), ("training", r"; did you mean `training\.jsonl`\?")):
        with pytest.raises(
            UserError, match=f"`{name}` cannot be loaded: the hub cannot be reached.*{hint}"
        ) as caught:
            parts(f"data.train={name}")
        assert "\n" not in str(caught.value)
    assert len(calls) == 1 and "Retry" not in caplog.text and not datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    "name", ["train.jsnl", "train.csv.gz", "./train", "a/b/c", "~/x", "data/train.json1", "a b"]
)
def test_what_is_clearly_a_file_is_not_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("data")
    assert is_file(name)
    with pytest.raises(DataError, match="no such file"):
        parts(f"data.train={name}")


@pytest.mark.parametrize(
    "name", ["a/set", "squad", "a/set-v1.1", "a/b.c", "openai/gsm8k:main[test]", "a/Fine.Tome"]
)
def test_what_may_be_on_the_hub_is(name: str) -> None:
    assert not is_file(name)
