"""Who writes the text of a round: the configuration bound to SCRG or to what stands in its place."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from mgsr import models
from mgsr.config.schema import ExperimentConfig
from mgsr.data.prompts import decode, pad_id, require_eos
from mgsr.data.splits import Annotation
from mgsr.generation import InterleavedWriter, LanguageModel, MixedWriter
from mgsr.generation.fitting_batches import FittingBatches
from mgsr.generation.vllm import Engine, EngineWriter, VllmEngine
from mgsr.rounds.store import RoundEntry
from mgsr.runtime.devices import working_device
from mgsr.runtime.faults import reach
from mgsr.runtime.meter import Meter
from mgsr.scrg import Prompt, RevisedSequence, revise

Texts = tuple[list[RevisedSequence], list[dict[str, Any]]]


class Models(Protocol):
    """Student and teacher of a run, wherever they are; `mgsr.training.placement.Placement` is one."""

    acting: Any
    teacher: Any

    def writing(self, device: torch.device, *, together: bool) -> AbstractContextManager[None]:
        """Both ready to write and score; every rank has to open this."""
        ...

    def in_turn(self, writer: Any, device: torch.device) -> Any:
        """A writer or scorer of one of the two, which takes its turn before it works."""
        ...


class RoundWriter:
    """Called with prompts and the round's number; `costs` are those of the last call, see `mgsr.runtime.meter`.

    `phase` is open while a round is written: on every rank, also where it has nothing to write.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Prompt], int], tuple[list[RoundEntry], dict[str, float]]],
        phase: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._write, self.phase = write, phase
        self.costs: dict[str, float] = {}

    def __call__(self, prompts: Sequence[Prompt], round_: int) -> list[RoundEntry]:
        entries, self.costs = self._write(prompts, round_)
        return entries


def build_write(
    config: ExperimentConfig,
    residence: Models,
    tokenizer: PreTrainedTokenizerBase,
    annotation: Annotation,
    *,
    vocab_size: int,
    check: Callable[[], None] = lambda: None,
) -> RoundWriter:
    """Writes one round with student and teacher as they stand when it is called.

    Args:
        residence: of both models; the teacher may be None for plain student text.
        annotation: finds the spans of what was written.
        vocab_size: token ids that both models share; no other is ever written.
        check: called between batches; may raise to stop.
    """

    device = working_device(config.trainer.accelerator)
    engines: list[Engine] = []
    loaded: list[int] = []
    cut = FittingBatches(config.scrg.batch_size, "scrg.batch_size")
    said: set[str] = set()

    def write(prompts: Sequence[Prompt], round_: int) -> tuple[list[RoundEntry], dict[str, float]]:
        student, teacher = residence.acting, residence.teacher
        if config.scrg.backend == "vllm" and loaded != [round_]:
            if not engines:
                engines.append(_vllm_engine(config, student, tokenizer, vocab_size))
            # once per round: the student does not change within one
            engines[0].load_weights(student.state_dict().items())
            loaded[:] = [round_]
        entries: list[RoundEntry] = []
        meter = Meter()
        # batches of like length: the engine sorts within a batch, this sorts between them
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i][1]))

        def texts(batch: Sequence[int]) -> Texts:
            check()
            reach("round.batch")
            part = [prompts[i] for i in batch]
            both = [model for model in (student, teacher) if model]
            pair = [_language_model(config, model, tokenizer, vocab_size, said) for model in both]
            if not together:
                pair = [residence.in_turn(model, device) for model in pair]
            return _texts(config, pair, tokenizer, part, round_, vocab_size, meter, *engines)

        for _, (revised, extra) in cut.map(order, texts):
            spans = annotation.spans([r.response_ids for r in revised])
            entries += [
                RoundEntry(
                    sequence,
                    ids,
                    rollout=decode(tokenizer, sequence.rollout_ids),
                    response=decode(tokenizer, sequence.response_ids),
                    **more,
                )
                for sequence, ids, more in zip(revised, spans, extra, strict=True)
            ]
        place = {i: k for k, i in enumerate(order)}
        return [entries[place[i]] for i in range(len(prompts))], meter.totals()

    together = config.scrg.text in ("mixed", "interleaved")
    return RoundWriter(write, lambda: residence.writing(device, together=together))


