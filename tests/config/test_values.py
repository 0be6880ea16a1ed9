"""Every number has bounds, keys without effect are told of, and paths mean the same from everywhere."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mgsr.config.checks import check_device
from mgsr.config.keys import types_of, walk
from mgsr.config.load import config_from_tree, dump, load_config, unfinished, with_absolute_paths
from mgsr.config.schema import ExperimentConfig
from mgsr.config.values import without_effect
from mgsr.runtime.errors import ConfigError
from mgsr.study.study import load_study
from tests.config.test_layers import BASE, MODELS, refused

NUMBERS = {
    name: (meta["low"], meta["high"])
    for name, _, meta in walk(ExperimentConfig())
    if any(kind in str(types_of(ExperimentConfig)[name]) for kind in ("int", "float"))
}
# where a bound of the clipping ends is told by an infinite one
INFINITE = ("clip.lower", "clip.upper")


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_bounds(name: str) -> None:
    low, high = NUMBERS[name]
    assert low is not None and high is not None and low < high
    assert name in INFINITE or (math.isfinite(low) and math.isfinite(high))
    listed = "list" in str(types_of(ExperimentConfig)[name])
    for value in (".nan", *(() if name in INFINITE else (".inf", "-.inf", "1e38", "-1e38"))):
        said = refused(None, *MODELS, f"{name}=[{value}]" if listed else f"{name}={value}")
        assert said.startswith(f"command line: `{name}` is ")


@pytest.mark.parametrize("name", sorted(NUMBERS.keys() - set(INFINITE)))
def test_a_number_is_taken_at_its_bounds_and_not_beyond(name: str) -> None:
    low, high = NUMBERS[name]
    kind = str(types_of(ExperimentConfig)[name])
    beyond = (math.nextafter(low, -math.inf), math.nextafter(high, math.inf))
    if "int" in kind:
        beyond = (low - 1, high + 1)
    form = "{}=[{}]" if "list" in kind else "{}={}"
    for value in (low, high):
        unfinished([form.format(name, value)])
    for value, side in zip(beyond, ("at least", "at most"), strict=True):
        with pytest.raises(ConfigError, match=rf"^command line: `{name}` is .*{side}"):
            unfinished([form.format(name, value)])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 2**63),
        ("seed", 2**64),
        ("student.sft.seed", -5),
        ("evaluation.seeds", [-1]),
        ("teacher.architecture.hidden_size", 10**9),
        ("data.synthetic.vocab_size", 10**9),
        ("train.lr", 1e38),
        ("clip.lr", 1e38),
        ("objective.temperature", 1e300),
        ("evaluation.temperature", 1e300),
        ("evaluation.temperature", 1e-30),
        ("scrg.passes", 10**9),
        ("trainer.threads", 5000),
        ("trainer.timeout_minutes", 10**12),
        ("student.keep_layers", [-1]),
        ("clip.mass_price", -1),
        ("evaluation.seeds", [1, 1]),
    ],
)
def test_what_would_crash_later_is_refused(key: str, value: Any) -> None:
    assert refused(None, *MODELS, f"{key}={value}").startswith(f"command line: `{key}`")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["teacher.gguf_file=x"], "teacher.gguf_file=''"),
        (["student.revision=main"], "student.revision=''"),
        (["student.dtype=float16"], "trainer.precision=16-mixed"),
        (["teacher.dtype=float16", "teacher.sft.enabled=true"], "teacher.dtype=float32"),
        (["trainer.precision=16-mixed", "trainer.accelerator=cpu"], "bf16-mixed"),
        (["trainer.accelerator=mps"], "auto | cpu | gpu | cuda"),
        (
            ["objective.w_sft=0", "objective.w_dac=0", "objective.w_span=0", "scrg.enabled=false"],
            "nothing would train",
        ),
        (["teacher.source=teacher"], "for a student"),
        (["clip.mode=fixed", "clip.lower=0.9", "clip.upper=0.1"], "lower 0.9 <= upper 0.1"),
        (["run_root="], "name a folder"),
        (["run_root=~nobody_of_this_name/x"], "no such user"),
    ],
)
def test_what_has_no_meaning_or_no_number_is_refused(overrides: list[str], said: str) -> None:
    assert said in refused(None, *MODELS, *overrides)


def test_a_device_is_refused_where_the_run_begins() -> None:
    """`auto` is read on one machine and taken on another."""
    config = load_config(None, [*MODELS, "trainer.precision=16-mixed"])
    check_device(config, "cuda")
    with pytest.raises(ConfigError, match=r"set trainer\.") as caught:
        check_device(config, "cpu")
    assert "trainer.accelerator" in caught.value.keys


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], {}),
        (["clip.lower=0.1"], {"clip.lower": "clip.mode=fixed"}),
        (["clip.lower=0.1", "clip.mode=fixed"], {}),
        (["clip.mode=fixed", "objective.divergence=forward_kl"], {"clip.mode": "objective.divergence=dac_kl"}),
        (["student.sft.lr=0.1"], {"student.sft.lr": "student.sft.enabled"}),
        (["student.sft.seed=3"], {}),
        (["train.epochs=3", "train.max_steps=4"], {"train.epochs": "train.max_steps=0"}),
        (["scrg.enabled=false"], {}),
        (["scrg.enabled=false", "scrg.passes=3"], {"scrg.passes": "scrg.enabled"}),
        (["mixture.adaptive_step=0.2"], {"mixture.adaptive_step": "mixture.kind=adaptive"}),
        (["student.lora.alpha=2"], {"student.lora.alpha": "student.lora.r"}),
        (
            ["student.source=x", "student.architecture.hidden_size=8", "teacher.architecture.hidden_size=8"],
            {"student.architecture.hidden_size": "student.source=init"},
        ),
        (["evaluation.temperature=0", "evaluation.top_p=0.5"], {"evaluation.top_p": "evaluation.temperature"}),
        (["data.synthetic.vocab_size=300"], {}),
    ],
)
def test_a_key_without_effect_is_told_of(overrides: list[str], told: dict[str, str]) -> None:
    expected = [f"`{name}` (command line) has no effect without {needs}" for name, needs in told.items()]
    assert without_effect(load_config(None, [*MODELS, *overrides])) == expected


def test_what_is_switched_off_elsewhere_is_meant_so(write: Any) -> None:
    base = write(f"{BASE}scrg: {{passes: 3}}\nclip: {{lower: 0.1}}\n")
    arms = "arms:\n  a: {scrg.enabled: false}\n  b: {clip.lower: 0.2}\n"
    study = load_study(write(f"base: {base}\n{arms}", "study.yaml"))
    [line] = without_effect(study.config("a", 0))
    assert line.startswith(f"`clip.lower` ({base}:5)")
    [line] = without_effect(study.config("b", 0))
    assert "study.yaml:4, arm `b`) has no effect without clip.mode=fixed" in line
    assert without_effect(study.config("a", 0, ["clip.mode=top_k"])) == []


def test_conditions_name_keys_that_are_there() -> None:
    """And what they ask of a key with choices is one of these."""
    metas = {name: meta for name, _, meta in walk(ExperimentConfig())}
    asked = [condition for meta in metas.values() for condition in meta["when"].split()]
    assert len(asked) > 100
    for condition in asked:
        name, _, options = condition.partition("=")
        assert name in metas
        choices = metas[name]["choices"]
        assert not choices or set(options.split("|")) <= set(map(str, choices)), condition


def test_home_is_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["run_root=~/runs", "data.train=~/a.jsonl", "data.test_sets.b=~/b.jsonl", "clip.run=~/c"]
    config = load_config(None, [*MODELS, *words, "student.source=~/m"])
    assert (config.run_root, config.data.train) == (f"{tmp_path}/runs", f"{tmp_path}/a.jsonl")
    assert config.data.test_sets == {"b": f"{tmp_path}/b.jsonl"} and config.clip.run == f"{tmp_path}/c"
    assert config.student.source == f"{tmp_path}/m" and "~" not in dump(config)


def test_relative_paths_that_exist_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl", "synthetic", "init", "model"):
        (tmp_path / name).mkdir()
    tree = {"data": {"train": "a.jsonl", "dev": "synthetic", "test": "gone.jsonl", "test_sets": {"b": "b.jsonl"}}}
    config = config_from_tree(tree, ["teacher.source=model", "student.source=init", "clip.run=a.jsonl"])
    found = with_absolute_paths(config)
    assert (found.data.train, found.data.dev, found.data.test) == (
        f"{tmp_path}/a.jsonl",
        "synthetic",
        "gone.jsonl",
    )
    assert found.data.test_sets == {"b": f"{tmp_path}/b.jsonl"} and found.clip.run == f"{tmp_path}/a.jsonl"
    assert (found.teacher.source, found.student.source) == (f"{tmp_path}/model", "init")
    assert found.run_root == "runs" and config.data.train == "a.jsonl"
    monkeypatch.chdir("/")
    assert with_absolute_paths(found) == found
