"""Configuration: every mistake is refused by name, every shipped file parses, every key is explained."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsr.config.keys import describe
from mgsr.config.load import (
    config_from_tree,
    dump,
    fingerprint,
    flat_tree,
    load_config,
)
from mgsr.config.schema import DIVERGENCE_NAMES, ExperimentConfig
from mgsr.config.yaml_reader import repeated_key
from mgsr.data.splits import read_split
from mgsr.losses import DIVERGENCES
from mgsr.runtime.errors import ConfigError, UserError
from mgsr.study.study import load_study
from tests.config.test_shipped import OLD_FORM

ROOT = Path(__file__).parents[2]
MODELS = ["teacher.source=init", "student.source=init", "data.train=synthetic"]


def message(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [*MODELS, *overrides])
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_config_parses_and_draws_its_rows(path: Path) -> None:
    config = load_config(path)
    assert config.experiment
    if config.data.train == "synthetic":
        rows = {split: len(read_split(config.data, split)) for split in ("dev", "test")}
        assert rows == {"dev": config.data.synthetic.dev_rows, "test": config.data.synthetic.test_rows}


STUDIES = [p for p in sorted((ROOT / "experiments").rglob("*.yaml")) if p.parent.name not in OLD_FORM]


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.parent.name)
def test_every_shipped_study_parses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = load_study(path)
    assert len({dump(replace(study.config(arm, 0), arm="same")) for arm in study.arms}) == len(study.arms) > 1


def test_every_key_is_explained() -> None:
    entries = list(describe(ExperimentConfig()))
    assert len(entries) > 100
    for name, kind, _, text in entries:
        assert kind and len(text) >= 5, name


def test_overrides_reach_every_depth_and_type() -> None:
    config = load_config(
        None,
        [
            *MODELS,
            "scrg.passes=3",
            "clip.upper=.inf",
            "clip.mass_price=0.5",
            "student.keep_layers=[0, 2]",
            "teacher.architecture.hidden_size=32",
            "student.sft.seed=4",
            "data.test_sets={vicuna: v.jsonl}",
            "train.lr=1e-3",
        ],
    )
    assert config.scrg.passes == 3 and config.clip.upper == float("inf") and config.clip.mass_price == 0.5
    assert config.student.keep_layers == [0, 2] and config.teacher.architecture.hidden_size == 32
    assert config.student.sft.seed == 4 and config.data.test_sets == {"vicuna": "v.jsonl"}
    assert config.train.lr == pytest.approx(1e-3)


def test_a_dumped_config_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(None, [*MODELS, "clip.lower=-.inf", "evaluation.seeds=[1]", "scrg.passes=5"])
    path = tmp_path / "config.yaml"
    path.write_text(dump(config))
    assert load_config(path) == config


def test_unknown_key_names_the_nearest() -> None:
    assert message("scrg.pases=3") == "command line: unknown key `scrg.pases`; did you mean `passes`?"
    assert "did you mean `train.lr` or " in message("trian.lr=1")


def test_unknown_key_in_a_file_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("experiment: x\nscrg:\n  passes: 1\n  kl_treshold: 2\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, MODELS)
    expected = f"{path}:4: unknown key `scrg.kl_treshold`; did you mean `kl_threshold`?"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("scrg.passes=many", ("`scrg.passes`", "many", "whole number")),
        ("scrg.passes=-1", ("`scrg.passes`", "-1", "at least 0")),
        ("train.lr=.nan", ("`train.lr`", "nan")),
        ("clip.ramp=sigmod", ("`clip.ramp`", "sigmoid")),
        ("scrg=3", ("`scrg`", "section")),
        ("train.lr={a: 1}", ("`train.lr`", "single value")),
        ("clip.mass_price=cheap", ("`clip.mass_price`", "auto")),
        ("clip.upper_min=0.2", ("lower_max", "upper_min")),
        ("clip.sharpness=0", ("clip.sharpness", "fixed")),
        ("clip.mode=mean_of_run", ("clip.run",)),
        ("data.max_prompt_length=512", ("max_prompt_length", "max_length")),
        ("evaluation.seeds=[-1]", ("evaluation.seeds",)),
        ("evaluation.seeds=3", ("evaluation.seeds", "takes a list, as in [a, b]")),
        ("data.synthetic.families=sort", ("data.synthetic.families", "takes a list, as in [a, b]")),
        ("teacher.source=''", ("teacher.source",)),
        ("objective.w_dac=0 objective.w_span=0", ("scrg.enabled=false",)),
        ("objective.kind=minillm", ("scrg.text=mixed",)),
        ("arm=../up", ("`arm`", "folder")),
        ("scrg.passes", ("not an override",)),
        ("train.betas=[0.9]", ("train.betas",)),
    ],
)
def test_bad_values_are_refused_by_name(override: str, parts: tuple[str, ...]) -> None:
    text = message(*override.split(" ")) if "{" not in override else message(override)
    for part in parts:
        assert part in text, text


def test_bad_files_are_one_line(tmp_path: Path) -> None:
    near = tmp_path / "demo.yaml"
    near.write_text("a: [1\nb: 2\n")
    for path, part in (
        (tmp_path / "deno.yaml", "did you mean"),
        (near, "not valid YAML"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=part):
            load_config(path)
    near.write_text("- a\n")
    with pytest.raises(ConfigError, match="mapping"):
        load_config(near)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_tree_is_read_or_refused_cleanly(tree: object) -> None:
    text = yaml.safe_dump(tree)
    loaded = yaml.safe_load(text)
    if not isinstance(loaded, dict):
        return
    try:
        config_from_tree(loaded, MODELS)
    except UserError as error:
        assert str(error)


def test_flat_and_dotted_keys_mean_the_same() -> None:
    nested = config_from_tree({"scrg": {"passes": 2}}, MODELS)
    dotted = config_from_tree({"scrg.passes": 2}, MODELS)
    assert nested == dotted
    assert flat_tree({"scrg": {"passes": 2}}) == {"scrg.passes": 2}


def test_fingerprint_sees_every_change() -> None:
    config = load_config(None, MODELS)
    other = load_config(None, [*MODELS, "scrg.passes=2"])
    assert fingerprint(asdict(config)) == fingerprint(asdict(load_config(None, MODELS)))
    assert fingerprint(asdict(config)) != fingerprint(asdict(other))
    assert len({fingerprint(1), fingerprint("1"), fingerprint([1]), fingerprint(1.0)}) == 4
    assert isinstance(config, ExperimentConfig)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("teacher.sft.betas=[0.9]", "teacher.sft.betas"),
        ("student.sft.betas=[1.5, 0.9]", "student.sft.betas"),
        ("evaluation.top_p=0", "evaluation.top_p"),
        ("clip.sharpness=.inf", "clip.sharpness"),
        ("data.test_sets={train: x.jsonl}", "data.test_sets"),
        ("data.test_sets={../x: x.jsonl}", "data.test_sets"),
        ("teacher.placement=sharded", "trainer.strategy"),
        ("clip.mass_price=.inf", "clip.mass_price"),
        ("clip.mass_price=cheap", "clip.mass_price"),
    ],
)
def test_values_that_would_fail_later_are_refused_now(override: str, named: str) -> None:
    assert named in message(override)


def test_a_price_may_be_written_as_any_number() -> None:
    for text, value in (("1", 1.0), ("1e-3", 1e-3), ("0.5", 0.5)):
        assert load_config(None, [*MODELS, f"clip.mass_price={text}"]).clip.mass_price == value


def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("scrg: {passes: 3}\ntrain:\n  lr: 1.0e-3\n  epochs: 2\n  lr: 2.0e-3\n")
    with pytest.raises(ConfigError, match=r"twice\.yaml:5: `lr` stands twice \(line 3 first\)"):
        load_config(path, MODELS)
    # what is meant in two places is no repetition, and what holds itself comes to an end
    path.write_text("train: {betas: &b [0.9, 0.95]}\nteacher: {sft: {betas: *b}}\n")
    assert load_config(path, MODELS).teacher.sft.betas == [0.9, 0.95]
    assert repeated_key(yaml.compose("&a [*a, {b: 1}, {b: 2}]", Loader=yaml.SafeLoader)) is None


def test_a_configuration_can_name_every_divergence() -> None:
    assert ("dac_kl", *DIVERGENCES) == DIVERGENCE_NAMES
