"""A whole checkpoint of another model, under its right checksum, is refused in one line that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mgsr.config.schema import ExperimentConfig
from mgsr.runtime.errors import DataError
from mgsr.runtime.files import write_checked
from mgsr.training.export import export, load_run
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train

Make = Callable[..., ExperimentConfig]
State = dict[str, torch.Tensor]


def wider(state: State) -> State:
    return {
        name: torch.cat([value, value]) if name.endswith("embed_tokens.weight") else value
        for name, value in state.items()
    }


def with_a_layer_more(state: State) -> State:
    more = {name.replace("layers.0.", "layers.1."): value for name, value in state.items() if "layers.0." in name}
    return state | more


def without_a_weight(state: State) -> State:
    return {name: value for name, value in state.items() if not name.endswith("norm.weight") or "layers" in name}


def rewritten(path: Path, change: Callable[[Any], Any]) -> None:
    content = change(torch.load(path, weights_only=True))
    write_checked(path, lambda file: torch.save(content, file))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (wider, r"`\S*embed_tokens.weight` is \d+x8 in it and \d+x8 here"),
        (with_a_layer_more, r"`\S*layers\.1\.\S+` is \S+ in it and absent here \(9 such\)"),
        (without_a_weight, r"`\S*norm.weight` is absent in it and 8 here \(1 such\)"),
    ],
    ids=["wider", "deeper", "incomplete"],
)
def test_weights_of_another_model_are_one_line(make_config: Make, tmp_path: Path, change: Any, said: str) -> None:
    config = make_config("train.epochs=1", "teacher.sft.max_steps=2", "student.sft.max_steps=2")
    train(config)
    folder = run_folder(config)
    checkpoints = folder / "checkpoints"

    def spoilt(content: dict[str, Any]) -> dict[str, Any]:
        return content | {"state_dict": change(content["state_dict"])}

    for path in checkpoints.glob("*.ckpt"):
        rewritten(path, spoilt)
    (folder / "metrics.json").unlink()
    places = {
        "best.ckpt": (lambda: load_run(folder), lambda: export(folder, tmp_path / "out")),
        "resume-00000004.ckpt": (lambda: train(config, resume=True),),
    }
    for name, actions in places.items():
        for action in actions:
            with pytest.raises(DataError, match=f"{name}: is of another model: {said}") as caught:
                action()
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert not (tmp_path / "out").exists()


def test_values_that_are_no_checkpoint_are_refused(make_config: Make) -> None:
    config = make_config("train.epochs=1", "teacher.sft.max_steps=2", "student.sft.max_steps=2")
    train(config)
    best = run_folder(config) / "checkpoints" / "best.ckpt"
    for content in ({}, {"state_dict": [1]}, {"state_dict": {"student.a": 1}}):
        rewritten(best, lambda _, content=content: content)  # type: ignore[misc]
        with pytest.raises(DataError, match=r"best\.ckpt.*refused"):
            load_run(run_folder(config))
