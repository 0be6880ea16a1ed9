"""Who writes the text of a round: the configuration bound to SCRG. What stands in its place is `unrevised`."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from mgsr import models
from mgsr.config.schema import ExperimentConfig
from mgsr.data.annotate import Annotation
from mgsr.data.encoding import decode
from mgsr.generation import LanguageModel
from mgsr.generation.batching import FittingBatches
from mgsr.generation.vllm import Engine, EngineWriter, VllmEngine
from mgsr.rounds.own_text import checked_text
from mgsr.rounds.store import RoundEntry
from mgsr.runtime.devices import is_out_of_memory
from mgsr.runtime.errors import UserError
from mgsr.runtime.faults import reach
from mgsr.runtime.meter import Meter, Work
from mgsr.scrg import Options, Prompt, RevisedSequence, revise_batch

Extra = list[dict[str, Any]]
"""Per sequence, what its `RoundEntry` holds beside the text."""

Unrevised = tuple[Sequence[Sequence[int]], Extra, int]
"""Responses that no teacher searches, what else their entries hold, and how many models have read them."""


class Models(Protocol):
    """Student and teacher of a run, wherever they are; `mgsr.training.placement` has them.

    Attributes:
        acting: the student as it writes: itself, or while a round is written a whole copy of a sharded one.
        teacher: None where no text needs it.
    """

    acting: Any
    teacher: Any

    def writing(self, device: torch.device, *, together: bool) -> AbstractContextManager[None]:
        """Both ready to write and score; every rank has to open this."""
        ...

    def in_turn(self, writer: Any, device: torch.device) -> Any:
        """A writer or scorer of one of the two, which takes its turn before it works."""
        ...


class RoundWriter(ABC):
    """Writes rounds with student and teacher as they stand when it is asked, a batch at a time.

    A `mgsr.rounds.round.TextWriter`. Subclasses, one per `scrg.text`, say who writes the tokens.

    Args:
        models: the teacher may be None for plain student text.
        annotation: finds the spans of what was written.
        vocab_size: token ids that both models share; no other is ever written.
        eos_token_id: one or several ids that end a text.
        device: where models work outside of Lightning.
        check: called between batches; may raise to stop.
    """

    together = False
    """Whether both models are needed at every token, so that neither can make room for the other."""

    def __init__(
        self,
        config: ExperimentConfig,
        models: Models,
        tokenizer: PreTrainedTokenizerBase,
        annotation: Annotation,
        *,
        vocab_size: int,
        eos_token_id: int | Sequence[int],
        pad_token_id: int,
        device: torch.device,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.config, self.models, self.tokenizer = config, models, tokenizer
        self.annotation, self.vocab_size, self.check = annotation, vocab_size, check
        self.eos_token_id, self.pad_token_id, self.device = eos_token_id, pad_token_id, device
        self.batches = FittingBatches(config.scrg.batch_size, "scrg.batch_size")
        self.phase = partial(models.writing, self.device, together=self.together)
        said: set[str] = set()
        self.student = self._language_model(models.acting, said)
        self.teacher = None if models.teacher is None else self._language_model(models.teacher, said)

    def _language_model(self, model: Any, said: set[str]) -> LanguageModel:
        scrg = self.config.scrg
        return LanguageModel(
            model,
            eos_token_id=self.eos_token_id,
            pad_token_id=self.pad_token_id,
            max_new_tokens=scrg.max_new_tokens,
            batch_size=scrg.batch_size,
            vocab_size=self.vocab_size,
            max_cache_slots=scrg.max_cache_slots or None,
            said=said,
        )

    def write(self, prompts: Sequence[Prompt], round_: int) -> tuple[list[RoundEntry], dict[str, float]]:
        """Entries and costs, see `TextWriter`."""
        if self.student.model is not self.models.acting:
            self.student.take(self.models.acting)
        self.begin(round_)
        entries: list[RoundEntry] = []
        meter = Meter(work={"read_student": Work(), "read_teacher": Work()})
        self.student.work = meter.work["read_student"]
        if self.teacher is not None:
            self.teacher.work = meter.work["read_teacher"]
        for batch in self.batches.of(prompts):
            try:
                self.check()
                reach("round.batch")
                revised, more = self.texts(batch, round_, meter)
            except RuntimeError as error:
                self.batches.halve(error)
                continue
            spans = self.annotation.spans([sequence.response_ids for sequence in revised])
            for sequence, ids, extra in zip(revised, spans, more, strict=True):
                both, stop_ids = (sequence.rollout_ids, sequence.response_ids), self.student.eos_ids
                before, after = (decode(self.tokenizer, text, stop_ids) for text in both)
                entries.append(RoundEntry(sequence, ids, rollout=before, response=after, **extra))
        return entries, meter.totals()

    def begin(self, round_: int) -> None:  # noqa: B027 (most writers need nothing)
        """Before the first batch: what no smaller batch would help."""

    @abstractmethod
    def texts(self, prompts: Sequence[Prompt], round_: int, meter: Meter) -> tuple[list[RevisedSequence], Extra]:
        """The sequences of one batch of prompts, and what else their entries hold."""


class RevisingWriter(RoundWriter):
    """The student's text, corrected by the teacher `scrg.passes` times (0: as it is)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        scrg = self.config.scrg
        self.options = Options(
            max_new_tokens=scrg.max_new_tokens,
            eos_ids=frozenset(self.student.eos_ids),
            seed=self.config.seed,
            passes=scrg.passes,
            teacher_token=scrg.teacher_token,  # type: ignore[arg-type]
            error_position=scrg.error_position,  # type: ignore[arg-type]
            kl_threshold=scrg.kl_threshold,
            vocab_size=self.vocab_size,
        )
        self._student = self.models.in_turn(self.student, self.device)
        self._teacher = None if self.teacher is None else self.models.in_turn(self.teacher, self.device)
        self._engine: Engine | None = None
        self._loaded: int | None = None

    def texts(self, prompts: Sequence[Prompt], round_: int, meter: Meter) -> tuple[list[RevisedSequence], Extra]:
        student = self._student if self._engine is None else EngineWriter(self._engine, self._student)
        revised = revise_batch(student, self._teacher, prompts, self.options, round=round_, meter=meter)
        return revised, [{} for _ in revised]

    def begin(self, round_: int) -> None:
        """An engine gets the student's weights once per round: they do not change within one."""
        if self.config.scrg.backend != "vllm" or self._loaded == round_:
            return
        student = self.models.acting
        if self._engine is None:
            try:
                self._engine = _vllm_engine(
                    self.config, student, self.tokenizer, self.vocab_size, self.student.eos_ids
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise UserError(
                    f"vLLM's engine does not fit beside the models (`scrg.vllm_memory` is "
                    f"{self.config.scrg.vllm_memory}): change that, or set scrg.backend=transformers"
                ) from error
        self._engine.load_weights(student.state_dict().items())
        self._loaded = round_


class UnrevisedWriter(RoundWriter):
    """Text that no teacher searches."""

    def texts(self, prompts: Sequence[Prompt], round_: int, meter: Meter) -> tuple[list[RevisedSequence], Extra]:
        with meter.phase("generation") as spent:
            responses, more, readers = self._unrevised(prompts, round_)
            read = sum(len(prompt_ids) for _, prompt_ids in prompts) + sum(map(len, responses))
            spent.tokens += read * readers
        revised = [
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
        return revised, more

    def _unrevised(self, prompts: Sequence[Prompt], round_: int) -> Unrevised:
        if type(self).__module__.startswith("mgsr."):
            return self.unrevised(prompts, round_)
        sizes = {"vocab_size": self.vocab_size, "longest": self.config.scrg.max_new_tokens}
        return checked_text(self.unrevised, prompts, round_, name=self.config.scrg.text, **sizes)

    @abstractmethod
    def unrevised(self, prompts: Sequence[Prompt], round_: int) -> Unrevised:
        """What the models write to one batch of prompts.

        A response has its end token at its end, unless it is as long as `scrg.max_new_tokens`. What else is kept
        of it are fields of `mgsr.rounds.entry.RoundEntry`, or nothing.
        """


def _vllm_engine(
    config: ExperimentConfig,
    student: Any,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    stop_ids: Sequence[int],
) -> Engine:
    """An engine of the student's shape; vLLM reads it from a folder and has then no more use for it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = models.save_model_folder(student, tokenizer, Path(scratch) / "student")
        return VllmEngine(
            folder,
            eos_ids=stop_ids,
            max_length=config.data.max_prompt_length + config.scrg.max_new_tokens,
            memory=config.scrg.vllm_memory,
            dtype=str(student.dtype).removeprefix("torch."),
            vocab_size=vocab_size if vocab_size < models.logits_width(student) else None,
            trust_remote_code=config.student.trust_remote_code,
        )
