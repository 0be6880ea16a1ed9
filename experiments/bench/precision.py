"""float32 against bf16 on a pair of one's own models: scoring, a round, a training step, the curve of the loss.

Text is that of a data file, one row after another, cut to equal lengths: shapes are then known.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Any

import lightning as L
import torch

from experiments.bench.pair import Pair, folder_pair
from experiments.bench.rounds import revised
from mgsr.config.schema import ExperimentConfig, TrainConfig, TrainerConfig
from mgsr.data.collate import Batch, StepCounts, TrainingSequence, collate
from mgsr.generation import LanguageModel
from mgsr.models.from_config import frozen
from mgsr.runtime.devices import computing_dtype
from mgsr.training.build import build_clip, build_objective
from mgsr.training.fsdp import working
from mgsr.training.module import DistillationModule
from mgsr.training.optim import CastOnce
from mgsr.training.trainer import quiet_lightning

CPU = torch.device("cpu")
PRECISIONS = ("32-true", "bf16-mixed")
STEPS = 50


def pieces(pair: Pair, count: int, length: int) -> list[tuple[int, ...]]:
    """The file's rows as one text, in pieces of so many tokens."""
    stream = chain.from_iterable((*row.prompt_ids, *row.response_ids) for row in pair.examples)
    found = [tuple(islice(stream, length)) for _ in range(count)]
    if len(found[-1]) < length:
        raise ValueError(f"the file has fewer than {count * length} tokens")
    return found


def in_turn(cases: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of `repeats` runs of each, one of each in turn; a first run of each is not counted."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, work in cases.items():
            start = time.perf_counter()
            work()
            if turn:
                found[name].append(time.perf_counter() - start)
    return found


def scoring(pair: Pair) -> dict[str, Any]:
    """The teacher reads 16 x 128 tokens and gives the logits of the 64 last positions of each."""
    texts = pieces(pair, 16, 128)
    prompts, responses = [(i, text[:64]) for i, text in enumerate(texts)], [text[64:] for text in texts]
    with working(pair.teacher, torch.bfloat16) as narrow:

        def work(model: Any) -> None:
            reader = LanguageModel(
                model, eos_token_id=pair.eos, pad_token_id=pair.pad, max_new_tokens=64, batch_size=16
            )
            scores = reader.score(prompts, responses)
            for start in range(0, len(scores), 256):
                scores[slice(start, start + 256)]

        return in_turn({"32-true": lambda: work(pair.teacher), "bf16-mixed": lambda: work(narrow)}, 5)


def a_round(pair: Pair) -> dict[str, Any]:
    """SCRG on 32 prompts of 48 tokens, 32 new ones, one correction; copying the student is in the time."""
    texts = [(i, text) for i, text in enumerate(pieces(pair, 32, 48))]
    with working(pair.teacher, torch.bfloat16) as narrow:

        def work(teacher: Any, precision: str) -> None:
            with working(pair.student, computing_dtype(precision, CPU)) as student:
                revised(Pair(teacher, student, pair.tokenizer, texts, pair.vocab_size, 32, batch_size=32))

        taught = {"32-true": pair.teacher, "bf16-mixed": narrow}
        return in_turn({name: lambda name=name: work(taught[name], name) for name in PRECISIONS}, 3)


def step(pair: Pair) -> dict[str, Any]:
    """A step of 16 x 128 tokens under Lightning with AdamW, two runs of each; the first three are not counted."""
    batches, found = _batches(pair, 8, 16, 128), {name: list[float]() for name in PRECISIONS}
    for _ in range(2):
        for name, seconds in found.items():
            seconds += _fitted(pair, name, batches, 2e-5).seconds[3:]
    return found


def curves(pair: Pair) -> dict[str, Any]:
    """The loss of 50 steps of 4 x 48 tokens."""
    batches = _batches(pair, STEPS, 4, 48)
    return {name: _fitted(pair, name, batches, 1e-4).losses for name in PRECISIONS}


def _batches(pair: Pair, count: int, rows: int, length: int) -> list[Batch]:
    texts = pieces(pair, count * rows, length)
    half = length // 2
    spans = tuple(i // 3 for i in range(length - half))
    found = []
    for start in range(0, len(texts), rows):
        some = [
            TrainingSequence(start + i, text[:half], text[half:], spans, True)
            for i, text in enumerate(texts[start : start + rows])
        ]
        found.append(collate(some, StepCounts.of(some), pair.pad))
    return found


class _Ready(list[Batch]):
    """Batches that need no fetching ahead, which the module asks for."""

    def prefetch(self) -> None:
        """Nothing is left to do."""


class _Clock(L.Callback):
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        self.seconds.append(time.perf_counter() - self._start)


def _fitted(pair: Pair, precision: str, batches: Sequence[Batch], lr: float) -> _Clock:
    """The module that a run trains, its precision's plugin included, all three terms."""
    quiet_lightning()
    config = ExperimentConfig()
    config.trainer = TrainerConfig(accelerator="cpu", precision=precision, grad_norm_every_n_steps=10**9)
    torch.manual_seed(0)
    module = DistillationModule(
        copy.deepcopy(pair.student),
        frozen(copy.deepcopy(pair.teacher), computing_dtype(precision, CPU)),
        build_objective(config, build_clip(config, pair.vocab_size, None)),
        train=TrainConfig(lr=lr, warmup_ratio=0.0),
        trainer=config.trainer,
        total_steps=len(batches),
        micro_batches=1,
        vocab_size=pair.vocab_size,
    )
    clock, mixed = _Clock(), precision.endswith("-mixed")
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=len(batches),
        max_epochs=-1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        logger=False,
        callbacks=[clock],
        enable_model_summary=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        precision=None if mixed else precision,
        plugins=[CastOnce(precision, "cpu")] if mixed else [],
    )
    trainer.fit(module, torch.utils.data.DataLoader(_Ready(batches), batch_size=None))
    return clock


CASES: dict[str, Callable[[Pair], dict[str, Any]]] = {
    "scoring": scoring,
    "round": a_round,
    "step": step,
    "curves": curves,
}


def case(name: str, teacher: str, student: str, data: str) -> dict[str, Any]:
    return CASES[name](folder_pair(teacher, student, data, prompts=256))
