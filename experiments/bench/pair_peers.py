"""A pair of one's own against TRL's `GKDTrainer`, end to end: 24 steps of 8 sequences, float32 or bf16.

Jensen-Shannon divergence at beta 0.5, half of the text on-policy, at most 64 new tokens. TRL draws for every step
whether the student writes its batch; mgsr writes one round for half of the rows. The clock starts with the loaded
models and stops with the last step.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from experiments.bench.pair import OVERRIDES
from experiments.bench.peers import GKD, Collator, mgsr_run, trl_config, trl_run
from mgsr import models
from mgsr.config.load import load_config
from mgsr.config.schema import ExperimentConfig
from mgsr.data.encoding import pad_id
from mgsr.data.prompts import Example
from mgsr.data.splits import encode, read_split
from mgsr.losses import tiled_objective
from mgsr.models.output_layer import last_hidden, output_head

STEPS, BATCH = 24, 8


def config_of(teacher: str, student: str, data: str, precision: str, seed: int) -> ExperimentConfig:
    return load_config(
        "configs/smollm2.yaml",
        [
            *OVERRIDES,
            "arm=pair_gkd",
            f"seed={seed}",
            f"data.train={data}",
            f"data.dev={data}",
            f"data.test={data}",
            f"data.train_limit={STEPS * BATCH}",
            "data.dev_limit=1",
            "data.test_limit=1",
            f"teacher.source={teacher}",
            f"student.source={student}",
            "student.keep_layers=[]",
            "teacher.sft.enabled=false",
            "student.sft.enabled=false",
            "train.epochs=1",
            f"train.batch_size={BATCH}",
            f"train.micro_batch_size={BATCH}",
            "evaluation.val_every_n_epochs=1000",
            "trainer.accelerator=cpu",
            f"trainer.precision={precision}",
            *GKD,
        ],
    )


def mgsr_gkd(config: ExperimentConfig) -> dict[str, Any]:
    return mgsr_run(config)[1]


def trl_gkd(config: ExperimentConfig) -> dict[str, Any]:
    from trl.experimental.gkd import GKDConfig

    teacher, student, tokenizer, examples = _parts(config)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = trl_config(GKDConfig, config, scratch, config.seed, STEPS)
        arguments.bf16 = config.trainer.precision == "bf16-mixed"
        trainer, seconds = trl_run(student, teacher, tokenizer, examples, arguments)
    return {"seconds": [seconds], "texts": trainer.texts}


def _parts(config: ExperimentConfig) -> tuple[Any, Any, Any, list[Example]]:
    """Teacher, student, tokenizer and the rows of the run."""
    assert config.teacher.source is not None and config.student.source is not None
    tokenizer = models.load_tokenizer(config.student.source)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id(tokenizer))
    pair = (models.load_causal_lm(source) for source in (config.teacher.source, config.student.source))
    rows = encode(read_split(config.data, "train"), tokenizer, config.data, "training rows").examples
    return *pair, tokenizer, list(rows)


@torch.no_grad()
def check(config: ExperimentConfig) -> dict[str, Any]:
    """Both take the same loss of the same text.

    Raises:
        AssertionError: the losses of one of three batches differ by more than a ten-thousandth.
    """
    from trl.experimental.gkd import GKDTrainer

    teacher, student, tokenizer, examples = _parts(config)
    collate = Collator({e.id: e for e in examples}, pad_id(tokenizer))
    losses = []
    for start in range(0, 3 * BATCH, BATCH):
        batch = collate([{"id": e.id} for e in examples[start : start + BATCH]])
        read = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        logits = [model(**read).logits[:, :-1] for model in (student, teacher)]
        labels = batch["labels"][:, 1:]
        theirs = float(GKDTrainer.generalized_jsd_loss(*logits, labels=labels, beta=0.5))
        mine = float(_objective(student, teacher, batch))
        assert abs(mine - theirs) < 1e-4 * theirs, f"losses {mine} and {theirs}"
        losses.append(theirs)
    return {"losses": losses}


def _objective(student: Any, teacher: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The Jensen-Shannon term from hidden states."""
    mask = batch["attention_mask"]
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    states = [
        last_hidden(model, batch["input_ids"], mask, places)[:, :-1].flatten(0, 1) for model in (student, teacher)
    ]
    terms = tiled_objective(
        states[0],
        output_head(student).weight,
        states[1],
        output_head(teacher).weight,
        batch["labels"][:, 1:].flatten(),
        None,
        weights=(0.0, 1.0, 0.0),
        divergence="jensen_shannon",
        divergence_kwargs={"beta": 0.5},
    )
    return terms.total


CASES = {"mgsr_gkd": mgsr_gkd, "trl_gkd": trl_gkd, "check": check}


def case(
    name: str, teacher: str, student: str, data: str, precision: str = "32-true", seed: int = 0
) -> dict[str, Any]:
    return CASES[name](config_of(teacher, student, data, precision, seed))
