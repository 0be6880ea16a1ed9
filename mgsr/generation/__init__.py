"""Text from causal language models of transformers, batched and cached; its batch does not change a text.

`language_model` writes, continues and scores with one model, as `mgsr.scrg` asks for; `decoding` is the loop over
tokens and one model's view of the batch, `sampling` how a token is drawn, `kv_cache` what a batch leaves for its
correction; `batching` cuts work to what fits and pads least; `two_models` has both models write together; `vllm`
lets an engine write. Draws are keyed (`mgsr.runtime.rng`), never taken from a generator. Nothing here corrects
text, trains, or knows the configuration.

Begin with `language_model.LanguageModel`; `sample` is all that an evaluation needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mgsr.generation.language_model import LanguageModel, evaluating
from mgsr.generation.sampling import Sampling
from mgsr.generation.two_models import InterleavedText, InterleavedWriter, MixedText, MixedWriter
from mgsr.losses.projection import HiddenLogits
from mgsr.runtime.rng import Stream
from mgsr.scrg import Prompt

__all__ = [
    "HiddenLogits",
    "InterleavedText",
    "InterleavedWriter",
    "LanguageModel",
    "MixedText",
    "MixedWriter",
    "Sampling",
    "evaluating",
    "sample",
]


def sample(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    seed: int,
    eos_token_id: int | Iterable[int],
    max_new_tokens: int,
    pad_token_id: int | None = None,
    batch_size: int = 32,
    greedy: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    vocab_size: int | None = None,
    stream: Stream | int = Stream.EVALUATION,
    round: int = 0,
    progress: Callable[[int], None] | None = None,
    memory_key: str | None = None,
) -> list[list[int]]:
    """Responses of a model, for evaluation: sampled with keyed draws, or greedy.

    Args:
        model: a causal language model of transformers.
        prompts: (example id, token ids) pairs.
        seed: of the draws; greedy text does not depend on it.
        greedy: take the most probable token instead of drawing one.
        stream, round: further parts of the key.
        eos_token_id, max_new_tokens, pad_token_id, batch_size, temperature, top_p, top_k, vocab_size,
        progress, memory_key:
            see `LanguageModel`.

    Returns:
        Token ids per prompt, in their order, end of sequence included where it was reached.
    """
    writer = LanguageModel(
        model,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        greedy=greedy,
        vocab_size=vocab_size,
        stream=stream,
        progress=progress,
        memory_key=memory_key,
    )
    written = writer.write(prompts, seed=seed, round=round)
    writer.release()
    return written
