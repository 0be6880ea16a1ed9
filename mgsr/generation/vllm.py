"""Rollouts by a serving engine (vLLM), behind the interface that `mgsr.scrg.revise` asks for.

The engine has a copy of the student's weights, handed over once per round, and caches prefixes itself: a
correction sends the corrected prefix, of which only the last tokens are read. The student itself scores. Every
request carries a seed made of (seed, round, example id, pass), so that a text does not depend on its company as
far as the engine keeps its promise; the draws within a request are the engine's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from mgsr.generation.language_model import LanguageModel
from mgsr.losses.projection import HiddenLogits
from mgsr.runtime.errors import UserError
from mgsr.runtime.rng import Stream, uniform
from mgsr.scrg import Prefix, Prompt


class Request(NamedTuple):
    """Tokens to go on from, the most new ones, and the seed of their draws."""

    token_ids: list[int]
    max_new_tokens: int
    seed: int


class Engine(Protocol):
    """What a serving engine must do. Text ends with an end-of-sequence id, which belongs to it."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the student's weights, by their transformers names, and forget what was cached."""
        ...

    def generate(self, requests: Sequence[Request]) -> list[list[int]]:
        """New tokens of every request, drawn at temperature 1 from the whole distribution."""
        ...


class EngineWriter:
    """A student whose text an engine writes; a `mgsr.scrg.Student`.

    Args:
        engine: with the student's current weights.
        scorer: the student itself.
    """

    def __init__(self, engine: Engine, scorer: LanguageModel) -> None:
        self.engine, self.scorer = engine, scorer
        self.max_new_tokens, self.batch_size = scorer.max_new_tokens, scorer.batch_size

    def write(self, prompts: Sequence[Prompt], *, seed: int, round: int) -> list[list[int]]:
        """One response per prompt."""
        starts = [Prefix(example_id, tuple(map(int, ids)), ()) for example_id, ids in prompts]
        return self._write(starts, seed=seed, round=round, pass_=0)

    def continue_from(self, prefixes: Sequence[Prefix], *, seed: int, round: int, pass_: int) -> list[list[int]]:
        """Whole responses that begin with the given ones."""
        return self._write(prefixes, seed=seed, round=round, pass_=pass_)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> HiddenLogits:
        """Logits of all response positions, by the student itself."""
        return self.scorer.score(prompts, responses)

    def release(self) -> None:
        """The engine's cache is its own: weights that change clear it."""

    def _write(self, prefixes: Sequence[Prefix], *, seed: int, round: int, pass_: int) -> list[list[int]]:
        self.scorer.check_room((prefix.example_id, prefix.prompt_ids) for prefix in prefixes)
        requests = [
            Request(
                [*prefix.prompt_ids, *prefix.response_ids],
                self.max_new_tokens - len(prefix.response_ids),
                request_seed(seed, round, prefix.example_id, pass_),
            )
            for prefix in prefixes
        ]
        written = self.engine.generate(requests)
        # the engine caches prefixes: a continuation reads little more than its last token
        for request, prefix, tokens in zip(requests, prefixes, written, strict=True):
            self.scorer.work.answer(len(request.token_ids), len(tokens), cached=bool(prefix.response_ids))
        return [[*prefix.response_ids, *new] for prefix, new in zip(prefixes, written, strict=True)]


def request_seed(seed: int, round: int, example_id: int, pass_: int) -> int:
    """53 bits of the key's draw.

    >>> request_seed(0, 0, 7, 0) == request_seed(0, 0, 7, 0) != request_seed(0, 0, 7, 1)
    True
    """
    return int(float(uniform(seed, Stream.ROLLOUT, round, example_id, pass_, 0)) * 2**53)


class VllmEngine:
    """vLLM in this process, next to the models that train.

    Args:
        folder: a transformers folder of the student; only its shape counts, weights are handed over.
        max_length: tokens of prompt and response together.
        memory: share of the device's memory that vLLM may take.
        vocab_size: ids that may be written; None for all.
        trust_remote_code: as in the config of the student.

    Raises:
        UserError: vLLM is not installed, or the installed one does not show its model.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        eos_ids: Sequence[int],
        max_length: int,
        memory: float,
        dtype: str,
        vocab_size: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        import os

        # the engine's core stays in this process, where its model can be reached
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            import vllm
        except ImportError:
            raise UserError("scrg.backend=vllm needs vLLM: pip install 'vllm>=0.11,<0.30'") from None
        self._vllm = vllm
        self._eos_ids, self._vocab_size = list(eos_ids), vocab_size
        self._llm = vllm.LLM(
            model=str(folder),
            skip_tokenizer_init=True,
            # the folder's generation settings may know ends and limits that the student is not to have
            generation_config="vllm",
            enable_prefix_caching=True,
            max_model_len=max_length,
            gpu_memory_utilization=memory,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        try:
            model: Any = self._llm.llm_engine.model_executor.driver_worker.model_runner.model
        except AttributeError:
            raise UserError(
                f"vLLM {self._vllm.__version__} does not show its model; set scrg.backend=transformers"
            ) from None
        model.load_weights(weights)
        self._llm.reset_prefix_cache()

    def generate(self, requests: Sequence[Request]) -> list[list[int]]:
        allowed = None if self._vocab_size is None else list(range(self._vocab_size))
        parameters = [
            self._vllm.SamplingParams(
                temperature=1.0,
                top_p=1.0,
                top_k=-1,
                max_tokens=request.max_new_tokens,
                seed=request.seed,
                stop_token_ids=self._eos_ids,
                ignore_eos=True,
                allowed_token_ids=allowed,
                detokenize=False,
            )
            for request in requests
        ]
        prompts = [{"prompt_token_ids": request.token_ids} for request in requests]
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]
