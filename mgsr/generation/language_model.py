"""A causal language model of transformers that writes, continues and scores responses.

Implements the protocols of `mgsr.scrg` (`Student` and `Scorer`).

Shapes: B rows of a batch, T new tokens, N response positions end to end, H hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mgsr.generation.batching import SHORT, FittingBatches, passes
from mgsr.generation.decoding import Reader, decode
from mgsr.generation.kv_cache import KeptText
from mgsr.generation.sampling import Sampling, draws
from mgsr.losses.projection import HiddenLogits
from mgsr.models.output_layer import OutputLayer, causal_lm, output_head, position_limit, trunk
from mgsr.runtime.errors import UserError
from mgsr.runtime.faults import reach
from mgsr.runtime.meter import Work
from mgsr.runtime.rng import Stream
from mgsr.scrg import Prefix, Prompt

logger = logging.getLogger(__name__)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout) without gradients; every submodule gets its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # Not inference_mode: what is made under it, a kept cache included, can never enter a backward.
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


class LanguageModel:
    """Text of one model, every token drawn with a uniform of its own key, so that batches do not matter.

    Args:
        model: a causal language model of transformers; its mode (training or not) is left as it was.
        eos_token_id: one or several ids that end a response.
        pad_token_id: fills rows up; may be an end-of-sequence id; None takes one of those.
        max_new_tokens: limit of a response, end of sequence included.
        batch_size: rows per batch; prompts are sorted into batches by length.
        temperature, top_p, top_k, greedy: see `Sampling`; by default the model's own distribution.
        vocab_size: leading ids that may be written and are scored; None for all.
        max_cache_slots: where a prompt and `max_new_tokens` together are more, keep no cache between writing
            and continuing, but read the prefix afresh; None for no limit, 0 to never keep one.
        stream: of the draws.
        progress: called after every batch that was written, with its number of prompts.
        memory_key: name of the setting behind `batch_size`: batches that memory does not suffice for are then
            halved; None leaves the error to the caller.
        said: warnings that were given already, shared by writers that are to give each once; None: none yet.
    """

    def __init__(
        self,
        model: Any,
        *,
        eos_token_id: int | Iterable[int],
        pad_token_id: int | None = None,
        max_new_tokens: int,
        batch_size: int = 32,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        greedy: bool = False,
        vocab_size: int | None = None,
        max_cache_slots: int | None = None,
        stream: Stream | int = Stream.ROLLOUT,
        progress: Callable[[int], None] | None = None,
        memory_key: str | None = None,
        said: set[str] | None = None,
    ) -> None:
        for name, number in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        self.take(model)
        self.eos_ids = tuple(eos_token_id if isinstance(eos_token_id, Iterable) else [eos_token_id])
        self.pad_id = self.eos_ids[0] if pad_token_id is None else pad_token_id
        known = causal_lm(model).get_input_embeddings().num_embeddings
        if not 0 <= self.pad_id < known:
            raise ValueError(f"pad_token_id must be one of the model's {known} ids, got {self.pad_id}")
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.sampling = Sampling(temperature, top_p, top_k, greedy)
        self.vocab_size, self.max_cache_slots = vocab_size, max_cache_slots
        self.stream = Stream(stream)
        self._position_limit = position_limit(model)
        self._progress = progress
        self._batches = FittingBatches(batch_size, memory_key)
        self._kept = KeptText()
        # all that was computed so far; whoever counts sets a new one
        self.work = Work()
        self._said: set[str] = set() if said is None else said

    def take(self, model: Any) -> None:
        """Write with this model from now on: another copy of the same one."""
        self.model, self.body = model, trunk(model)

    @property
    def head(self) -> OutputLayer:
        """The model's output layer, with its weights where they are now."""
        return output_head(self.model)

    def write(self, prompts: Sequence[Prompt], *, seed: int, round: int) -> list[list[int]]:
        """One response per prompt.

        The cache is kept for `continue_from` until the next call or `release`, if all prompts fit into one
        batch: the model must not change in between.

        Raises:
            ValueError: an empty prompt.
            UserError: a prompt leaves no room for `max_new_tokens` within the model's positions.
        """
        self.release()
        starts = [Prefix(example_id, tuple(map(int, prompt_ids)), ()) for example_id, prompt_ids in prompts]
        return self._write(starts, seed=seed, round=round, pass_=0)

    def continue_from(self, prefixes: Sequence[Prefix], *, seed: int, round: int, pass_: int) -> list[list[int]]:
        """Whole responses that begin with the given ones; the draws carry `pass_` in their keys.

        A prefix that already ends with an end of sequence or fills the budget comes back as it is. Where
        the last call wrote the text up to the last token of every prefix, only these last tokens are read.

        Raises:
            ValueError: a prefix without a token.
        """
        for prefix in prefixes:
            if not prefix.response_ids:
                raise ValueError(f"example {prefix.example_id} has nothing to continue from: use write")
        return self._write(list(prefixes), seed=seed, round=round, pass_=pass_)

    def take_over(self, prefixes: Sequence[Prefix], *, seed: int, round: int, pass_: int) -> list[list[int]]:
        """Whole responses that begin as another model has begun them, perhaps with no token yet.

        The draws carry `pass_` in their keys, which has to be another one than that model's.
        """
        self.release()
        return self._write(list(prefixes), seed=seed, round=round, pass_=pass_, own=False)

    def release(self) -> None:
        """Let go of the kept cache and states."""
        self._kept = KeptText()

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> HiddenLogits:
        """Logits of all response positions from one forward per sequence; only hidden states are kept.

        Where all of it was written last, by this object and in one batch, the states of the writing are taken
        and nothing is read again: call `release` before, if the model has changed since.

        Raises:
            ValueError: an empty prompt.
            UserError: a text longer than the model's positions.
        """
        head = self.head
        known = self._kept.states(prompts, responses)
        self.work.rows += sum(map(len, responses))
        if known:
            return HiddenLogits(torch.cat(known), head, self.vocab_size)
        pairs = list(zip(prompts, responses, strict=True))
        texts = [(*prompt_ids, *response) for (_, prompt_ids), response in pairs]
        for (example_id, prompt_ids), response in pairs:
            self._check_length(example_id, len(prompt_ids), len(response))
        hidden: dict[int, Tensor] = {}
        with evaluating(self.model):
            for batch in self._cut(sorted(range(len(texts)), key=lambda i: len(texts[i]))):
                try:
                    states = self._states([(texts[i], len(responses[i])) for i in batch], head)
                except RuntimeError as error:
                    self._batches.halve(error)
                    continue
                hidden.update(zip(batch, states, strict=True))
        for text in texts:
            self.work.read(len(text), 0)
        empty = head.weight.new_zeros(0, head.weight.shape[1])
        states_NH = torch.cat([empty, *(hidden[index] for index in range(len(texts)))])
        return HiddenLogits(states_NH, head, self.vocab_size)

    def _states(self, texts: Sequence[tuple[Sequence[int], int]], head: OutputLayer) -> list[Tensor]:
        """States `[T, H]` that predict the last T tokens of every `(text, T)`; long ragged texts in few passes."""
        device, body = head.weight.device, self.body
        states: dict[int, Tensor] = {}
        lengths = [len(text) for text, _ in texts]
        for rows in passes(body, lengths, together_below=SHORT):
            # padded on the right: no token looks ahead, so no mask is needed
            ids = torch.full((len(rows), max(lengths[row] for row in rows)), self.pad_id, dtype=torch.int64)
            for place, row in enumerate(rows):
                ids[place, : lengths[row]] = torch.as_tensor(texts[row][0], dtype=torch.int64)
            read = body(input_ids=ids.to(device), use_cache=False).last_hidden_state
            for row, states_TH in zip(rows, read, strict=True):
                # the state of the token before predicts a token, so the last token's own is not needed
                begin = lengths[row] - texts[row][1] - 1
                states[row] = states_TH[begin : begin + texts[row][1]].clone()
        return [states[row] for row in range(len(texts))]

    def _check_length(self, example_id: int, prompt: int, response: int) -> None:
        """Refuse an empty prompt, and a text beyond the model's positions."""
        if prompt == 0:
            raise ValueError(f"example {example_id} has an empty prompt: the first token needs one before it")
        limit = self._position_limit
        if limit is not None and prompt + response > limit:
            raise UserError(
                f"example {example_id}: {prompt} tokens of prompt and {response} of response exceed"
                f" the model's {limit} positions: shorten the prompt or max_new_tokens"
            )

    def check_room(self, prompts: Iterable[Prompt]) -> None:
        """Refuse prompts that are empty or leave no room for `max_new_tokens`.

        Raises:
            ValueError: an empty prompt.
            UserError: a prompt too long for the model's positions.
        """
        for example_id, prompt_ids in prompts:
            self._check_length(example_id, len(prompt_ids), self.max_new_tokens)

    def _write(
        self, prefixes: list[Prefix], *, seed: int, round: int, pass_: int, own: bool = True
    ) -> list[list[int]]:
        self.check_room((prefix.example_id, prefix.prompt_ids) for prefix in prefixes)
        results = [list(prefix.response_ids) for prefix in prefixes]
        full = self.max_new_tokens
        rows = [i for i, text in enumerate(results) if len(text) < full and not {*text[-1:]} & {*self.eos_ids}]
        # Kept rows are found by example id, so ids that occur twice rule keeping out.
        keep = (
            own and len(rows) <= self.batch_size and len({prefixes[row].example_id for row in rows}) == len(rows)
        )
        rows.sort(key=lambda row: len(prefixes[row].prompt_ids) + len(results[row]))
        with evaluating(self.model):
            for batch in self._cut(rows):
                chosen, whole = [prefixes[row] for row in batch], keep and len(batch) == len(rows)
                try:
                    written = self._write_batch(chosen, whole, own, seed=seed, round=round, pass_=pass_)
                except RuntimeError as error:
                    self._batches.halve(error)
                    continue
                for row, tokens in zip(batch, written, strict=True):
                    results[row] += tokens
                if self._progress is not None and pass_ == 0:
                    self._progress(len(batch))
        return results

    def _cut(self, rows: list[int]) -> Iterable[Sequence[int]]:
        """Batches of sorted rows; what its caller has cut already stays whole."""
        whole = self._batches.key is None and len(rows) <= self.batch_size
        return [rows] * bool(rows) if whole else self._batches.of(rows)

    def _write_batch(
        self, prefixes: list[Prefix], keep: bool, own: bool, *, seed: int, round: int, pass_: int
    ) -> list[list[int]]:
        """The new tokens of one batch."""
        reach("generation.batch")
        texts = [prefix.prompt_ids + prefix.response_ids for prefix in prefixes]
        ids = [prefix.example_id for prefix in prefixes]
        starts = [len(prefix.response_ids) for prefix in prefixes]
        budgets = [self.max_new_tokens - start for start in starts]
        width = max(budgets)
        cache = self._kept.restore(ids, texts, self.body.config, max(map(len, texts)) + width)
        reader = Reader(
            self.body, self.head, texts, room=width, pad_id=self.pad_id, vocab_size=self.vocab_size, cache=cache
        )
        obstacle = self._obstacle(reader, max(len(prefix.prompt_ids) for prefix in prefixes) + self.max_new_tokens)
        if own and pass_ > 0 and cache is None:
            reason = obstacle or "the last call did not write them, or wrote several batches"
            if reason not in self._said:
                self._said.add(reason)
                logger.warning("corrections read their prefixes afresh: %s", reason)
        decoded = decode(
            [reader],
            [draws(ids, starts, width, seed=seed, stream=self.stream, round=round, pass_=pass_)],
            self.sampling,
            budgets=budgets,
            eos_ids=self.eos_ids,
            keep_states=keep,
            keep_slots=keep and not obstacle,
        )
        for text, tokens in zip(texts, decoded.tokens, strict=True):
            self.work.answer(len(text), len(tokens), cached=cache is not None)
        if decoded.states is not None:
            self._kept.keep(prefixes, decoded.tokens, decoded.states, decoded.slots)
        return decoded.tokens

    def _obstacle(self, reader: Reader, slots: int) -> str:
        """What keeps this batch's cache from being kept, if anything."""
        if not reader.keeps_every_slot:
            return "the model's cache does not hold every position (sliding window)"
        if self.max_cache_slots is not None and slots > self.max_cache_slots:
            return f"rows may outgrow max_cache_slots={self.max_cache_slots}"
        return ""
