"""The typed configuration tree: every key, its type, its default, what it does and what values it takes.

`mgsr config` prints this tree; `mgsr.config.load.load_config` fills it from a YAML file and `key=value` overrides.
"""

from __future__ import annotations

from dataclasses import dataclass

from mgsr.config.keys import LARGE, MANY, SEED, key, section
from mgsr.config.schema_method import (
    DIVERGENCE_NAMES,
    ClipConfig,
    MixtureConfig,
    ObjectiveConfig,
    ScrgConfig,
    SpansConfig,
)
from mgsr.config.schema_models import (
    ArchitectureConfig,
    LoraConfig,
    ModelConfig,
    SftConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)

__all__ = [
    "DIVERGENCE_NAMES",
    "ArchitectureConfig",
    "ClipConfig",
    "DataConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "FieldsConfig",
    "LoraConfig",
    "MixtureConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "ScrgConfig",
    "SftConfig",
    "SpansConfig",
    "SplitConfig",
    "StudentConfig",
    "SyntheticConfig",
    "TeacherConfig",
    "TrainConfig",
    "TrainerConfig",
]


@dataclass
class SyntheticConfig:
    seed: int = key(0, "seed of the procedural instruction set", low=0, high=SEED)
    families: list[str] = key([], "kinds of task that rows are drawn from (empty: all)")
    teacher_rows: int = key(
        8000, "rows the teacher is fine-tuned on", low=1, high=10_000_000, when="data.train=synthetic"
    )
    train_rows: int = key(600, "training rows of the student", low=1, high=10_000_000, when="data.train=synthetic")
    dev_rows: int = key(200, "rows that choices may look at", low=1, high=10_000_000)
    test_rows: int = key(400, "rows that are read once, at the end", low=1, high=10_000_000)
    vocab_size: int = key(512, "upper limit of the tokenizer trained on the set", low=260, high=LARGE)


@dataclass
class SplitConfig:
    dev: int = key(
        1000, "dev rows to cut (a tenth of all rows, where this is over a third of them)", low=1, high=MANY
    )
    test: int = key(500, "test rows to cut (a tenth of all rows, where this is over a third)", low=1, high=MANY)
    seed: int = key(42, "seed of the shuffle before the cut", low=0, high=SEED)


@dataclass
class FieldsConfig:
    instruction: str = key("", "field of the question (empty: instruction, prompt, question, query or problem)")
    input: str = key("", "field of further context (empty: input or context)")
    output: str = key(
        "", "field of the answer, or answers (empty: output, completion, response, answer, answers or solution)"
    )
    messages: str = key("", "field of whole conversations (empty: messages, conversation or conversations)")
    category: str = key("", "field of the kind of task (empty: category)")


@dataclass
class DataConfig:
    train: str = key("", "`synthetic`, a file of rows, or a hub id", path=True)
    dev: str = key("", "as `train`; empty: the dev split of the same source, or cut from it", path=True)
    test: str = key("", "as `train`; empty: the test split of the same source, or cut from it", path=True)
    test_sets: dict[str, str] = key(
        {}, "further test sets, name -> file; each is reported under its name", path=True
    )
    train_limit: int = key(0, "use only the first n training rows (0: all)", low=0, high=MANY)
    dev_limit: int = key(0, "use only the first n dev rows (0: all)", low=0, high=MANY)
    test_limit: int = key(0, "use only the first n rows of every test set (0: all)", low=0, high=MANY)
    template: str = key(
        "alpaca",
        "how a row becomes a prompt; chat: by the tokenizer's own chat template",
        choices=("alpaca", "plain", "chat"),
    )
    chat_template: str = key(
        "",
        "whose chat template (empty: the student's), `teacher`, or the file of a Jinja template",
        path=True,
        when=".template=chat",
    )
    max_length: int = key(512, "tokens of prompt and response together", low=8, high=LARGE)
    max_prompt_length: int = key(256, "tokens of the prompt; longer ones are cut as documented", low=4, high=LARGE)
    too_long: str = key("cut", "training and dev rows beyond these lengths", choices=("cut", "leave_out"))
    end_token: str = key(
        "", "token that closes every answer (empty: the chat template's, else the student tokenizer's end of text)"
    )
    synthetic: SyntheticConfig = section(SyntheticConfig, "the procedural instruction set")
    split: SplitConfig = section(SplitConfig, "how dev and test rows are cut from data.train where none are given")
    fields: FieldsConfig = section(
        FieldsConfig, "names of the fields of a row, with dots for nested ones, as in answer.text"
    )


