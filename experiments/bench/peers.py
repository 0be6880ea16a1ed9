"""End to end against TRL: the same models, rows, optimiser steps, batch and schedule through `GKDTrainer`.

Both start from the demo's SFT student. mgsr looks at its dev set once, at the end, so both test their last
weights.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch

from experiments.bench.pair import demo_config, teacher_of
from mgsr.config.schema import ExperimentConfig
from mgsr.data.encoding import pad_id
from mgsr.data.prompts import Example
from mgsr.data.splits import encode, read_split
from mgsr.evaluation.test_set import Predictor, evaluate
from mgsr.generation.decoding import pad_left
from mgsr.training.run_folder import run_folder
from mgsr.training.sft import prepare_student
from mgsr.training.train import train

GKD = (
    "scrg.passes=0",
    "objective.divergence=jensen_shannon",
    "objective.w_sft=0",
    "objective.w_span=0",
)


def mgsr_gkd(seed: int = 0, steps: int = 400) -> dict[str, Any]:
    """The GKD preset."""
    return _mgsr("gkd", seed, steps, *GKD)


def mgsr_full(seed: int = 0, steps: int = 400) -> dict[str, Any]:
    """SCRG, DAC-KL, span correlation and cross-entropy."""
    return _mgsr("full", seed, steps)


def _mgsr(arm: str, seed: int, steps: int, *overrides: str) -> dict[str, Any]:
    config = demo_config(
        f"arm={arm}",
        f"seed={seed}",
        f"train.max_steps={steps}",
        "evaluation.val_every_n_epochs=1000",
        *overrides,
    )
    metrics, figures = mgsr_run(config)
    return {**figures, "rouge_l": metrics["result"]["test"]["rouge_l"]}


def mgsr_run(config: ExperimentConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's metrics, its seconds, and how many texts its student has written, corrections aside."""
    # timed anew each time: a finished run would only be read
    shutil.rmtree(run_folder(config), ignore_errors=True)
    metrics = train(config)
    texts = round(metrics["scrg"]["sequences"] * metrics["scrg"]["rounds"])
    return metrics, {"seconds": [metrics["seconds_training"]], "texts": texts}


class Collator:
    """What `GKDTrainer` expects of a batch: padded on the left, the prompts once more by themselves."""

    def __init__(self, examples: dict[int, Example], pad: int) -> None:
        self.examples, self.pad = examples, pad

    def __call__(self, rows: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        chosen = [self.examples[row["id"]] for row in rows]
        ids, mask = pad_left([[*e.prompt_ids, *e.response_ids] for e in chosen], self.pad)
        prompts, prompt_mask = pad_left([list(e.prompt_ids) for e in chosen], self.pad)
        labels = torch.full_like(ids, -100)
        for row, example in enumerate(chosen):
            length = len(example.response_ids)
            labels[row, -length:] = ids[row, -length:]
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "prompts": prompts,
            "prompt_attention_mask": prompt_mask,
        }


def counting(trainer: type) -> Any:
    """TRL's trainer, which counts the texts that its student writes."""

    class Counting(trainer):  # type: ignore[misc]
        texts = 0

        def generate_on_policy_outputs(self, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
            self.texts += len(inputs["prompts"])
            return trainer.generate_on_policy_outputs(model, inputs, *rest)  # type: ignore[attr-defined]

    return Counting


def trl_gkd(seed: int = 0, steps: int = 400) -> dict[str, Any]:
    """TRL's `GKDTrainer`: lambda 0.5, beta 0.5, temperature 1."""
    from trl.experimental.gkd import GKDConfig

    config = demo_config(f"seed={seed}")
    rows = read_split(config.data, "train")
    teacher = teacher_of(config)
    student = prepare_student(config, teacher, rows)
    tokenizer = student.tokenizer
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id(tokenizer))
    examples = encode(rows, tokenizer, config.data, "training rows").examples
    with tempfile.TemporaryDirectory() as scratch:
        arguments = trl_config(GKDConfig, config, scratch, seed, steps)
        trainer, seconds = trl_run(student.model, teacher.model, tokenizer, examples, arguments)
    test = encode(read_split(config.data, "test"), tokenizer, config.data, "test rows").examples
    predictor = Predictor(tokenizer, list(test), config.evaluation, pad_token_id=pad_id(tokenizer))
    rouge_l = evaluate(trainer.model.eval(), predictor).summary["rouge_l"]
    return {"seconds": [seconds], "rouge_l": rouge_l, "texts": trainer.texts}


def trl_run(
    student: Any, teacher: Any, tokenizer: Any, examples: Sequence[Example], arguments: Any
) -> tuple[Any, float]:
    """TRL's trainer once it has trained the student, and the seconds of that."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDTrainer

    student.generation_config.eos_token_id = tokenizer.eos_token_id
    trainer = counting(GKDTrainer)(
        model=student,
        teacher_model=teacher,
        args=arguments,
        data_collator=Collator({e.id: e for e in examples}, pad_id(tokenizer)),
        train_dataset=Dataset.from_dict({"id": [e.id for e in examples]}),
        processing_class=tokenizer,
    )
    start = time.perf_counter()
    trainer.train()
    return trainer, time.perf_counter() - start


def trl_config(cls: Any, config: ExperimentConfig, folder: str, seed: int, steps: int) -> Any:
    """Arguments of `GKDTrainer` that say what the configuration says."""
    stage = config.train
    return cls(
        output_dir=folder,
        lmbda=0.5,
        beta=0.5,
        temperature=1.0,
        max_new_tokens=config.scrg.max_new_tokens,
        max_steps=steps,
        per_device_train_batch_size=stage.batch_size,
        learning_rate=stage.lr,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": stage.min_lr_ratio},
        warmup_steps=round(stage.warmup_ratio * steps),
        weight_decay=stage.weight_decay,
        adam_beta1=stage.betas[0],
        adam_beta2=stage.betas[1],
        max_grad_norm=stage.grad_clip,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        seed=seed,
        save_strategy="no",
        report_to=[],
        logging_steps=50,
        disable_tqdm=True,
    )


CASES = {"mgsr_gkd": mgsr_gkd, "mgsr_full": mgsr_full, "trl_gkd": trl_gkd}
