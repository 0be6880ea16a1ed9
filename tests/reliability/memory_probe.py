"""What a training step really takes, beside what the doctor says: run in a fork of its own by the test.

python -m tests.reliability.memory_probe FAMILY ROWS LENGTH [key=value ...]
"""

from __future__ import annotations

import json
import sys

import torch
from torch import nn

from experiments.bench.measure import peak_added
from mgsr.config.load import load_config
from mgsr.data.collate import StepCounts, TrainingSequence, collate
from mgsr.models.from_config import build_initial
from mgsr.models.output_layer import last_hidden, output_head
from mgsr.planning.model_size import fake_models, model_size
from mgsr.planning.peak_memory import activations, training_added
from mgsr.training.build import build_clip, build_objective
from mgsr.training.optim import build_optimizer

VOCABULARY = 16_000


def probe(family: str, rows: int, length: int, overrides: list[str]) -> dict[str, float]:
    shape = [
        f"{who}.{key}={value}"
        for who, layers in (("teacher", 2), ("student", 8))
        for key, value in (
            ("source", "init"),
            ("architecture.family", family),
            ("architecture.hidden_size", 256),
            ("architecture.num_layers", layers),
            ("architecture.num_heads", 8),
        )
    ]
    config = load_config(None, [*shape, "data.train=synthetic", "trainer.accelerator=cpu", *overrides])
    mode, teacher, student = fake_models(config, VOCABULARY)
    said, taught = model_size(student), model_size(teacher)
    checkpointing = config.train.gradient_checkpointing
    kept = activations(mode, student, length, checkpointing=checkpointing, mixed=None)
    added = training_added(config, said, taught, kept, rows, length, "cpu")

    build = {"vocab_size": VOCABULARY, "eos_token_id": 0, "pad_token_id": 0, "seed": 0}
    real = build_initial(config, config.student, **build)
    if checkpointing:
        real.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    guide = build_initial(config, config.teacher, **build).eval()
    with torch.no_grad():
        # a teacher that has learned something: random weights would spread over all classes
        last_norm = [m for m in guide.modules() if "Norm" in type(m).__name__][-1]
        last_norm.weight.mul_(8.0)
    objective = build_objective(config, build_clip(config, VOCABULARY, None))
    optimizer, _ = build_optimizer(real, objective.clip, config.train, clip_lr=1e-3, total_steps=10)
    half = length // 2
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1, VOCABULARY, (rows, length), generator=draw).tolist()
    texts = [
        TrainingSequence(i, tuple(row[:half]), tuple(row[half:]), (0,) * (length - half), True)
        for i, row in enumerate(ids)
    ]
    batch = collate(texts, StepCounts.of(texts), 0)

    def step() -> None:
        with torch.no_grad():
            states = last_hidden(guide, batch.input_ids)
        hidden = last_hidden(real, batch.input_ids)
        terms = objective(
            batch.targets, hidden, output_head(real), states, output_head(guide), vocab_size=VOCABULARY
        )
        (terms.total + terms.clip_penalty).backward()
        nn.utils.clip_grad_norm_(real.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()
    measured = peak_added(step)
    moments = {id(p) for p in real.parameters()}
    state = [t for p, s in optimizer.state.items() if id(p) in moments for t in s.values()]
    return {
        "parameters": sum(p.numel() for p in real.parameters()),
        "weights": sum(t.numel() * t.element_size() for t in (*real.parameters(), *real.buffers())),
        "optimiser": sum(t.numel() * t.element_size() for t in state),
        "added": measured,
        "said_parameters": said.parameters,
        "said_weights": said.weights,
        "said_optimiser": said.optimiser,
        "said_added": added,
        "kept": kept.of(rows),
    }


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])))
