"""Teachers and students: found, loaded or built, cut in depth, given adapters, compared, and written to a folder.

`sources` finds what a name means, `hub` asks the model hub, `folder_checks` says what is wrong with a folder, and
`loading` loads it (safetensors or GGUF, never pickle). `building` makes models with random weights, `from_config`
asks all these for what a configuration names, `chat_template` finds whose chat template a run takes, and
`preflight` says what is wrong with a run before it begins. `pruning` cuts a student out of a teacher's layers,
`lora` puts adapters on it, `folders` writes a model whole or not at all. `vocabulary` says on which ids two models
agree, `stop_ids` where their texts end. `output_layer` is the last product of a model apart from the rest,
`clip_network` the small network that learns DAC-KL's bounds.

Nothing here trains, writes text or knows a loss; no weight is opened that could run code.

Begin with `from_config`.
"""

from mgsr.models.building import FAMILIES, build_causal_lm
from mgsr.models.folder_checks import check_state, check_values
from mgsr.models.folders import (
    content_fingerprint,
    keep_fingerprint,
    remove_half_folders,
    save_adapter_folder,
    save_model_folder,
    save_tokenizer,
    source_fingerprint,
)
from mgsr.models.hub import one_line_errors
from mgsr.models.loading import hub_options, load_causal_lm, load_tokenizer, parse_dtype, shape_of_causal_lm
from mgsr.models.lora import add_lora, has_adapters, merge_lora, with_base, without_base
from mgsr.models.pruning import decoder_layers, prune_depth, pruned_config
from mgsr.models.sources import ModelSource, resolve_source
from mgsr.models.stop_ids import TextEnds, kept_generation_config, text_ends
from mgsr.models.vocabulary import (
    knows_all_ids,
    logits_width,
    require_shared_ids,
    shared_vocab_size,
    written_vocab_size,
)

__all__ = [
    "FAMILIES",
    "ModelSource",
    "TextEnds",
    "add_lora",
    "build_causal_lm",
    "check_state",
    "check_values",
    "content_fingerprint",
    "decoder_layers",
    "has_adapters",
    "hub_options",
    "keep_fingerprint",
    "kept_generation_config",
    "knows_all_ids",
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
    "save_tokenizer",
    "shape_of_causal_lm",
    "shared_vocab_size",
    "source_fingerprint",
    "text_ends",
    "with_base",
    "without_base",
    "written_vocab_size",
]
