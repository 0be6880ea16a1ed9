"""AdamW is fused on NVIDIA's GPUs alone, and a checkpoint of the other kind goes on."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mgsr.config.schema import TrainConfig
from mgsr.training.optim import build_optimizer, takes_fused, use_fused


def trainer(device: str, scaler: object = None) -> Any:
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(strategy=strategy, precision_plugin=SimpleNamespace(scaler=scaler))


def test_where_it_is_fused() -> None:
    assert takes_fused(trainer("cuda", None)) and not takes_fused(trainer("cpu"))
    # it would unscale float16 gradients behind the clipping
    assert not takes_fused(trainer("cuda", object()))


@pytest.mark.parametrize("fused", [False, True])
def test_both_take_the_same_step_and_each_others_state(fused: bool) -> None:
    torch.manual_seed(0)
    model, total = nn.Linear(3, 2).double(), {"clip_lr": 1.0, "total_steps": 4}

    def step(optimizer: torch.optim.Optimizer, trained: nn.Module) -> list[float]:
        for place, weight in enumerate(trained.parameters()):
            weight.grad = torch.full_like(weight, 0.5 + place)
        optimizer.step()
        return [value for weight in trained.parameters() for value in weight.flatten().tolist()]

    first, _ = build_optimizer(model, None, TrainConfig(), fused=fused, **total)  # type: ignore[arg-type]
    assert {bool(group["fused"]) for group in first.param_groups} == {fused}
    step(first, model)
    state, other = first.state_dict(), copy.deepcopy(model)
    use_fused([state], not fused)
    second, _ = build_optimizer(other, None, TrainConfig(), fused=not fused, **total)  # type: ignore[arg-type]
    second.load_state_dict(state)
    assert {bool(group["fused"]) for group in second.param_groups} == {not fused}
    assert step(second, other) == pytest.approx(step(first, model), rel=1e-12)