@dataclass
class EvaluationConfig:
    seeds: list[int] = key(
        [10, 20, 30, 40, 50],
        "sampling seeds of the test sets, which are answered greedily as well (empty: greedily alone)",
        low=0,
        high=SEED,
        when=".temperature",
    )
    batch_size: int = key(64, "sequences written at once", low=1, high=LARGE)
    max_new_tokens: int = key(256, "tokens of a written response", low=1, high=LARGE)
    max_prompt_length: int = key(
        0, "tokens of a dev or test prompt that is answered (0: data.max_prompt_length)", low=0, high=LARGE
    )
    temperature: float = key(1.0, "temperature of the sampled answers (0: greedy ones alone)", low=0.0, high=1e3)
    top_p: float = key(1.0, "nucleus of sampling", low=1e-6, high=1.0, when=".temperature")
    val_every_n_epochs: int = key(1, "epochs between two looks at the dev set", low=1, high=LARGE)
    val_rows: int = key(0, "dev rows that val/rouge_l is measured on, greedily (0: all)", low=0, high=MANY)
    exposure_rows: int = key(
        0, "test prompts that exposure bias is measured on, the first ones (0: all)", low=0, high=MANY
    )
    rouge_tokenizer: str = key(
        "published",
        "words that ROUGE sees: runs of a-z and 0-9, as published; or of letters and digits of any script",
        choices=("published", "unicode"),
    )


@dataclass
class TrainerConfig:
    accelerator: str = key(
        "auto",
        "Lightning accelerator (mps has no float64, which sums and draws need)",
        choices=("auto", "cpu", "gpu", "cuda"),
    )
    devices: int = key(1, "devices per node", low=1, high=1024)
    num_nodes: int = key(1, "nodes", low=1, high=65_536)
    strategy: str = key(
        "auto",
        "how devices share the work: each holds the student (ddp) or a part of it (fsdp2); auto: ddp on several",
        choices=("auto", "ddp", "fsdp2"),
    )
    timeout_minutes: int = key(
        240, "how long a rank waits for the slowest one, as for its round of text", low=1, high=LARGE
    )
    precision: str = key(
        "32-true",
        "Lightning precision",
        choices=("32-true", "64-true", "bf16-true", "bf16-mixed", "16-mixed"),
    )
    matmul_precision: str = key(
        "highest",
        "products of float32 matrices: as they are; high, medium: in TF32 or bf16 where the device is faster so",
        choices=("highest", "high", "medium"),
    )
    compile: bool = key(False, "torch.compile the student's and the teacher's forward of a training step")
    threads: int = key(0, "CPU threads (0: torch's choice)", low=0, high=1024)
    checkpoint_every_n_steps: int = key(200, "steps between two resume points", low=1, high=MANY)
    log_every_n_steps: int = key(10, "steps between two points of a curve", low=1, high=MANY)
    grad_norm_every_n_steps: int = key(
        200, "steps between two measurements of each term's gradient norm", low=1, high=MANY
    )
    histogram_every_n_steps: int = key(50, "steps between two histograms of the clipping bounds", low=1, high=MANY)
    text_samples: int = key(5, "revised sequences shown in TensorBoard per round", low=0, high=1000)


@dataclass
class ExperimentConfig:
    experiment: str = key("mgsr", "name of the experiment: the folder below run_root")
    arm: str = key("main", "name of the arm: the folder below the experiment")
    seed: int = key(0, "seed of initialisation, order and sampling", low=0, high=SEED)
    run_root: str = key("runs", "where runs and caches are written", path=True)
    data: DataConfig = section(DataConfig, "rows, prompts and lengths")
    teacher: TeacherConfig = section(TeacherConfig, "the frozen teacher")
    student: StudentConfig = section(StudentConfig, "the trained student")
    objective: ObjectiveConfig = section(ObjectiveConfig, "the loss")
    clip: ClipConfig = section(
        ClipConfig, "DAC-KL's bounds", when="objective.divergence=dac_kl objective.kind=multi_granularity"
    )
    spans: SpansConfig = section(SpansConfig, "span correlation", when="objective.w_span")
    scrg: ScrgConfig = section(ScrgConfig, "sequence correction and re-generation", when="scrg.enabled")
    mixture: MixtureConfig = section(MixtureConfig, "ground truth against student text", when="scrg.enabled")
    train: TrainConfig = section(TrainConfig, "optimisation of the main job")
    evaluation: EvaluationConfig = section(EvaluationConfig, "dev and test evaluation")
    trainer: TrainerConfig = section(TrainerConfig, "devices, precision, logging")
