"""FSDP2: parameters in parts on all ranks, and the whole model again where a rank has to work alone.

Whoever writes text calls the model another number of times than its neighbours do, and a sharded model is
gathered by all ranks together. So the student is put together once for a whole phase (`WholeCopy`), and a sharded
teacher is called in lockstep (`phase_of`). `build_strategy` chooses among FSDP2, DDP and one device.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mgsr import models
from mgsr.config.schema import ExperimentConfig, TrainerConfig
from mgsr.models.output_layer import causal_lm, last_hidden, trunk
from mgsr.runtime.devices import TYPES, move, working_device
from mgsr.runtime.ranks import agreed, is_first, largest, several, world_size
from mgsr.training.checkpoint import read_checkpoint


def is_sharded(module: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def shard_student(
    root: nn.Module, student: Any, mesh: DeviceMesh, forward: str, dtype: torch.dtype | None = None
) -> None:
    """Shard the student's layers one by one, and all other parameters below `root` as one group.

    Args:
        forward: name of the method of `root` inside which those others are whole: the output layer is read there.
        dtype: of parameters while they are whole, where it is narrower than their own; gradients are then summed
            over the ranks in float32.
    """
    policy = MixedPrecisionPolicy() if dtype is None else MixedPrecisionPolicy(dtype, torch.float32)
    for layer in models.decoder_layers(causal_lm(student)):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    # they are wanted again at once, in backward
    fully_shard(root, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    register_fsdp_forward_method(root, forward)


def shard_teacher(teacher: Any, mesh: DeviceMesh) -> None:
    """Shard a frozen model's layers; embeddings, last norm and output layer stay whole on every rank."""
    layers = models.decoder_layers(causal_lm(teacher))
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    outside = {p for p in teacher.parameters() if id(p) not in inside}
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    # the root of the sharding is what every reader calls; outside parameters are none of its business
    body = trunk(teacher)
    fully_shard(body, mesh=mesh, ignored_params={p for p in body.parameters() if p in outside})


def shard_at_loading(config: ExperimentConfig, teacher: Any) -> None:
    """Put a frozen teacher, just read, in parts on all ranks, if that is its placement; all have to call this.

    Each rank copies its own rows out of the mapped file, and holds besides what `shard_teacher` leaves whole.
    """
    device = working_device(config.trainer.accelerator)
    if config.teacher.placement == "sharded" and several():
        # of its content as a whole, which nobody has afterwards
        known = agreed(models.content_fingerprint(teacher) if is_first() else "")
        models.keep_fingerprint(teacher, known)
        shard_teacher(teacher, init_device_mesh(device.type, (world_size(),)))
        move(teacher.eval().requires_grad_(False), device)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all parts of a sharded one put together; every rank has to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class WholeCopy:
    """A plain model of another one's shape, sharded or not; it takes memory only while it is filled.

    Args:
        model: before it is sharded.
    """

    def __init__(self, model: nn.Module) -> None:
        memo: dict[int, Any] = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
            for p in model.parameters()
        }
        self._shell = copy.deepcopy(model, memo)
        # it has the types that it is filled with
        self._shell.__dict__.pop(TYPES, None)

    @torch.no_grad()
    def fill(self, model: nn.Module, dtype: torch.dtype | None = None, *, on_host: bool = False) -> Any:
        """The shell with the other model's weights as they are; of a sharded one every rank has to call this.

        Args:
            dtype: of its floating-point weights; None: as they are. Tied weights stay tied, and buffers that no
                checkpoint has keep their type, such as the frequencies of rotary positions.
            on_host: in the first rank's host memory alone; elsewhere the shell stays without content.
        """
        known: dict[int, nn.Parameter] = {}
        for there, here in zip(model.modules(), self._shell.modules(), strict=True):
            for name, parameter in there._parameters.items():
                if parameter is None:
                    continue
                if id(parameter) not in known:
                    # cast before it is gathered: half as much is sent
                    full = whole(_in_type(parameter.detach(), dtype))
                    if on_host:
                        full = full.to("cpu" if is_first() else "meta")
                    known[id(parameter)] = nn.Parameter(full, requires_grad=parameter.requires_grad)
                here._parameters[name] = known[id(parameter)]
            for name, buffer in there._buffers.items():
                aside = name in there._non_persistent_buffers_set
                kept = buffer if buffer is None or aside else _in_type(buffer, dtype)
                here._buffers[name] = kept.cpu() if kept is not None and on_host else kept
        self._shell.train(model.training)
        return self._shell

    @torch.no_grad()
    def empty(self) -> None:
        for module in self._shell.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(
                        torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
                    )


def _in_type(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


@contextmanager
def working(model: Any, dtype: torch.dtype | None) -> Iterator[Any]:
    """A model that computes in `dtype`: `model` itself where it does, else a copy, which is freed with the block.

    Autocast would cast all weights again at every token.

    Args:
        dtype: None: that of the weights.
    """
    if dtype is None or all(p.dtype == dtype for p in model.parameters() if p.is_floating_point()):
        yield model
        return
    copied = WholeCopy(model)
    try:
        yield copied.fill(model, dtype)
    finally:
        copied.empty()


@contextmanager
def phase_of(model: Any, device: torch.device) -> Iterator[None]:
    """In which ranks may call a model a different number of times, be it whole or in parts.

    Every forward of a sharded model begins with one small all-reduce, which says whether some rank still has work.
    A rank that is done goes on calling the model for the others. After an error nothing is awaited: the job ends.
    """
    if not is_sharded(model):
        yield
        return
    handle = trunk(model).register_forward_pre_hook(_still_working)
    try:
        yield
    finally:
        handle.remove()
    token = torch.zeros(1, 1, dtype=torch.long, device=device)
    while largest(0):
        with torch.no_grad():
            last_hidden(model, token)


def _still_working(*_: Any) -> None:
    largest(1)


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 whose checkpoint is one whole file, as any other strategy's: each takes up what another wrote."""

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        # mapped: of every weight each rank reads its own part
        content = read_checkpoint(Path(self.broadcast(checkpoint_path)), checked=True)
        assert self.model is not None
        # frozen weights below adapters are in no checkpoint; the module checks the names that are
        whole = all(parameter.requires_grad for parameter in self.model.parameters())
        models.check_state(str(checkpoint_path), content["state_dict"], self.model.state_dict(), complete=whole)
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
