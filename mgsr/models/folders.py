"""Model folders on disk: written as a whole or not at all, and told apart by their content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file, extract_commit_hash

from mgsr.models.folder_checks import check_weights_folder, read_object
from mgsr.models.hub import one_line_errors
from mgsr.models.lora import has_adapters
from mgsr.models.sources import resolve_source
from mgsr.runtime.devices import TYPES
from mgsr.runtime.errors import UserError
from mgsr.runtime.faults import reach
from mgsr.runtime.files import refused, sync_folder, system_error
from mgsr.runtime.network import is_reachable

# what a config says about its writer or its run, not about the function the model computes
_PASSING_KEYS = frozenset(
    {"_name_or_path", "name_or_path", "_model_name_or_path", "transformers_version", "architectures"}
    | {"dtype", "torch_dtype", "_attn_implementation", "attn_implementation", "use_cache"}
)

_FINGERPRINT = "_mgsr_fingerprint"

# files of a model folder that are read with its weights and its config: tokenizer, stop ids, code
_READ_ALONG = (
    *("*token*", "vocab*", "merges*", "*.model", "*.tiktoken", "*.jinja", "*chat_templates/*.jinja"),
    *("generation_config.json", "*.py"),
)


def save_model_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: str | Path,
    *,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write a model and its tokenizer as a folder that `load_causal_lm` and `load_tokenizer` read.

    Everything goes to a hidden folder beside it that is renamed at the end, so a reader never meets half a
    model. A model folder that is already there is replaced; any other folder is left alone.

    Args:
        texts: further files, name -> content, such as its README.md.

    Returns:
        The folder.

    Raises:
        UserError: `folder` is a file, or holds something else than a model; the disk refuses.
        ValueError: adapters are not merged (`merge_lora` first).
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"a plain transformers model is needed, not {type(model).__name__}: merge adapters first")

    def write(partial: Path) -> None:
        model.save_pretrained(partial)
        if tokenizer is not None:
            save_tokenizer(tokenizer, partial)

    return _write_folder(folder, write, texts or {})


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer so that transformers 4.57 reads the same one as transformers 5.

    4.57 knows no class `TokenizersBackend`; its own is `PreTrainedTokenizerFast`, which puts no space before a
    text and gives types of tokens unless told otherwise. Special tokens without a name it wants under another key.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings["model_input_names"] = tokenizer.model_input_names
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        if (content.get("pre_tokenizer") or {}).get("add_prefix_space"):
            settings["add_prefix_space"] = True
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_adapter_folder(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    base: str,
    revision: str | None = None,
    texts: Mapping[str, str] | None = None,
    generation_config: GenerationConfig | None = None,
) -> Path:
    """Write the adapters of `add_lora` and the tokenizer as a folder that `PeftModel.from_pretrained` reads.

    As whole as `save_model_folder` writes a model. The base's weights are not in it.

    Args:
        base: folder or hub id of the model below the adapters; revision: of the hub.
        texts: further files, name -> content, such as its README.md.
        generation_config: where the adapted model's texts end: its base may not know it.

    Returns:
        The folder.

    Raises:
        UserError: `folder` is a file, or holds something else than a model; the disk refuses.
        ValueError: `model` carries no adapters.
    """
    if not has_adapters(model):
        raise ValueError(f"{type(model).__name__} carries no adapters")
    adapted: Any = model

    def write(partial: Path) -> None:
        for config in adapted.peft_config.values():
            config.base_model_name_or_path, config.revision = base, revision
        # the embeddings are the base's: looking for resized ones would ask the hub
        adapted.save_pretrained(partial, save_embedding_layers=False)
        save_tokenizer(tokenizer, partial)
        if generation_config is not None:
            generation_config.save_pretrained(partial)

    return _write_folder(folder, write, texts or {})


def _write_folder(folder: str | Path, write: Callable[[Path], None], texts: Mapping[str, str]) -> Path:
    """Have `write` fill a hidden folder, then give it the name `folder`."""
    target = Path(folder).expanduser().absolute()
    if target.exists() and not _may_replace(target):
        raise UserError(f"`{target}` exists and is no model folder: choose another or remove it")
    mark = uuid.uuid4().hex[:8]
    partial = target.parent / f".{target.name}.{mark}.partial"
    retired = target.parent / f".{target.name}.{mark}.old"
    try:
        partial.mkdir(parents=True)
        write(partial)
        for name, text in texts.items():
            # after peft, which writes a README.md of its own
            (partial / name).write_text(text, encoding="utf-8")
        for path in partial.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        reach("folder.written")
        if target.exists():
            target.rename(retired)
            reach("folder.retired")
        partial.rename(target)
        sync_folder(target.parent)
    except Exception as error:
        if retired.exists() and not target.exists():
            retired.rename(target)
        # the tokenizers library raises Exception itself where a disk is full
        if isinstance(error, (OSError, SafetensorError)) or "os error" in str(error):
            raise refused(target, system_error(error)) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)
    return target


def remove_half_folders(folder: Path) -> None:
    """Remove what killed processes have left of `folder`; only for whoever alone may write it."""
    for path in (*folder.parent.glob(f".{folder.name}.*.partial"), *folder.parent.glob(f".{folder.name}.*.old")):
        shutil.rmtree(path, ignore_errors=True)


def _may_replace(target: Path) -> bool:
    return target.is_dir() and ((target / "config.json").is_file() or not any(target.iterdir()))


def content_fingerprint(model: PreTrainedModel | str | Path) -> str:
    """SHA-256 over the weights (names, types, shapes, bytes; tied ones once) and the config, in hex.

    Where the folder lies, how it is cut into files and who wrote it do not matter. A folder written by
    `save_model_folder` and the model loaded from it in the folder's dtype have the same fingerprint.

    Args:
        model: a model whose weights are whole, one of `keep_fingerprint`, or a folder with safetensors weights.

    Raises:
        UserError: not a model folder, or unreadable weights.
    """
    if isinstance(model, PreTrainedModel):
        if known := getattr(model, _FINGERPRINT, ""):
            return known
        weights = _weights_in_memory(model)
        return _digest(json.loads(model.config.to_json_string()), weights)
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise UserError(f"`{folder}` is not a folder")
    check_weights_folder(folder)
    with ExitStack() as files:
        try:
            config = read_object(folder / "config.json")
            return _digest(config, _weights_on_disk(folder, files))
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"`{folder}` cannot be read as a model: {error}") from error


def keep_fingerprint(model: PreTrainedModel, known: str) -> None:
    """Have `content_fingerprint` give what it was before a frozen model's weights went to several devices."""
    setattr(model, _FINGERPRINT, known)


