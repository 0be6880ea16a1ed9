"""Where fine-tuned models lie, by the content of everything that they come from.

<run_root>/cache/<teacher|student>-<key>/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mgsr
from mgsr import __version__
from mgsr.config.load import fingerprint
from mgsr.config.schema import ExperimentConfig, ModelConfig, SftConfig
from mgsr.data.rows import Row
from mgsr.data.splits import read_split, rows_fingerprint
from mgsr.models.chat_template import run_template
from mgsr.models.folders import source_fingerprint


def cache_folder(config: ExperimentConfig) -> Path:
    return Path(config.run_root) / "cache"


def stage_seed(config: ExperimentConfig, sft: SftConfig) -> int:
    """The seed of a model's initialisation and fine-tuning."""
    return config.seed if sft.seed is None else sft.seed


def rows_of_teacher(config: ExperimentConfig) -> list[Row]:
    """What the teacher is made of, or fine-tuned on; nothing where it is taken as it is.

    Raises:
        UserError: rows that cannot be read.
    """
    teacher = config.teacher
    return read_split(config.data, "teacher") if teacher.sft.enabled or teacher.source == "init" else []


def content_of(model: ModelConfig) -> str:
    """What lies now at the source of a model: weights are replaced, branches move and packages are upgraded.

    All bytes of a folder are read. Empty for a model that is made here.

    Raises:
        UserError: nothing there.
    """
    if model.source in ("init", "teacher"):
        return ""
    names = {"gguf_file": model.gguf_file or None, "revision": model.revision or None}
    return source_fingerprint(model.source, **names)


def model_key(
    config: ExperimentConfig, model: ModelConfig, rows: Sequence[Row], content: str, origin: str = ""
) -> str:
    """The key of a model that is ready for the main job.

    Args:
        rows: that it is made of or fine-tuned on; content: see `content_of`.
        origin: the key of the teacher that it is made of, or whose tokenizer it has.
    """
    data = asdict(config.data)
    relevant = {k: data[k] for k in ("template", "max_length", "max_prompt_length")}
    if model.sft.enabled and config.data.end_token:
        relevant["end_token"] = config.data.end_token
    if model.sft.enabled and config.data.too_long != "cut":
        relevant["too_long"] = config.data.too_long
    if template := run_template(config):
        relevant["chat_template"] = template
    if model.source == "init":
        relevant["vocab_size"] = config.data.synthetic.vocab_size
    # where it is held, and in what once it is made, does not change it
    aside = ("placement", "frozen_dtype")
    tree: dict[str, Any] = {name: value for name, value in asdict(model).items() if name not in aside}
    if model.source not in ("init", "teacher"):
        tree |= {"source": content, "gguf_file": "", "revision": ""}
    seed = stage_seed(config, model.sft) if model.sft.enabled or model.source == "init" else None
    precision, products = config.trainer.precision, config.trainer.matmul_precision
    precision += "" if products == "highest" else f", {products} products"
    return versioned_fingerprint(__version__, tree, relevant, precision, rows_fingerprint(rows), seed, origin)


def versioned_fingerprint(*parts: Any) -> str:
    """Changes with the numerics version."""
    return fingerprint(*parts, mgsr.NUMERICS_VERSION)
