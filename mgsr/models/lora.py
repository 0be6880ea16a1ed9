"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) through peft, which is an optional extra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from mgsr.errors import UserError


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
        UserError: peft is missing, a value is out of range, or a target is not in the model; the output
            head as a target where it is tied to the input embedding, which merging would change along.
    """
    if r < 1:
        raise UserError(f"lora r must be 1 or more, not {r}")
    if not 0.0 <= dropout < 1.0:
        raise UserError(f"lora dropout must be in [0, 1), not {dropout}")
    names = [target_modules] if isinstance(target_modules, str) else list(target_modules or ())
    if "lm_head" in names and model.config.tie_word_embeddings:
        raise UserError("lora target `lm_head` is tied to the input embedding: leave it out")
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("adapters need the extra `lora`: pip install 'mgsr[lora]'") from error
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
