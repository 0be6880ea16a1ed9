"""The part of the configuration tree that says what teacher and student are, and how a stage is optimised."""

from __future__ import annotations

from dataclasses import dataclass

from mgsr.config.keys import ALWAYS, LARGE, MANY, SEED, key, section


@dataclass
class ArchitectureConfig:
    family: str = key("llama", "transformers architecture", choices=("llama", "gpt2", "opt", "qwen2", "qwen3"))
    hidden_size: int = key(64, "width", low=2, high=65_536)
    num_layers: int = key(2, "decoder layers", low=1, high=1024)
    num_heads: int = key(4, "attention heads", low=1, high=1024)
    num_kv_heads: int = key(0, "key/value heads (0: as many as heads)", low=0, high=1024)
    intermediate_size: int = key(0, "width of the MLP (0: the family's habit)", low=0, high=LARGE)
    tie_word_embeddings: bool = key(True, "share input and output embeddings")
    dropout: float = key(0.0, "dropout where the family has it", low=0.0, high=0.9)
    initializer_range: float = key(0.02, "standard deviation of the random weight matrices", low=1e-6, high=10.0)


@dataclass
class TrainConfig:
    epochs: int = key(
        1, "passes over the training prompts (ignored when max_steps > 0)", low=1, high=LARGE, when=".max_steps=0"
    )
    max_steps: int = key(0, "optimiser steps (0: as many as `epochs` hold)", low=0, high=MANY)
    batch_size: int = key(32, "sequences per optimiser step, all ranks together", low=1, high=LARGE)
    micro_batch_size: int = key(32, "largest number of sequences in one forward on one rank", low=1, high=LARGE)
    bucket_steps: int = key(
        8, "steps within which sequences of like length are put together (1: none)", low=1, high=LARGE
    )
    lr: float = key(
        2e-5,
        "peak learning rate: 1e-5 to 5e-5 for a pretrained model, 1e-4 to 5e-4 with adapters",
        low=0.0,
        high=10.0,
    )
    min_lr_ratio: float = key(0.1, "learning rate at the end, as a share of the peak", low=0.0, high=1.0)
    warmup_ratio: float = key(0.05, "share of the steps with a rising learning rate", low=0.0, high=1.0)
    weight_decay: float = key(0.01, "AdamW weight decay of the student's matrices", low=0.0, high=10.0)
    betas: list[float] = key([0.9, 0.95], "AdamW betas", low=0.0, high=1.0)
    grad_clip: float = key(
        1.0, "largest gradient norm, student and clip network apart (0: no clipping)", low=0.0, high=MANY
    )
    max_nonfinite_steps: int = key(
        0,
        "optimiser steps with a NaN or infinite loss that are left out before the run stops (0: none)",
        low=0,
        high=MANY,
    )
    gradient_checkpointing: bool = key(False, "recompute the student's activations in backward, to save memory")


@dataclass
class SftConfig(TrainConfig):
    enabled: bool = key(False, "fine-tune on ground truth before the main job")
    seed: int | None = key(
        None, "seed of initialisation and order (empty: the run's seed)", low=0, high=SEED, when=ALWAYS
    )


@dataclass
class ModelConfig:
    source: str = key(
        "", "hub id, folder, `package:<dist>/<file>`, or `init` (built from `architecture`)", path=True
    )
    gguf_file: str = key("", "name of a GGUF file inside `source`")
    revision: str = key("", "hub revision (branch, tag or commit)")
    dtype: str = key("float32", "type of the weights", choices=("float32", "bfloat16", "float16", "float64"))
    attn_implementation: str = key("", "attention kernel of transformers (empty: its own choice)")
    trust_remote_code: bool = key(False, "run code that comes with the model; off unless you write it here")
    architecture: ArchitectureConfig = section(
        ArchitectureConfig, "shape of a model built by `source: init`", when=".source=init"
    )
    sft: SftConfig = section(
        SftConfig, "supervised fine-tuning before the main job, cached by content", when=".sft.enabled"
    )


@dataclass
class TeacherConfig(ModelConfig):
    placement: str = key(
        "replicated",
        "where its weights are: on every device; in parts on all (fsdp2); in CPU memory between phases",
        choices=("replicated", "sharded", "cpu"),
    )
    frozen_dtype: str = key(
        "auto",
        "type of its weights once it is fine-tuned; auto: what trainer.precision computes in, else `dtype`",
        choices=("auto", "float32", "bfloat16", "float16", "float64"),
        when=".source",
    )


@dataclass
class LoraConfig:
    r: int = key(0, "rank of the adapters (0: train all weights)", low=0, high=65_536)
    alpha: float = key(64.0, "scale of the adapters", low=0.0, high=MANY, when=".r")
    dropout: float = key(0.0, "dropout in front of the adapters", low=0.0, high=0.9, when=".r")
    target_modules: list[str] = key(
        [], "modules that get adapters (empty: peft's choice for the family)", when=".r"
    )


@dataclass
class StudentConfig(ModelConfig):
    source: str = key(
        "", "as the teacher's; also `teacher`: a depth-pruned copy of the fine-tuned teacher", path=True
    )
    keep_layers: list[int] = key([], "decoder layers that stay, counted from 0 (empty: all)", low=0, high=1023)
    lora: LoraConfig = section(LoraConfig, "low-rank adapters")
