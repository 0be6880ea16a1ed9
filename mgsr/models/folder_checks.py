"""What is wrong with a model folder: its small files, names, shapes and kind of its weights, then their values.

All but the values is known before a weight is read, from the headers of its files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from mgsr.runtime.errors import DataError, UserError
from mgsr.runtime.progress import say
from mgsr.runtime.wording import plural

ANEW = "take the folder anew from where it came"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt"})
# as safetensors names them
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def check_weights_folder(folder: Path) -> list[Path]:
    """The safetensors files of a folder that holds a config too. Pickle is never opened.

    Raises:
        UserError: it holds no config, or no such file.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"`{folder}` is not a model folder: it holds no config.json")
    files = [path for path in sorted(folder.glob("*.safetensors")) if path.is_file()]
    if files:
        return files
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLE_SUFFIXES)
    if pickles:
        raise UserError(
            f"`{folder}` holds pickled weights ({pickles[0]}), which can run code when they are read: "
            "convert them to safetensors first"
        )
    raise UserError(f"`{folder}` holds no *.safetensors weights")


def check_files(folder: Path) -> None:
    """See that a model folder's files are all there, whole, and of the kind that is trained.

    Raises:
        UserError: they are not; the message names the file.
    """
    files = check_weights_folder(folder)
    config = read_object(folder / "config.json")
    if (folder / "generation_config.json").exists():
        read_object(folder / "generation_config.json")
    if (folder / _INDEX).exists():
        _check_index(folder)
    elif not (folder / _WEIGHTS).is_file():
        raise UserError(f"`{folder}` holds {files[0].name} and neither {_WEIGHTS} nor {_INDEX}: {ANEW}")
    names = [name for path in files for name in _tensors_in(path)]
    depth = config.get("num_hidden_layers", config.get("n_layer"))
    if isinstance(depth, int) and depth > len(names):
        # a model of so many layers would be built before anything is compared
        raise UserError(f"`{folder}/config.json` asks for {depth} layers and its weights are {len(names)}: {ANEW}")


def _check_index(folder: Path) -> None:
    files = read_object(folder / _INDEX).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise UserError(f"`{folder / _INDEX}` has no `weight_map` from weights to files: {ANEW}")
    missing = sorted({name for name in files.values() if not (folder / name).is_file()})
    if missing:
        raise UserError(f"`{folder / missing[0]}` is missing, which {_INDEX} names: {ANEW}")


def _tensors_in(path: Path) -> list[str]:
    """Names of the tensors of a file whose header is whole and covers the file."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            for name in names:
                kind = file.get_slice(name).get_dtype()
                if kind not in _FLOATS and name.endswith(".weight"):
                    raise UserError(
                        f"`{path}`: `{name}` is of type {kind}: quantised weights are not trained on; take the "
                        "model in float32, float16 or bfloat16"
                    )
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise UserError(f"`{path}` is torn or no safetensors file ({reason}): {ANEW}") from error
    return names


def stored_type(folder: Path) -> torch.dtype | None:
    """The one type that all tensors of a folder's files have; None where they differ."""
    kinds = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            kinds |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    return _FLOATS.get(kinds.pop()) if len(kinds) == 1 else None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file of a model folder that holds an object.

    Raises:
        UserError: it does not parse, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"`{path}` is not a valid JSON file ({reason}): {ANEW}") from error
    if not isinstance(content, dict):
        raise UserError(f"`{path}` holds no JSON object: {ANEW}")
    return content


def check_report(source: str, depth: int | None, report: Mapping[str, Any]) -> None:
    """Compare the weights of a model with what its config asks for.

    Args:
        source: for the message; depth: number of layers of the config.
        report: what transformers gives with `output_loading_info`.

    Raises:
        UserError: weights are missing, of another shape, or of layers that the config does not have.
    """
    missing, shapes = sorted(report["missing_keys"]), sorted(report["mismatched_keys"])
    unexpected = sorted(report["unexpected_keys"])
    if missing:
        raise UserError(
            f"model `{source}` lacks {plural(len(missing), 'weight')} that its config asks for, such as "
            f"`{missing[0]}`: its config.json is another model's, or a file is missing; {ANEW}"
        )
    if shapes:
        name, there, wanted = shapes[0]
        raise UserError(
            f"model `{source}`: `{name}` is {_shape(there)} in its weights and {_shape(wanted)} by its "
            f"config.json ({len(shapes)} such): one of the two is another model's; {ANEW}"
        )
    if not unexpected:
        return
    numbers = [int(number) for name in unexpected for number in re.findall(r"\.(\d+)\.", name)[:1]]
    if depth is not None and any(number >= depth for number in numbers):
        raise UserError(
            f"model `{source}` has weights of layer {max(numbers)} and by its config.json "
            f"{plural(depth, 'layer')}, from 0: `num_hidden_layers` there is wrong; {ANEW}"
        )
    say(
        f"{source}: left out {plural(len(unexpected), 'weight')} that its config does not ask for, "
        f"such as {unexpected[0]}"
    )


def _shape(shape: Any) -> str:
    return "x".join(map(str, shape)) or "a number"


def check_state(where: str, state: Mapping[str, Any], own: Mapping[str, Any], *, complete: bool = True) -> None:
    """See that a checkpoint's weights are those of this very model.

    Args:
        where: the checkpoint, for the message.
        state: its weights by name; own: those of the model.
        complete: none may be missing.

    Raises:
        DataError: one has another shape, one is missing, or one has no place in the model.
    """
    there = {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
    here = {name: tuple(value.shape) for name, value in own.items()}
    names = there.keys() | here.keys() if complete else there.keys()
    differ = sorted(name for name in names if there.get(name) != here.get(name))
    if differ:
        name = differ[0]
        shapes = [_shape(found[name]) if name in found else "absent" for found in (there, here)]
        raise DataError(
            f"{where}: is of another model: `{name}` is {shapes[0]} in it and {shapes[1]} here "
            f"({len(differ)} such): refused; put a checkpoint of this run there"
        )


def check_kind(source: str, model: PreTrainedModel) -> None:
    """Refuse an encoder: it sees the tokens behind the one that it is asked for.

    Raises:
        UserError: it is one.
    """
    config = model.config
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise UserError(
            f"model `{source}` is an encoder ({config.model_type}), which does not write from left to right: "
            "choose a causal language model"
        )


@torch.no_grad()
def check_values(source: str, model: PreTrainedModel) -> None:
    """Refuse weights that no training has left.

    Raises:
        UserError: one of them is NaN or infinite, or an embedding is all 0.
    """
    largest = {}
    for name, weight in model.named_parameters():
        # in one pass and without a copy; NaN and infinity stay what they are
        largest[name] = float(torch.linalg.vector_norm(weight, ord=float("inf"))) if weight.numel() else 0.0
        if not largest[name] < float("inf"):
            raise UserError(f"model `{source}`: `{name}` holds NaN or infinity: its training has failed; {ANEW}")
    ends = {id(end.weight) for end in _embeddings(model)}
    for name, weight in model.named_parameters():
        if id(weight) in ends and largest[name] == 0:
            raise UserError(f"model `{source}`: all of `{name}` is 0: its weights were never written; {ANEW}")


def _embeddings(model: PreTrainedModel) -> list[Any]:
    both: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [layer for layer in both if isinstance(getattr(layer, "weight", None), torch.Tensor)]
