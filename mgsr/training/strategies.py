"""Configuration -> Lightning strategy."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from mgsr.config.schema import TrainerConfig
from mgsr.training.checkpoint import read_checkpoint


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 whose checkpoint is one whole file, as any other strategy's: each takes up what another wrote."""

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        content = read_checkpoint(Path(self.broadcast(checkpoint_path)))
        assert self.model is not None
        # frozen weights below adapters are in no checkpoint; the module checks the names that are
        whole = all(parameter.requires_grad for parameter in self.model.parameters())
        options = StateDictOptions(full_state_dict=True, strict=whole)
        set_model_state_dict(self.model, dict(content["state_dict"]), options=options)
        for optimizer, state in zip(self.optimizers, content["optimizer_states"], strict=True):
            named = _by_name(state, optimizer, self.model)
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
        return content


def _by_name(state: dict[str, Any], optimizer: Optimizer, model: Any) -> dict[str, Any]:
    """An optimiser's state with parameters by name instead of number; they keep their places in the groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_number: dict[Any, str] = {}
    groups = []
    for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
        here = [names[id(parameter)] for parameter in group["params"]]
        by_number.update(zip(saved["params"], here, strict=True))
        groups.append({**saved, "params": here})
    return {"state": {by_number[k]: v for k, v in state["state"].items()}, "param_groups": groups}


def build_strategy(config: TrainerConfig, *, unused_parameters: bool = False) -> str | Strategy:
    """`auto` on one device; DistributedDataParallel on several, or where it is asked for; FSDP2.

    Args:
        unused_parameters: some of the trained parameters may get no gradient in a step.
    """
    timeout = timedelta(minutes=config.timeout_minutes)
    if config.strategy == "fsdp2":
        return ShardedStrategy(
            data_parallel_size=config.devices * config.num_nodes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            timeout=timeout,
        )
    if config.strategy == "ddp" or config.devices * config.num_nodes > 1:
        return DDPStrategy(timeout=timeout, gradient_as_bucket_view=True, find_unused_parameters=unused_parameters)
    return "auto"
