"""Shapes of models that come from elsewhere: what transformers calls their configuration, no weight of them.

A shape is asked for in this order: the folder, package or file that the source names; the local hub cache; the
table below; the hub.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import (
    AutoConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen3Config,
)

from mgsr import models
from mgsr.config.schema import ModelConfig
from mgsr.runtime.errors import UserError


def _gpt2(width: int, layers: int, heads: int) -> tuple[type, dict[str, Any]]:
    facts = {"vocab_size": 50257, "n_positions": 1024, "n_embd": width, "n_layer": layers, "n_head": heads}
    return GPT2Config, facts


def _opt(width: int, layers: int, heads: int) -> tuple[type, dict[str, Any]]:
    # 50,265 token ids, padded to 50,272 rows
    return OPTConfig, {
        "vocab_size": 50272,
        "hidden_size": width,
        "word_embed_proj_dim": width,
        "ffn_dim": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
    }


def _llama(width: int, inner: int, layers: int, heads: int, positions: int) -> tuple[type, dict[str, Any]]:
    return LlamaConfig, {
        "vocab_size": 32000,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": positions,
        "tie_word_embeddings": False,
    }


def _qwen3(width: int, inner: int, layers: int, heads: int, tied: bool) -> tuple[type, dict[str, Any]]:
    # 151,669 token ids, padded to 151,936 rows
    return Qwen3Config, {
        "vocab_size": 151936,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": tied,
    }


KNOWN: dict[str, tuple[type, dict[str, Any]]] = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "facebook/opt-1.3b": _opt(2048, 24, 32),
    "facebook/opt-6.7b": _opt(4096, 32, 32),
    "openlm-research/open_llama_3b_v2": _llama(3200, 8640, 26, 32, 2048),
    "openlm-research/open_llama_7b_v2": _llama(4096, 11008, 32, 32, 2048),
    "meta-llama/Llama-2-7b-hf": _llama(4096, 11008, 32, 32, 4096),
    "meta-llama/Llama-2-13b-hf": _llama(5120, 13824, 40, 40, 4096),
    "Qwen/Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, tied=True),
    "Qwen/Qwen3-8B": _qwen3(4096, 12288, 36, 32, tied=False),
}
# the hub's other names of the same repositories
ALIASES = {"openai-community/gpt2": "gpt2", "openai-community/gpt2-xl": "gpt2-xl"}


def known_shape(hub_id: str) -> PretrainedConfig | None:
    """The configuration of a model in the table, None for others.

    >>> known_shape("gpt2").n_embd, known_shape("nobody/nothing")
    (768, None)
    """
    entry = KNOWN.get(ALIASES.get(hub_id, hub_id))
    if entry is None:
        return None
    config_class, facts = entry
    return config_class(**facts)


@dataclass
class ShapeFinder:
    """Finds shapes, and keeps where each came from.

    Attributes:
        origins: source -> `folder`, `package`, `hub cache`, `table` or `hub`.
    """

    origins: dict[str, str] = field(default_factory=dict)

    def __call__(self, model: ModelConfig) -> PretrainedConfig:
        """The shape of a model that is not built from the configuration.

        Raises:
            UserError: it is nowhere within reach.
        """
        shape, origin = self._find(model)
        self.origins[model.source] = origin
        return shape

    def _find(self, model: ModelConfig) -> tuple[PretrainedConfig, str]:
        found = _source(model)
        if found.is_local:
            return read_shape(model), "package" if model.source.startswith("package:") else "folder"
        # first what needs no network: without one the hub's client tries for half a minute
        places: list[tuple[str, Callable[[], PretrainedConfig | None]]] = [("hub cache", lambda: _cached(model))]
        if not model.revision and not model.gguf_file:
            places.append(("table", lambda: known_shape(model.source)))
        for origin, look in places:
            shape = look()
            if shape is not None:
                return shape, origin
        try:
            return read_shape(model), "hub"
        except UserError as error:
            raise UserError(
                f"{error}; plan has no table of its shape either: give a folder with its config.json as the source"
            ) from None


def _source(model: ModelConfig) -> models.ModelSource:
    return models.resolve_source(model.source, gguf_file=model.gguf_file or None, revision=model.revision or None)


def _cached(model: ModelConfig) -> PretrainedConfig | None:
    options = models.hub_options(_source(model), model.revision, model.trust_remote_code)
    try:
        return AutoConfig.from_pretrained(model.source, **options | {"local_files_only": True})
    except (OSError, ValueError):
        return None


def read_shape(model: ModelConfig) -> PretrainedConfig:
    """The configuration of a model that comes from elsewhere.

    Raises:
        UserError: it cannot be had.
    """
    found = _source(model)
    with models.one_line_errors(model.source):
        return AutoConfig.from_pretrained(
            found.location, **models.hub_options(found, model.revision, model.trust_remote_code)
        )