def source_fingerprint(source: str | Path, *, gguf_file: str | None = None, revision: str | None = None) -> str:
    """What a model source holds now, wherever it lies: a hub model's commit, and of files on disk their content.

    Args:
        source, gguf_file, revision: see `mgsr.models.sources.resolve_source`. A branch or tag of the hub is looked
            up there, or in the hub cache where the hub is out of reach.

    Raises:
        UserError: nothing there, no safetensors weights, or the hub knows no such model.
    """
    found = resolve_source(source, gguf_file=gguf_file, revision=revision)
    if not found.is_local:
        with one_line_errors(str(source)):
            name, offline = found.gguf_file or "config.json", not is_reachable()
            path = str(cached_file(found.location, name, revision=revision, local_files_only=offline))
        return f"{found.location} {found.gguf_file or ''} {extract_commit_hash(path, None)}"
    folder = Path(found.location)
    if found.gguf_file is not None:
        return _file_digest(folder / found.gguf_file)
    along = {path for pattern in _READ_ALONG for path in folder.glob(pattern) if path.is_file()}
    parts = [f"{path.relative_to(folder)} {_file_digest(path)}" for path in sorted(along)]
    return hashlib.sha256("\n".join([content_fingerprint(folder), *parts]).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def _weights_in_memory(model: PreTrainedModel) -> dict[str, Callable[[], Tensor]]:
    """One entry per stored tensor: aliases that tying leaves out of the file are left out here too."""
    state = model.state_dict()
    targets = set(getattr(model, "all_tied_weights_keys", None) or {})
    owned = {tensor.data_ptr() for name, tensor in state.items() if name not in targets}
    types: dict[str, torch.dtype] = getattr(model, TYPES, {})
    return {
        name: lambda name=name, tensor=tensor: tensor.to(types.get(name, tensor.dtype))  # type: ignore[misc]
        for name, tensor in state.items()
        if name not in targets or tensor.data_ptr() not in owned
    }


def _weights_on_disk(folder: Path, files: ExitStack) -> dict[str, Callable[[], Tensor]]:
    weights: dict[str, Callable[[], Tensor]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        opened = files.enter_context(safe_open(path, framework="pt"))
        for name in opened.keys():  # noqa: SIM118 (not a mapping)
            weights[name] = lambda opened=opened, name=name: opened.get_tensor(name)  # type: ignore[misc]
    return weights


def _digest(config: Mapping[str, Any], weights: Mapping[str, Callable[[], Tensor]]) -> str:
    lasting = {key: value for key, value in config.items() if key not in _PASSING_KEYS}
    digest = hashlib.sha256(json.dumps(lasting, sort_keys=True).encode())
    for name in sorted(weights):
        tensor = weights[name]().detach().cpu().contiguous()
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        raw: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        digest.update(raw)
    return digest.hexdigest()