def _language_model(
    config: ExperimentConfig, model: Any, tokenizer: PreTrainedTokenizerBase, vocab_size: int, said: set[str]
) -> LanguageModel:
    scrg = config.scrg
    return LanguageModel(
        model,
        eos_token_id=require_eos(tokenizer),
        pad_token_id=pad_id(tokenizer),
        max_new_tokens=scrg.max_new_tokens,
        batch_size=scrg.batch_size,
        vocab_size=vocab_size,
        max_cache_slots=scrg.max_cache_slots or None,
        said=said,
    )


def _texts(
    config: ExperimentConfig,
    pair: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    round_: int,
    vocab_size: int,
    meter: Meter,
    engine: Engine | None = None,
) -> Texts:
    """The sequences of one batch of prompts, and what else their entries hold.

    Args:
        pair: `LanguageModel`s of student and teacher; the teacher may be missing for plain student text.
    """
    scrg, seed = config.scrg, config.seed
    if scrg.text == "student":
        revised = revise(
            pair[0] if engine is None else EngineWriter(engine, pair[0]),
            pair[1] if scrg.passes else None,
            prompts,
            passes=scrg.passes,
            max_new_tokens=scrg.max_new_tokens,
            eos_token_id=require_eos(tokenizer),
            seed=seed,
            round=round_,
            teacher_token=scrg.teacher_token,  # type: ignore[arg-type]
            error_position=scrg.error_position,  # type: ignore[arg-type]
            kl_threshold=scrg.kl_threshold,
            vocab_size=vocab_size,
            meter=meter,
        )
        return revised, [{} for _ in revised]
    with meter.phase("generation"):
        texts, extra = _joint_texts(config, pair[0], pair[1], prompts, round_)
    read = sum(len(prompt_ids) for _, prompt_ids in prompts) + sum(map(len, texts))
    meter.add("generation", tokens=read * (1 if scrg.text == "teacher" else 2))
    return _unrevised(prompts, texts), extra


def _joint_texts(
    config: ExperimentConfig,
    student: LanguageModel,
    teacher: LanguageModel,
    prompts: Sequence[Prompt],
    round_: int,
) -> tuple[Sequence[Sequence[int]], list[dict[str, Any]]]:
    """Text in which the teacher takes part while it is written."""
    scrg, seed = config.scrg, config.seed
    if scrg.text == "teacher":
        return teacher.write(prompts, seed=seed, round=round_), [{} for _ in prompts]
    if scrg.text == "mixed":
        mixer = MixedWriter(student, teacher, alpha=scrg.mixed_alpha)
        mixed = mixer.write_mixed(prompts, seed=seed, round=round_)
        extra = [{"behaviour_log_probs": text.behaviour_log_probs} for text in mixed]
        return [text.response_ids for text in mixed], extra
    pair = InterleavedWriter(student, teacher, top_k=scrg.interleaved_top_k)
    written = pair.write_interleaved(prompts, seed=seed, round=round_)
    replaced = [{"replaced": tuple(i for i, there in enumerate(t.replaced) if there)} for t in written]
    return [text.response_ids for text in written], replaced


def _vllm_engine(
    config: ExperimentConfig, student: Any, tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> Engine:
    """An engine of the student's shape; vLLM reads it from a folder and has then no more use for it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = models.save_model_folder(student, tokenizer, Path(scratch) / "student")
        return VllmEngine(
            folder,
            eos_ids=[require_eos(tokenizer)],
            max_length=config.data.max_prompt_length + config.scrg.max_new_tokens,
            memory=config.scrg.vllm_memory,
            dtype=config.student.dtype,
            vocab_size=vocab_size if vocab_size < models.logits_width(student) else None,
            trust_remote_code=config.student.trust_remote_code,
        )


def _unrevised(prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> list[RevisedSequence]:
    """Records of text that no teacher has searched."""
    return [
        RevisedSequence(
            example_id=example_id,
            prompt_ids=tuple(prompt_ids),
            rollout_ids=tuple(response),
            response_ids=tuple(response),
            corrections=(),
            status="not_searched",
            disagreements=0,
            positions=0,
        )
        for (example_id, prompt_ids), response in zip(prompts, responses, strict=True)
    ]
