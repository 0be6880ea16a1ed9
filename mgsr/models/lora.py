"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) through peft, which is an optional extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from mgsr.runtime.errors import DataError, UserError


def add_lora(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: float,
    dropout: float = 0.0,
    target_modules: Sequence[str] | str | None = None,
) -> nn.Module:
    """Put adapters W + (alpha / r) B A beside linear layers, in place; they alone stay trainable.

    B starts at 0, so the function is unchanged until the first step; A is drawn from the global generator.

    Args:
        r: rank.
        alpha: scale, divided by `r`.
        dropout: on the adapters' input.
        target_modules: names of layers (`q_proj`), or `all-linear`; None = peft's choice for the family.

    Returns:
        A peft model around `model`, to be undone by `merge_lora`.

    Raises:
        UserError: peft is missing, a value is out of range, or a target is not in the model; an embedding as
            a target where input and output share one, since merging would change the other along.
    """
    if r < 1:
        raise UserError(f"lora r must be 1 or more, not {r}")
    if not 0.0 <= dropout < 1.0:
        raise UserError(f"lora dropout must be in [0, 1), not {dropout}")
    names = [target_modules] if isinstance(target_modules, str) else list(target_modules or ())
    for name in names:
        if name.rpartition(".")[2] in _tied_layers(model):
            raise UserError(f"lora target `{name}` is tied to the other embedding: leave it out")
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("adapters need peft: pip install 'peft>=0.19,<1'") from error
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    for name in names:
        if name != "all-linear" and name.rpartition(".")[2] not in present:
            raise UserError(f"lora target `{name}` is no layer of {type(model).__name__}")
    options: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": "all-linear" if names == ["all-linear"] else names or None,
        "fan_in_fan_out": _has_transposed_layers(model),
    }
    try:
        return get_peft_model(model, LoraConfig(**options))
    except ValueError as error:
        raise UserError(f"lora on {type(model).__name__}: {str(error).splitlines()[0]}") from error


def _tied_layers(model: PreTrainedModel) -> set[str]:
    """Last parts of the names of input and output embedding, where the two share a weight."""
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    if None in ends or ends[0].weight is not ends[1].weight:
        return set()
    return {name.rpartition(".")[2] for name, module in model.named_modules() if any(module is e for e in ends)}


def _has_transposed_layers(model: nn.Module) -> bool:
    """GPT-2 keeps its weights as [in, out]."""
    return any(type(module).__name__ == "Conv1D" for module in model.modules())


def merge_lora(model: nn.Module) -> PreTrainedModel:
    """Add the adapters into the weights and return the plain model. `model` is used up.

    Raises:
        ValueError: `model` carries no adapters of `add_lora`.
    """
    merge = getattr(model, "merge_and_unload", None)
    if merge is None:
        raise ValueError(f"{type(model).__name__} carries no adapters")
    return merge()


def has_adapters(model: nn.Module) -> bool:
    """Whether `add_lora` has made `model`."""
    return hasattr(model, "merge_and_unload")


def without_base(state: Mapping[str, Tensor], model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """`state` without the frozen weights below an adapted `model`; all of it where there are no adapters.

    Args:
        state: a state dict in which the names of `model` begin with `prefix`; other names are kept.
    """
    frozen = {f"{prefix}{name}" for name in _frozen(model)}
    return {name: tensor for name, tensor in state.items() if name not in frozen}


def with_base(state: Mapping[str, Tensor], model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """The reverse of `without_base`: `state` with the frozen weights that `model` has; ready for a strict load.

    Raises:
        DataError: an adapted `model` and `state` do not have the same adapters, or `state` holds frozen weights.
    """
    if not has_adapters(model):
        return dict(state)
    frozen, own = _frozen(model), model.state_dict()
    held = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    shapes = {name: tuple(value.shape) for name, value in held.items()}
    expected = {name: tuple(value.shape) for name, value in own.items() if name not in frozen}
    differ = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
    if differ:
        what = "is missing" if differ[0] not in held else "does not fit"
        raise DataError(
            f"the checkpoint's adapters are not those of this student (`{differ[0]}` {what}, {len(differ)} in "
            "all): refused; take a checkpoint of this run"
        )
    return {**state, **{f"{prefix}{name}": own[name] for name in frozen}}


def _frozen(model: nn.Module) -> set[str]:
    """Names of the weights below the adapters, every name of a tied one; none without adapters."""
    if not has_adapters(model):
        return set()
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if not parameter.requires_grad}
