"""Load tokenizers and causal language models: safetensors or GGUF, never pickle."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from mgsr.models.folder_checks import (
    ANEW,
    check_files,
    check_kind,
    check_report,
    check_values,
    read_object,
    stored_type,
)
from mgsr.models.hub import are_cached, one_line_errors
from mgsr.models.sources import ModelSource, check_gguf_packages, resolve_source
from mgsr.runtime.devices import TYPES
from mgsr.runtime.errors import UserError, did_you_mean
from mgsr.runtime.network import is_reachable
from mgsr.runtime.ranks import is_first

DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# `tokenizer.ggml.pre` of vocabularies that split off every digit before the byte-level split
_DIGIT_BY_DIGIT = frozenset({"smollm"})

# of `load_causal_lm`'s options, those of a model that is made from its config alone
_BUILDING = frozenset({"dtype", "attn_implementation", "trust_remote_code"})


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The torch dtype of a name such as `bfloat16`.

    Raises:
        UserError: no such floating-point type.

    >>> parse_dtype("bfloat16")
    torch.bfloat16
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UserError(f"dtype `{dtype}` is not one of {', '.join(DTYPES)}{did_you_mean(dtype, DTYPES)}")
    return DTYPES[dtype]


def load_tokenizer(
    source: str | Path,
    *,
    gguf_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Where the tokenizer has no padding token the end-of-text token stands in for it: padding is masked by
    position, so the two may share an id. A tokenizer built from a GGUF file is given the pre-tokenizer that
    the file names, where transformers does not know it (SmolLM: every digit alone, then byte-level).

    Args:
        source, gguf_file, revision: see `mgsr.models.sources.resolve_source`.
        trust_remote_code: allow a hub repository to run its own Python code.

    Raises:
        UserError: nothing there, no tokenizer in it, the hub is out of reach, a package for GGUF is missing,
            or the tokenizer has no end-of-text token.
    """
    found = resolve_source(source, gguf_file=gguf_file, revision=revision)
    if found.gguf_file is not None:
        check_gguf_packages(found.gguf_file)
    elif found.is_local:
        _check_tokenizer_files(Path(found.location))
    with one_line_errors(
        str(source), f"see its config.json and its tokenizer's files: {ANEW}" if found.is_local else ""
    ):
        options = hub_options(found, revision, trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(found.location, **options)
        if found.gguf_file is not None:
            _mend_pre_tokenizer(tokenizer, _file_of(found, found.gguf_file, options))
        known = tokenizer.encode("a", add_special_tokens=False)
    if not known:
        raise UserError(
            f"the tokenizer of `{source}` makes no token of the text `a`: its vocabulary is lost; {ANEW}"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of `{source}` has no end-of-text token (eos_token): name one in it")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(
    source: str | Path,
    *,
    gguf_file: str | None = None,
    revision: str | None = None,
    dtype: str | torch.dtype = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    as_stored: bool = False,
) -> PreTrainedModel:
    """Load a causal language model, in eval mode, on the CPU.

    Weights of the wanted type stay in the mapped file: its pages are shared by all processes of a node. A GGUF
    file is unpacked into a plain model, which trains and saves like any other.

    Args:
        source, gguf_file, revision: see `mgsr.models.sources.resolve_source`.
        dtype: float64, float32, bfloat16 or float16, whatever the file holds.
        attn_implementation: `eager`, `sdpa`, `flash_attention_2`, ...; None = transformers' choice.
        trust_remote_code: allow a hub repository to run its own Python code.
        as_stored: leave weights of another type there too; `mgsr.runtime.devices.move` gives them `dtype`.

    Raises:
        UserError: nothing there, pickled weights, weights that do not fit the config (missing, too many or of
            another shape), torn files, NaN or zeros, no causal language model, the hub is out of reach, a package
            is missing.
    """
    shape = shape_of_causal_lm(
        source,
        gguf_file=gguf_file,
        revision=revision,
        dtype=dtype,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
    )
    found = resolve_source(source, gguf_file=gguf_file, revision=revision)
    options = _model_options(found, revision, dtype, attn_implementation, trust_remote_code)
    with one_line_errors(str(source), ANEW):
        stored = None
        if as_stored and found.gguf_file is None:
            stored = stored_type(_file_of(found, "config.json", options).parent)
        options["dtype"] = stored or options["dtype"]
        loaded: Any = AutoModelForCausalLM.from_pretrained(found.location, output_loading_info=True, **options)
        model, report = loaded
        check_report(str(source), None, report)
        if found.gguf_file is not None:
            model = _unpacked(model)
    if stored is not None:
        setattr(
            model, TYPES, {name: weight.dtype for name, weight in shape.named_parameters(remove_duplicate=False)}
        )
        model.config.dtype = parse_dtype(dtype)
    if is_first():
        # all ranks read the same file
        check_values(str(source), model)
    return model


def shape_of_causal_lm(
    source: str | Path,
    *,
    gguf_file: str | None = None,
    revision: str | None = None,
    dtype: str | torch.dtype = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    download: bool = True,
) -> PreTrainedModel:
    """What `load_causal_lm` would load, on the meta device: shapes without content, no weight is read.

    Args:
        source, gguf_file, revision, dtype, attn_implementation, trust_remote_code: see `load_causal_lm`.
        download: a hub model whose weights are not in the cache; without, it is known by its config alone. So is
            a GGUF file, whose weights are compared when it is unpacked.

    Raises:
        UserError: as `load_causal_lm`, but for the values of the weights.
    """
    found = resolve_source(source, gguf_file=gguf_file, revision=revision)
    options = _model_options(found, revision, dtype, attn_implementation, trust_remote_code)
    if found.gguf_file is not None:
        check_gguf_packages(found.gguf_file)
    elif found.is_local:
        check_files(Path(found.location))
    with one_line_errors(str(source), f"see its config.json: {ANEW}" if found.is_local else ""):
        config = AutoConfig.from_pretrained(found.location, **hub_options(found, revision, trust_remote_code))
        if found.gguf_file is None and (download or found.is_local or are_cached(found.location, revision)):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                found.location,
                config=config,
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
            model, report = loaded
            check_report(str(source), getattr(config, "num_hidden_layers", None), report)
        else:
            named = {name: value for name, value in options.items() if name in _BUILDING}
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, **named)
    check_kind(str(source), model)
    return model


