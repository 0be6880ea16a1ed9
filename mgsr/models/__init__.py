"""Teachers and students: load, build, prune, adapt, compare vocabularies, save."""

from mgsr.models.building import FAMILIES, build_causal_lm
from mgsr.models.folders import content_fingerprint, remove_half_folders, save_adapter_folder, save_model_folder
from mgsr.models.loading import load_causal_lm, load_tokenizer, parse_dtype
from mgsr.models.lora import add_lora, has_adapters, merge_lora, with_base, without_base
from mgsr.models.pruning import (
    ParameterCounts,
    count_parameters,
    decoder_layers,
    freeze,
    prune_depth,
    pruned_config,
)
from mgsr.models.sources import ModelSource, one_line_errors, resolve_source
from mgsr.models.vocabulary import (
    VocabularyConflict,
    VocabularyReport,
    align_vocabularies,
    logits_width,
    require_shared_ids,
    shared_vocab_size,
    vocabulary_report,
    written_vocab_size,
)

__all__ = [
    "FAMILIES",
    "ModelSource",
    "ParameterCounts",
    "VocabularyConflict",
    "VocabularyReport",
    "add_lora",
    "align_vocabularies",
    "build_causal_lm",
    "content_fingerprint",
    "count_parameters",
    "decoder_layers",
    "freeze",
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
    "vocabulary_report",
    "with_base",
    "without_base",
    "written_vocab_size",
]
