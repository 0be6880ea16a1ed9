"""The typed configuration tree: every key, its type, its default, what it does and what values it takes.

`mgsr config` prints this tree; `mgsr.config.load.load_config` fills it from a YAML file and `key=value` overrides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Union

from mgsr.config.keys import key, section

DIVERGENCE_NAMES = (
    "dac_kl",
    "forward_kl",
    "reverse_kl",
    "symmetric_kl",
    "jensen_shannon",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "total_variation",
)


@dataclass
class SyntheticConfig:
    seed: int = key(0, "seed of the procedural instruction set", low=0)
    teacher_rows: int = key(8000, "rows the teacher is fine-tuned on", low=1)
    train_rows: int = key(600, "training rows of the student", low=1)
    dev_rows: int = key(200, "rows that choices may look at", low=1)
    test_rows: int = key(400, "rows that are read once, at the end", low=1)
    vocab_size: int = key(512, "upper limit of the tokenizer trained on the set", low=260)


@dataclass
class HubSplitConfig:
    dev: int = key(1000, "dev rows cut from a hub data set without a validation split", low=1)
    test: int = key(500, "test rows cut from a hub data set without a test split", low=1)
    seed: int = key(42, "seed of the shuffle before the cut", low=0)


@dataclass
class DataConfig:
    train: str = key("databricks/databricks-dolly-15k", "`synthetic`, a .json/.jsonl file, or a hub id")
    dev: str = key("", "as `train`; empty: the dev split of the same source")
    test: str = key("", "as `train`; empty: the test split of the same source")
    test_sets: Dict[str, str] = key({}, "further test sets, name -> file; each is reported under its name")
    train_limit: int = key(0, "use only the first n training rows (0: all)", low=0)
    dev_limit: int = key(0, "use only the first n dev rows (0: all)", low=0)
    test_limit: int = key(0, "use only the first n rows of every test set (0: all)", low=0)
    template: str = key("alpaca", "prompt template", choices=("alpaca", "plain"))
    max_length: int = key(512, "tokens of prompt and response together", low=8)
    max_prompt_length: int = key(256, "tokens of the prompt; longer ones are cut as documented", low=4)
    synthetic: SyntheticConfig = section(SyntheticConfig, "the procedural instruction set")
    hub_split: HubSplitConfig = section(HubSplitConfig, "how a hub data set with one split is cut")


@dataclass
class ArchitectureConfig:
    family: str = key("llama", "transformers architecture", choices=("llama", "gpt2", "opt", "qwen2", "qwen3"))
    hidden_size: int = key(64, "width", low=2)
    num_layers: int = key(2, "decoder layers", low=1)
    num_heads: int = key(4, "attention heads", low=1)
    num_kv_heads: int = key(0, "key/value heads (0: as many as heads)", low=0)
    intermediate_size: int = key(0, "width of the MLP (0: the family's habit)", low=0)
    tie_word_embeddings: bool = key(True, "share input and output embeddings")
    dropout: float = key(0.0, "dropout where the family has it", low=0.0, high=0.9)
    initializer_range: float = key(0.02, "standard deviation of the random weight matrices", low=1e-6)


@dataclass
class TrainConfig:
    epochs: int = key(1, "passes over the training prompts (ignored when max_steps > 0)", low=1)
    max_steps: int = key(0, "optimiser steps (0: as many as `epochs` hold)", low=0)
    batch_size: int = key(32, "sequences per optimiser step, all ranks together", low=1)
    micro_batch_size: int = key(32, "largest number of sequences in one forward on one rank", low=1)
    bucket_steps: int = key(8, "steps within which sequences of like length are put together (1: none)", low=1)
    lr: float = key(5e-4, "peak learning rate of the student", low=0.0)
    min_lr_ratio: float = key(0.1, "learning rate at the end, as a share of the peak", low=0.0, high=1.0)
    warmup_ratio: float = key(0.05, "share of the steps with a rising learning rate", low=0.0, high=1.0)
    weight_decay: float = key(0.01, "AdamW weight decay of the student's matrices", low=0.0)
    betas: List[float] = key([0.9, 0.95], "AdamW betas")
    grad_clip: float = key(1.0, "largest gradient norm, student and clip network apart (0: no clipping)", low=0.0)
    max_nonfinite_steps: int = key(
        0, "optimiser steps with a NaN or infinite loss that are left out before the run stops (0: none)", low=0
    )
    gradient_checkpointing: bool = key(False, "recompute the student's activations in backward, to save memory")


@dataclass
class SftConfig(TrainConfig):
    enabled: bool = key(False, "fine-tune on ground truth before the main job")
    seed: Optional[int] = key(None, "seed of initialisation and order (empty: the run's seed)")


@dataclass
class ModelConfig:
    source: str = key("", "hub id, folder, `package:<dist>/<file>`, or `init` (built from `architecture`)")
    gguf_file: str = key("", "name of a GGUF file inside `source`")
    revision: str = key("", "hub revision (branch, tag or commit)")
    dtype: str = key("float32", "type of the weights", choices=("float32", "bfloat16", "float16", "float64"))
    attn_implementation: str = key("", "attention kernel of transformers (empty: its own choice)")
    trust_remote_code: bool = key(False, "run code that comes with the model; off unless you write it here")
    architecture: ArchitectureConfig = section(ArchitectureConfig, "shape of a model built by `source: init`")
    sft: SftConfig = section(SftConfig, "supervised fine-tuning before the main job, cached by content")


@dataclass
class TeacherConfig(ModelConfig):
    placement: str = key(
        "replicated",
        "where its weights are: on every device; in parts on all (fsdp2); in CPU memory between phases",
        choices=("replicated", "sharded", "cpu"),
    )


@dataclass
class LoraConfig:
    r: int = key(0, "rank of the adapters (0: train all weights)", low=0)
    alpha: float = key(64.0, "scale of the adapters", low=0.0)
    dropout: float = key(0.0, "dropout in front of the adapters", low=0.0, high=0.9)
    target_modules: List[str] = key([], "modules that get adapters (empty: peft's choice for the family)")


@dataclass
class StudentConfig(ModelConfig):
    source: str = key("", "as the teacher's; also `teacher`: a depth-pruned copy of the fine-tuned teacher")
    keep_layers: List[int] = key([], "decoder layers that stay, counted from 0 (empty: all)")
    lora: LoraConfig = section(LoraConfig, "low-rank adapters")


@dataclass
class ObjectiveConfig:
    kind: str = key(
        "multi_granularity",
        "SFT + token + span level, or MiniLLM's",
        choices=("multi_granularity", "minillm"),
    )
    w_sft: float = key(1.0, "weight of cross-entropy on ground truth", low=0.0)
    w_dac: float = key(1.0, "weight of the token-level divergence", low=0.0)
    w_span: float = key(1.0, "weight of span correlation", low=0.0)
    temperature: float = key(1.0, "softmax temperature of the two teacher terms", low=1e-3)
    divergence: str = key("dac_kl", "token-level divergence", choices=DIVERGENCE_NAMES)
    divergence_weight: float = key(0.5, "weight of symmetric_kl", low=0.0, high=1.0)
    beta: float = key(0.5, "beta of jensen_shannon", low=0.0, high=1.0)
    alpha: float = key(0.1, "alpha of the skewed divergences", low=0.0, high=1.0)
    teacher_top_k: int = key(
        0, "keep this many teacher log-probabilities per ground-truth token on disk (0: run the teacher)", low=0
    )
    tile_size: int = key(0, "tokens per tile of the objective (0: chosen from the vocabulary)", low=0)
    importance_clip: float = key(0.2, "MiniLLM: importance ratios stay within 1 -+ this", low=0.0)


@dataclass
class ClipConfig:
    mode: str = key("network", "where the bounds come from", choices=("network", "fixed", "mean_of_run", "top_k"))
    lower: float = key(0.0, "mode fixed: cumulative mass where the head ends (-.inf: keep it)")
    upper: float = key(0.95, "mode fixed: cumulative mass where the tail begins (.inf: keep it)")
    run: str = key(
        "",
        "mode mean_of_run: a finished run or its result file; the mean over tokens of its bounds at the end",
    )
    top_k: int = key(50, "mode top_k: classes that keep a bin of their own", low=1)
    sharpness: float = key(0.005, "width s of the ramp at each bound (0: a hard mask)", low=0.0, high=1.0)
    ramp: str = key("clipped", "form of the ramp", choices=("clipped", "sigmoid"))
    quantile: str = key("mass", "what bounds are measured in", choices=("mass", "rank"))
    target: str = key("argmax", "class that is always kept", choices=("argmax", "label"))
    keep_target: bool = key(True, "give the target a bin of its own (off: high-density classes only)")
    form: str = key("normalised", "normalised bins or the literal sum", choices=("normalised", "literal"))
    objective: str = key("joint", "what trains the network", choices=("joint", "priced"))
    mass_price: Union[int, float, str] = key("auto", "priced: nats per unit of clipped mass, or `auto` (steered)")
    clip_share: float = key(0.5, "priced, auto: share of the clippable mass to be clipped", low=0.0, high=1.0)
    lower_max: float = key(0.3, "limit of the learned lower bound", low=0.0, high=1.0)
    upper_min: float = key(0.9, "lower limit of the learned upper bound", low=0.0, high=1.0)
    upper_max: float = key(0.97, "upper limit of the learned upper bound", low=0.0, high=1.0)
    hidden_size: int = key(64, "width of the network's hidden layer", low=1)
    lr: float = key(1e-3, "learning rate of the network", low=0.0)


@dataclass
class SpansConfig:
    chunker: str = key(
        "light",
        "where spans come from",
        choices=("light", "spacy", "fixed", "random", "all_adjacent"),
    )
    overlap: str = key("outermost", "which of nested phrases wins", choices=("outermost", "innermost"))
    fixed_length: int = key(4, "chunker fixed: tokens per span", low=2)
    random_lengths: str = key("light", "chunker random: whose span lengths", choices=("light", "spacy"))
    norm: str = key("l2_squared", "norm of the difference", choices=("l2_squared", "l2"))
    relation: str = key("hadamard", "relation of two neighbours", choices=("hadamard", "cosine", "trace"))


@dataclass
class ScrgConfig:
    enabled: bool = key(True, "train on student-written text too (off: ground truth only)")
    text: str = key(
        "student",
        "who writes: the student; the teacher; both, mixed (MiniLLM); or interleaved (SKD)",
        choices=("student", "teacher", "mixed", "interleaved"),
    )
    passes: int = key(1, "corrections per sequence, one after another (0: the text as it was written)", low=0)
    cross_entropy: bool = key(False, "text teacher: train on it by cross-entropy too, as on ground truth (SeqKD)")
    teacher_token: str = key("sample", "how the teacher corrects", choices=("sample", "argmax"))
    error_position: str = key(
        "max_kl",
        "which disagreement is corrected",
        choices=("max_kl", "random", "first_disagreement", "threshold"),
    )
    kl_threshold: float = key(1.0, "error_position threshold: least KL of a corrected token, in nats", low=0.0)
    mixed_alpha: float = key(0.2, "text mixed: share of the teacher's distribution", low=0.0, high=1.0)
    interleaved_top_k: int = key(25, "text interleaved: student tokens outside this many are replaced", low=1)
    every_n_epochs: int = key(1, "epochs that train on one round of text", low=1)
    max_new_tokens: int = key(256, "tokens of a written response", low=1)
    batch_size: int = key(64, "sequences written at once on one rank", low=1)
    shard_size: int = key(0, "sequences of a file of text; a killed round keeps whole ones (0: batch_size)", low=0)
    backend: str = key("transformers", "what writes rollouts of text student", choices=("transformers", "vllm"))
    vllm_memory: float = key(0.3, "backend vllm: share of the device's memory it may take", low=0.01, high=1.0)
    max_cache_slots: int = key(
        0, "longest rows, in tokens, whose KV cache is kept for corrections (0: no limit)", low=0
    )


@dataclass
class MixtureConfig:
    kind: str = key("constant", "how much student text", choices=("constant", "linear", "adaptive"))
    student_fraction: float = key(
        0.5, "constant: share of student-written sequences; linear: the share at the end", low=0, high=1
    )
    student_fraction_start: float = key(
        0.1, "linear, adaptive: the share to start from (adaptive goes up to 1)", low=0.0, high=1.0
    )
    adaptive_step: float = key(0.1, "adaptive: rise of the share when dev loss worsens", low=0.0, high=1.0)
    adaptive_eps: float = key(0.1, "adaptive: what counts as worsening, in nats", low=0.0)
    replay: str = key("auto", "draw from a replay buffer (auto: with adaptive)", choices=("auto", "on", "off"))
    replay_capacity: int = key(1000, "sequences in the FIFO replay buffer", low=1)


@dataclass
class EvaluationConfig:
    seeds: List[int] = key([10, 20, 30, 40, 50], "sampling seeds of the test")
    batch_size: int = key(64, "sequences written at once", low=1)
    max_new_tokens: int = key(256, "tokens of a written response", low=1)
    temperature: float = key(1.0, "sampling temperature (0: greedy)", low=0.0)
    top_p: float = key(1.0, "nucleus of sampling", low=1e-6, high=1.0)
    val_every_n_epochs: int = key(1, "epochs between two looks at the dev set", low=1)
    val_rows: int = key(0, "dev rows that val/rouge_l is measured on (0: all)", low=0)
    val_seed: int = key(10, "sampling seed of val/rouge_l", low=0)
    rouge_tokenizer: str = key(
        "published",
        "words that ROUGE sees: runs of a-z and 0-9, as published; or of letters and digits of any script",
        choices=("published", "unicode"),
    )
    one_answer: Optional[List[str]] = key(
        None, "kinds of task whose exact match is told (empty: those whose rows have one reference each)"
    )


@dataclass
class TrainerConfig:
    accelerator: str = key("auto", "Lightning accelerator", choices=("auto", "cpu", "gpu", "cuda", "mps"))
    devices: int = key(1, "devices per node", low=1)
    num_nodes: int = key(1, "nodes", low=1)
    strategy: str = key(
        "auto",
        "how devices share the work: each holds the student (ddp) or a part of it (fsdp2); auto: ddp on several",
        choices=("auto", "ddp", "fsdp2"),
    )
    timeout_minutes: int = key(240, "how long a rank waits for the slowest one, as for its round of text", low=1)
    precision: str = key(
        "32-true",
        "Lightning precision",
        choices=("32-true", "64-true", "bf16-true", "bf16-mixed", "16-mixed"),
    )
    compile: bool = key(False, "torch.compile the student's and the teacher's forward of a training step")
    threads: int = key(0, "CPU threads (0: torch's choice)", low=0)
    checkpoint_every_n_steps: int = key(200, "steps between two resume points", low=1)
    log_every_n_steps: int = key(10, "steps between two points of a curve", low=1)
    grad_norm_every_n_steps: int = key(200, "steps between two measurements of each term's gradient norm", low=1)
    histogram_every_n_steps: int = key(50, "steps between two histograms of the clipping bounds", low=1)
    text_samples: int = key(5, "revised sequences shown in TensorBoard per round", low=0)


@dataclass
class ExperimentConfig:
    experiment: str = key("mgsr", "name of the experiment: the folder below run_root")
    arm: str = key("main", "name of the arm: the folder below the experiment")
    seed: int = key(0, "seed of initialisation, order and sampling", low=0)
    run_root: str = key("runs", "where runs and caches are written")
    data: DataConfig = section(DataConfig, "rows, prompts and lengths")
    teacher: TeacherConfig = section(TeacherConfig, "the frozen teacher")
    student: StudentConfig = section(StudentConfig, "the trained student")
    objective: ObjectiveConfig = section(ObjectiveConfig, "the loss")
    clip: ClipConfig = section(ClipConfig, "DAC-KL's bounds")
    spans: SpansConfig = section(SpansConfig, "span correlation")
    scrg: ScrgConfig = section(ScrgConfig, "sequence correction and re-generation")
    mixture: MixtureConfig = section(MixtureConfig, "ground truth against student text")
    train: TrainConfig = section(TrainConfig, "optimisation of the main job")
    evaluation: EvaluationConfig = section(EvaluationConfig, "dev and test evaluation")
    trainer: TrainerConfig = section(TrainerConfig, "devices, precision, logging")
