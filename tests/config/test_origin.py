"""A mistake is blamed on the place where it was made: a line of a file, an arm, or the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mgsr.config.load import load_config
from mgsr.config.origin import placed, where
from mgsr.config.schema import ExperimentConfig
from mgsr.runtime.errors import ConfigError
from mgsr.study.study import load_study
from tests.config.test_layers import BASE, refused


@pytest.mark.parametrize(
    ("base", "override", "said"),
    [
        ("train: {lr: 1}", "train.lr=-1", "command line: `train.lr`"),
        ("train: {lr: -1}", "seed=1", "{path}:4: `train.lr`"),
        ("train: {lr: -1}", "train.lr=1", ""),
        ("clip: {sharpness: 0}", "seed=1", "{path}:4: `clip.sharpness`"),
        ("seed: 1", "clip.sharpness=0", "command line: `clip.sharpness`"),
        (
            "data:\n  max_length: 100",
            "data.max_prompt_length=200",
            "command line (data.max_prompt_length), {path}:5 (data.max_length): `data.max_prompt_length`",
        ),
        (
            "objective: {kind: minillm}",
            "scrg.text=student",
            "{path}:4 (objective.kind), command line (scrg.text): ",
        ),
        (
            "trainer: {precision: 16-mixed}",
            "trainer.accelerator=cpu",
            "{path}:4 (trainer.precision), command line",
        ),
        ("teacher.placement: sharded", "seed=1", "{path}:4: `teacher.placement"),
        ("data.test_sets: {test: a}", "data.test_sets.b=c", "command line: `data.test_sets`"),
        ("evaluation: {seeds: [-1]}", "seed=1", "{path}:4: `evaluation.seeds`"),
        ("student.sft: {seed: -5}", "seed=1", "{path}:4: `student.sft.seed`"),
        ("student.sft: {betas: [2, 0]}", "seed=1", "{path}:4: `student.sft.betas`"),
        (
            "objective: {w_dac: 0}",
            "objective.w_span=0",
            "{path}:4 (objective.w_dac), command line (objective.w_span)",
        ),
    ],
)
def test_a_mistake_is_blamed_on_whoever_made_it(write: Any, base: str, override: str, said: str) -> None:
    path = write(f"{BASE}{base}\n")
    if not said:
        assert load_config(path, [override])
        return
    assert refused(path, override).startswith(said.format(path=path))


def test_an_arm_is_blamed_with_its_line(write: Any) -> None:
    base = write(f"{BASE}seed: 3\nclip: {{lower_max: 0.5}}\n")
    arms = "arms:\n  on: {scrg.passes: -1}\n  010:\n    seed: 1\n"
    with pytest.raises(ConfigError, match=r"study\.yaml:4, arm `010` sets `seed`"):
        load_study(write(f"base: {base}\n{arms}", "study.yaml"))
    arms = f"{arms.replace('seed: 1', 'clip.upper_min: 0.4')}  1.10: {{mixture.replay: off}}\n  null: {{}}\n"
    study = load_study(write(f"base: {base}\nbaseline: off\n{arms}  off: {{data.train: 0123}}\n", "study.yaml"))
    assert list(study.arms) == ["on", "010", "1.10", "null", "off"] and study.baseline == "off"
    assert study.config("off", 0).data.train == "0123" and study.config("1.10", 0).mixture.replay == "off"
    with pytest.raises(ConfigError, match=r"^\S*study\.yaml:4, arm `on`: `scrg.passes` is -1; it must be"):
        study.config("on", 0)
    both = r"^\S*config\.yaml:5 \(clip.lower_max\), \S*study\.yaml:6, arm `010` \(clip.upper_min\): `clip`"
    with pytest.raises(ConfigError, match=both):
        study.config("010", 0)
    with pytest.raises(ConfigError, match=r"^command line: `seed` is -1"):
        study.config("off", -1)
    with pytest.raises(ConfigError, match=r"^command line: `train.lr`"):
        study.config("off", 0, ["train.lr=-1"])


def test_an_arm_is_filled_in_before_it_is_read(write: Any, tmp_path: Path) -> None:
    base = write(BASE)
    values = "data.synthetic: {seed: '{run:b}'}, data.dev: '{run:b}/7', data.test_sets.1: '{run:b}'"
    study = load_study(write(f"base: {base}\narms: {{a: {{{values}}}, b: }}\n", "study.yaml"))
    config = study.config("a", 7, recorded={"b": "7"})
    assert config.data.synthetic.seed == 7 and config.data.dev == "7/7"
    assert config.data.test_sets == {"1": "7"}


def test_an_arm_cannot_write_where_no_command_said(write: Any, tmp_path: Path) -> None:
    study = load_study(write(f"base: {write(BASE)}\narms: {{a: {{run_root: {tmp_path}}}}}\n", "study.yaml"))
    with pytest.raises(ConfigError, match=r"arm `a`: `run_root`.*below the working folder"):
        study.config("a", 0, ["run_root=x"])


def test_places_go_with_the_configuration(write: Any) -> None:
    path = write(f"{BASE}train: {{lr: 1}}\n")
    config = load_config(path, ["scrg.passes=2"])
    assert where(config, "train.lr") == f"{path}:4" and where(config, "scrg.passes") == "command line"
    assert where(config, "teacher") == f"{path}:1" and where(config, "spans.norm") == ""
    assert where(replace(config), "train.lr") == "" == where(ExperimentConfig(), "train.lr")
    with pytest.raises(ConfigError, match=rf"^{path}:4: too high$"), placed(config):
        raise ConfigError("too high", "train.lr", "spans.norm")
    with pytest.raises(ConfigError, match=r"^no key$"), placed(config):
        raise ConfigError("no key")
