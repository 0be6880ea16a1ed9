"""The part of the configuration tree that says how is distilled: the loss, its spans, and student-written text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mgsr.config.keys import INFINITE, LARGE, MANY, key

DIVERGENCE_NAMES = (
    "dac_kl",
    "forward_kl",
    "reverse_kl",
    "symmetric_kl",
    "jensen_shannon",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "total_variation",
    "todi",
    "alpha_beta",
    "adaptive_kl",
    "alpha_mixture",
    "concrete_score",
    "entropy_aware",
    "veto",
)


@dataclass
class ObjectiveConfig:
    kind: str = key(
        "multi_granularity",
        "SFT + token + span level, or MiniLLM's",
        choices=("multi_granularity", "minillm"),
    )
    w_sft: float = key(1.0, "weight of cross-entropy on ground truth", low=0.0, high=1e6)
    w_dac: float = key(1.0, "weight of the token-level divergence", low=0.0, high=1e6)
    w_span: float = key(1.0, "weight of span correlation", low=0.0, high=1e6)
    temperature: float = key(1.0, "softmax temperature of the two teacher terms", low=1e-3, high=1e3)
    divergence: str = key(
        "dac_kl",
        "token-level divergence, or a function of your own",
        choices=DIVERGENCE_NAMES,
        imports=True,
        when=".kind=multi_granularity",
    )
    divergence_options: dict[str, Any] = key(
        {},
        "arguments of the divergence by name; a pair [a, b] goes from a to b over the steps",
        when=".kind=multi_granularity .w_dac",
    )
    written_divergence: str = key(
        "",
        "another divergence on text that is no ground truth (empty: the same; not beside dac_kl)",
        choices=("", *DIVERGENCE_NAMES[1:]),
        imports=True,
        when=".kind=multi_granularity .w_dac scrg.enabled",
    )
    written_options: dict[str, Any] = key({}, "its arguments by name", when=".written_divergence")
    match_gradient: bool = key(
        False,
        "scale the divergence: at the start its gradient to the student's logits is as large as forward KL's",
        when=".kind=multi_granularity .w_dac",
    )
    teacher_top_k: int = key(
        0,
        "keep this many teacher log-probabilities per ground-truth token on disk (0: run the teacher)",
        low=0,
        high=LARGE,
    )
    tile_size: int = key(0, "tokens per tile of the objective (0: chosen from the vocabulary)", low=0, high=MANY)
    importance_clip: float = key(
        0.2, "MiniLLM: importance ratios stay within 1 -+ this", low=0.0, high=1e3, when=".kind=minillm"
    )


@dataclass
class ClipConfig:
    mode: str = key("network", "where the bounds come from", choices=("network", "fixed", "mean_of_run", "top_k"))
    lower: float = key(
        0.0,
        "mode fixed: cumulative mass where the head ends (-.inf: keep it)",
        low=-INFINITE,
        high=INFINITE,
        when=".mode=fixed",
    )
    upper: float = key(
        0.95,
        "mode fixed: cumulative mass where the tail begins (.inf: keep it)",
        low=-INFINITE,
        high=INFINITE,
        when=".mode=fixed",
    )
    run: str = key(
        "",
        "mode mean_of_run: a finished run or its result file; the mean over tokens of its bounds at the end",
        when=".mode=mean_of_run",
        path=True,
    )
    top_k: int = key(50, "mode top_k: classes that keep a bin of their own", low=1, high=LARGE, when=".mode=top_k")
    sharpness: float = key(0.005, "width s of the ramp at each bound (0: a hard mask)", low=0.0, high=1.0)
    ramp: str = key("clipped", "form of the ramp", choices=("clipped", "sigmoid"))
    quantile: str = key("mass", "what bounds are measured in", choices=("mass", "rank"))
    target: str = key("argmax", "class that is always kept", choices=("argmax", "label"))
    keep_target: bool = key(True, "give the target a bin of its own (off: high-density classes only)")
    form: str = key("normalised", "normalised bins or the literal sum", choices=("normalised", "literal"))
    objective: str = key("joint", "what trains the network", choices=("joint", "priced"), when=".mode=network")
    mass_price: float | str = key(
        "auto",
        "priced: nats per unit of clipped mass, or `auto` (steered)",
        low=0.0,
        high=1e6,
        when=".objective=priced",
    )
    clip_share: float = key(
        0.5,
        "priced, auto: share of the clippable mass to be clipped",
        low=0.0,
        high=1.0,
        when=".mass_price=auto .objective=priced",
    )
    lower_max: float = key(0.3, "limit of the learned lower bound", low=0.0, high=1.0, when=".mode=network")
    upper_min: float = key(0.9, "lower limit of the learned upper bound", low=0.0, high=1.0, when=".mode=network")
    upper_max: float = key(0.97, "upper limit of the learned upper bound", low=0.0, high=1.0, when=".mode=network")
    hidden_size: int = key(64, "width of the network's hidden layer", low=1, high=65_536, when=".mode=network")
    lr: float = key(1e-3, "learning rate of the network", low=0.0, high=10.0, when=".mode=network")


@dataclass
class SpansConfig:
    chunker: str = key(
        "light",
        "where spans come from",
        choices=("light", "spacy", "fixed", "random", "all_adjacent"),
    )
    overlap: str = key("outermost", "which of nested phrases wins", choices=("outermost", "innermost"))
    fixed_length: int = key(4, "chunker fixed: tokens per span", low=2, high=LARGE, when=".chunker=fixed")
    random_lengths: str = key(
        "light", "chunker random: whose span lengths", choices=("light", "spacy"), when=".chunker=random"
    )
    norm: str = key("l2_squared", "norm of the difference", choices=("l2_squared", "l2"))
    relation: str = key("hadamard", "relation of two neighbours", choices=("hadamard", "cosine", "trace"))


@dataclass
class ScrgConfig:
    enabled: bool = key(True, "train on student-written text too (off: ground truth only)")
    text: str = key(
        "student",
        "who writes: student, teacher, each half of the prompts (paired), or both: mixed, interleaved, switched",
        choices=("student", "teacher", "paired", "mixed", "interleaved", "switched"),
        imports=True,
    )
    passes: int = key(
        1,
        "corrections per sequence, one after another (0: the text as it was written)",
        low=0,
        high=LARGE,
        when=".text=student",
    )
    cross_entropy: bool = key(False, "text teacher: train on it by cross-entropy too, as on ground truth (SeqKD)")
    teacher_token: str = key(
        "sample", "how the teacher corrects", choices=("sample", "argmax"), when=".text=student .passes"
    )
    error_position: str = key(
        "max_kl",
        "which disagreement is corrected",
        choices=("max_kl", "random", "first_disagreement", "threshold"),
        when=".text=student .passes",
    )
    kl_threshold: float = key(
        1.0,
        "error_position threshold: least KL of a corrected token, in nats",
        low=0.0,
        high=1e6,
        when=".error_position=threshold",
    )
    mixed_alpha: float = key(
        0.2, "text mixed: share of the teacher's distribution", low=0.0, high=1.0, when=".text=mixed"
    )
    interleaved_top_k: int = key(
        25,
        "text interleaved: student tokens outside this many are replaced",
        low=1,
        high=LARGE,
        when=".text=interleaved",
    )
    switch: str = key(
        "threshold",
        "text switched: the teacher takes over where JSD is above a threshold, or KL far above its recent mean",
        choices=("threshold", "recent_mean"),
        when=".text=switched",
    )
    switch_threshold: float = key(
        0.3,
        "switch threshold: JSD in nats, at most 0.69",
        low=0.0,
        high=1.0,
        when=".switch=threshold .text=switched",
    )
    switch_factor: float = key(
        3.0,
        "switch recent_mean: so many times the mean",
        low=0.0,
        high=1e6,
        when=".switch=recent_mean .text=switched",
    )
    switch_window: int = key(
        5, "switch recent_mean: tokens of the mean", low=1, high=LARGE, when=".switch=recent_mean .text=switched"
    )
    every_n_epochs: int = key(1, "epochs that train on one round of text", low=1, high=LARGE)
    max_new_tokens: int = key(256, "tokens of a written response", low=1, high=LARGE)
    batch_size: int = key(64, "sequences written at once on one rank", low=1, high=LARGE)
    shard_size: int = key(
        0, "sequences of a file of text; a killed round keeps whole ones (0: batch_size)", low=0, high=MANY
    )
    backend: str = key("transformers", "what writes rollouts of text student", choices=("transformers", "vllm"))
    vllm_memory: float = key(
        0.3, "backend vllm: share of the device's memory it may take", low=0.01, high=1.0, when=".backend=vllm"
    )
    max_cache_slots: int = key(
        0, "longest rows, in tokens, whose KV cache is kept for corrections (0: no limit)", low=0, high=MANY
    )


@dataclass
class MixtureConfig:
    kind: str = key("constant", "how much student text", choices=("constant", "linear", "adaptive"))
    student_fraction: float = key(
        0.5,
        "constant: share of student-written sequences; linear: the share at the end",
        low=0,
        high=1,
        when=".kind=constant|linear",
    )
    student_fraction_start: float = key(
        0.1,
        "linear, adaptive: the share to start from (adaptive goes up to 1)",
        low=0.0,
        high=1.0,
        when=".kind=linear|adaptive",
    )
    adaptive_step: float = key(
        0.1, "adaptive: rise of the share when dev loss worsens", low=0.0, high=1.0, when=".kind=adaptive"
    )
    adaptive_eps: float = key(
        0.1, "adaptive: what counts as worsening, in nats", low=0.0, high=1e6, when=".kind=adaptive"
    )
    replay: str = key("auto", "draw from a replay buffer (auto: with adaptive)", choices=("auto", "on", "off"))
    replay_capacity: int = key(1000, "sequences in the FIFO replay buffer", low=1, high=MANY)
