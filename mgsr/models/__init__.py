"""Teachers and students: found, loaded or built, cut in depth, given adapters, compared, and written to a folder.

`sources` finds what a name means, `loading` loads it (safetensors or GGUF, never pickle), `building` makes models
with random weights, and `from_config` asks these for what a configuration names. `pruning` cuts a student out of a
teacher's layers, `lora` puts adapters on it, `folders` writes a model whole or not at all. `vocabulary` says on
which ids two models agree. `output_layer` is the last product of a model apart from the rest, `clip_network` the
small network that learns DAC-KL's bounds.

Nothing here trains, writes text or knows a loss; no weight is opened that could run code.

Begin with `from_config`.
"""

from mgsr.models.building import FAMILIES, build_causal_lm
from mgsr.models.folders import (
    content_fingerprint,
    remove_half_folders,
    save_adapter_folder,
    save_model_folder,
    source_fingerprint,
)
from mgsr.models.loading import load_causal_lm, load_tokenizer, parse_dtype
from mgsr.models.lora import add_lora, has_adapters, merge_lora, with_base, without_base
from mgsr.models.pruning import decoder_layers, prune_depth, pruned_config
from mgsr.models.sources import ModelSource, one_line_errors, resolve_source
from mgsr.models.vocabulary import (
    align_vocabularies,
    logits_width,
    require_shared_ids,
    shared_vocab_size,
    written_vocab_size,
)

__all__ = [
    "FAMILIES",
    "ModelSource",
    "add_lora",
    "align_vocabularies",
    "build_causal_lm",
    "content_fingerprint",
    "decoder_layers",
    "has_adapters",
    "load_causal_lm",
    "load_tokenizer",
    "logits_width",
    "merge_lora",
    "one_line_errors",
    "parse_dtype",
    "prune_depth",
    "pruned_config",
    "remove_half_folders",
    "require_shared_ids",
    "resolve_source",
    "save_adapter_folder",
    "save_model_folder",
    "shared_vocab_size",
    "source_fingerprint",
    "with_base",
    "without_base",
    "written_vocab_size",
]