def rebuild(
    model: PreTrainedModel, config: transformers.PretrainedConfig, state: dict[str, torch.Tensor]
) -> PreTrainedModel:
    """A plain model of `model`'s class from a config and all of its weights; no random numbers are drawn.

    In eval mode, on `model`'s device; it may share memory with `state`. Every parameter requires gradients.
    """
    with one_line_errors(type(model).__name__, done="made"):
        rebuilt: Any = type(model).from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
            output_loading_info=True,
        )
    fresh, report = rebuilt
    assert not report["missing_keys"], report["missing_keys"]
    assert not report["unexpected_keys"], report["unexpected_keys"]
    return fresh.to(model.device)


def hub_options(found: ModelSource, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """What transformers is told of where a model lies, whatever it is to read of it."""
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if found.gguf_file is not None:
        options["gguf_file"] = found.gguf_file
    if revision:
        options["revision"] = revision
    if not found.is_local and not is_reachable():
        options["local_files_only"] = True
    return options


def _model_options(
    found: ModelSource,
    revision: str | None,
    dtype: str | torch.dtype,
    attn_implementation: str | None,
    trust_remote_code: bool,
) -> dict[str, Any]:
    options = hub_options(found, revision, trust_remote_code) | {"dtype": parse_dtype(dtype)}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if found.gguf_file is not None:
        # unpacked even where a kernel could compute on the blocks: the weights are to be trained and saved
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    else:
        options["use_safetensors"] = True
    return options


def _check_tokenizer_files(folder: Path) -> None:
    """See that a folder has a tokenizer, and that its JSON files hold objects."""
    if not list(folder.glob("*token*")):
        # without this transformers tries to build an empty tokenizer from the config alone
        raise UserError(f"`{folder}` holds no tokenizer (no tokenizer.json)")
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        if (folder / name).exists():
            read_object(folder / name)


def _file_of(found: ModelSource, name: str, options: Mapping[str, Any]) -> Path:
    if found.is_local:
        return Path(found.location) / name
    where = {name: value for name, value in options.items() if name in ("revision", "local_files_only")}
    return Path(str(cached_file(found.location, name, **where)))


def _mend_pre_tokenizer(tokenizer: PreTrainedTokenizerBase, gguf_path: Path) -> None:
    from gguf import GGUFReader

    field = GGUFReader(str(gguf_path)).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() in _DIGIT_BY_DIGIT:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )


def _unpacked(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a fresh model.

    Where the package `kernels` is installed transformers grafts ggml's layers onto what it read, even
    unpacked; those only infer. The fresh model has the family's own layers.
    """
    return rebuild(model, copy.deepcopy(model.config), dict(model.state_dict()))
