"""The loop that writes a batch, and the batch as one model reads it, token by token with a key-value cache.

Everything that writes text stands on `Reader`; a writer of two models steps two of them in lockstep.

Shapes: B rows of the batch, n rows that are still in it, T new tokens, V vocabulary, H hidden size, W slots of the
cache (positions of the longest row, padding on the left included).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mgsr.generation.batching import passes
from mgsr.generation.kv_cache import Slots
from mgsr.generation.sampling import Choice
from mgsr.models.output_layer import OutputLayer


def pad_left(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask `[B, W]` of ragged sequences; the mask is made of lengths, never of ids."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), pad_id, dtype=torch.int64)
    mask = torch.zeros(len(sequences), width, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.as_tensor(sequence, dtype=torch.int64)
        mask[row, width - len(sequence) :] = 1
    return ids, mask


READY_MASKS = frozenset({"gpt2", "llama", "opt", "qwen2", "qwen3"})
"""Model types that are tested to take the mask of a step ready-made, `[B, 1, 1, W]`. Others might read positions
or biases from a mask `[B, W]`, and get that."""


class Reader:
    """One model's view of a batch that is being written.

    Row b has taken in all its tokens so far, after every `advance` one more. Token i of a row lies in slot
    `padding[b] + i` of the cache. Very ragged texts are read in several passes, and their slots then lined up at
    the right edge; not so with caches that do not hold every position.

    Args:
        body, head: trunk and output layer of a model (`mgsr.models.output_layer`), in evaluation mode.
        texts: token ids that every row begins with.
        room: tokens that will follow at most.
        pad_id: any id; padded slots are masked.
        vocab_size: number of leading ids that take part, None for all.
        cache: of all tokens but the last of every row, padded on the left; only the last ones are then read.

    Attributes:
        state, logits: `[B, H]` and `[B, V]`, hidden states and what they say of every row's next token.
    """

    state: Tensor
    logits: Tensor

    def __init__(
        self,
        body: Any,
        head: OutputLayer,
        texts: Sequence[Sequence[int]],
        *,
        room: int,
        pad_id: int,
        vocab_size: int | None = None,
        cache: DynamicCache | None = None,
    ) -> None:
        self.body, self.head, self.config = body, head, body.config
        self.pad_id, self.vocab_size, self.device = pad_id, vocab_size, head.weight.device
        self.cache = DynamicCache(config=self.config)
        self.keeps_every_slot = keeps_every_slot(self.cache)
        self._cache_name = cache_argument(self.body)
        self._takes_ready_mask = (
            self.config.model_type in READY_MASKS and self.config._attn_implementation == "sdpa"
        )
        lengths = [len(text) for text in texts]
        if cache is not None:
            self.cache = cache
            self._lay_out([length - 1 for length in lengths], max(lengths) - 1, room + 1)
            self.advance(torch.tensor([text[-1] for text in texts], device=self.device))
            return
        self._lay_out(lengths, max(lengths), room)
        groups = [list(range(len(lengths)))]
        if self.keeps_every_slot:
            groups = passes(self.body, lengths)
        if len(groups) == 1:
            self._next_from(self._states(texts, self.cache))
            return
        states_BH = self.head.weight.new_zeros(len(lengths), self.head.weight.shape[1])
        caches = []
        for rows in groups:
            caches.append(DynamicCache(config=self.config))
            states_BH[torch.tensor(rows, device=self.device)] = self._states(
                [texts[row] for row in rows], caches[-1]
            )
        self._line_up(groups, caches)
        self._next_from(states_BH)

    def _next_from(self, states_BH: Tensor) -> None:
        self.state, self.logits = states_BH, self.head.project(states_BH, self.vocab_size)

    def _states(self, sequences: Sequence[Sequence[int]], cache: DynamicCache) -> Tensor:
        """States `[B, H]` at the ends of whole sequences, which go into the cache."""
        ids, mask = (part.to(self.device) for part in pad_left(sequences, self.pad_id))
        return self._body(ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0), cache)

    def _line_up(self, groups: Sequence[Sequence[int]], caches: Sequence[DynamicCache]) -> None:
        """One cache of all rows from those of the groups, which are used up layer by layer."""
        batch = sum(map(len, groups))
        for index in range(len(caches[0].layers)):
            parts = []
            for name in ("keys", "values"):
                like = getattr(caches[0].layers[index], name)
                target = like.new_zeros(batch, like.shape[1], self.width, like.shape[3])
                for rows, cache in zip(groups, caches, strict=True):
                    source = getattr(cache.layers[index], name)
                    target[torch.tensor(rows, device=target.device), :, self.width - source.shape[2] :] = source
                parts.append(target)
            for cache in caches:
                cache.layers[index] = DynamicLayer()
            self.cache.update(parts[0], parts[1], index)

    def _lay_out(self, lengths: Sequence[int], width: int, room: int) -> None:
        self._position_B = torch.tensor(lengths, dtype=torch.int64, device=self.device)
        self.padding_B = width - self._position_B
        self.width = width
        slots = torch.arange(width + room, device=self.device)
        self._mask_BW = (slots >= self.padding_B[:, None]).long()
        self._make_ready_mask()

    def _make_ready_mask(self) -> None:
        """What transformers makes of the mask anew in every step, which a small model feels.

        Without padding it has its own short cut; caches with a window need masks of their own.
        """
        ready = self._takes_ready_mask and self.keeps_every_slot and bool(self.padding_B.any())
        self._ready_B11W = self._mask_BW.bool()[:, None, None] if ready else None

    def advance(self, tokens_B: Tensor, alive_B: Tensor | None = None) -> None:
        """Take in one token per row.

        Rows that are not alive take theirs in too, for nothing: their position stays where it was, so that
        a row that ended at the model's last position does not step beyond it.
        """
        self.width += 1
        # Two models that write together may live on two devices.
        ids_B1 = tokens_B.to(self.device)[:, None]
        mask = self._mask_BW if self._ready_B11W is None else self._ready_B11W
        states_BH = self._body(ids_B1, mask[..., : self.width], self._position_B[:, None], self.cache)
        self._position_B = self._position_B + (1 if alive_B is None else alive_B.to(self.device).long())
        self._next_from(states_BH)

    def _body(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """States `[B, H]` after the last token."""
        output = self.body(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self._cache_name: cache},
        )
        return output.last_hidden_state[:, -1]

    def slots(self, rows_N: Tensor, batch_rows: Sequence[int]) -> Slots:
        """Keys and values of rows, which are `batch_rows` of the whole batch."""
        whole = len(rows_N) == self.padding_B.shape[0]
        layers = []
        for layer in self.cache.layers:
            assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
            kept = (layer.keys, layer.values) if whole else (layer.keys[rows_N], layer.values[rows_N])
            layers.append(kept)
        return Slots(layers, self.padding_B[rows_N], list(batch_rows))

    def select(self, rows: Tensor) -> None:
        """Go on with these rows alone, in this order, from the next `advance` on."""
        rows = rows.to(self.device)
        self.cache.batch_select_indices(rows)
        self.state = self.state[rows]
        self._mask_BW, self._position_B = self._mask_BW[rows], self._position_B[rows]
        self.padding_B = self.padding_B[rows]
        self._make_ready_mask()


def keeps_every_slot(cache: DynamicCache) -> bool:
    """Whether all layers hold all positions: not so with a sliding window, chunks or a recurrent state."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def cache_argument(body: Any) -> str:
    """What a model calls its KV cache: transformers 5.24 has begun to rename it."""
    return "cache" if "cache" in inspect.signature(body.forward).parameters else "past_key_values"


@dataclass(frozen=True)
class Decoded:
    """What a batch wrote.

    Attributes:
        tokens: per row.
        values: per value that `choose` keeps, a list of floats per row.
        states: `[B, T, H]`, those of the first reader from which the tokens were drawn; None unless asked for.
        slots: the first reader's keys and values, in the parts in which rows left the batch; if asked for.
    """

    tokens: list[list[int]]
    values: list[list[list[float]]]
    states: Tensor | None = None
    slots: tuple[Slots, ...] = ()


def decode(
    readers: Sequence[Reader],
    uniforms_BT: Sequence[Tensor],
    choose: Choice,
    *,
    budgets: Sequence[int],
    eos_ids: Sequence[int],
    keep_states: bool = False,
    keep_slots: bool = False,
) -> Decoded:
    """Write until every row has ended or used up its budget; rows that have leave the batch half at a time.

    Args:
        readers: one or more models that have read the same texts, B of them.
        uniforms_BT: `[B, T]` per stream of draws, column t for a row's t-th new token.
        choose: the token from logits and uniforms.
        budgets: new tokens per row, at least 1, at most T.
        eos_ids: ids that end a row; they are part of it.
        keep_states, keep_slots: what the first reader leaves behind is returned too.

    Returns:
        The new tokens of all B rows, and what was kept of them.
    """
    device, batch = readers[0].logits.device, len(budgets)
    budgets_N = torch.tensor(budgets, device=device)
    eos_E = torch.tensor(list(eos_ids), device=device)
    tables_NT = [table.to(device) for table in uniforms_BT]
    rows_N = torch.arange(batch, device=device)
    alive_N = torch.ones(batch, dtype=torch.bool, device=device)
    lengths_B = np.zeros(batch, dtype=np.int64)
    alive_B = np.ones(batch, dtype=bool)
    here = np.arange(batch)
    tokens_BT = torch.zeros(batch, max(budgets), dtype=torch.int64, device=device)
    values_BT: list[Tensor] = []
    state_NH = readers[0].state
    states_BTH = state_NH.new_zeros(batch, max(budgets), state_NH.shape[1]) if keep_states else None
    slots: list[Slots] = []
    for step in range(max(budgets)):
        if states_BTH is not None:
            states_BTH[rows_N, step] = readers[0].state
        tokens_N, values = choose([reader.logits for reader in readers], [table[:, step] for table in tables_NT])
        tokens_BT[rows_N, step] = tokens_N
        if step == 0:
            values_BT = [torch.zeros(batch, max(budgets), dtype=value.dtype, device=device) for value in values]
        for table, value in zip(values_BT, values, strict=True):
            table[rows_N, step] = value
        ended_N = (tokens_N[:, None] == eos_E).any(dim=1) | (budgets_N == step + 1)
        ending = here[ended_N.cpu().numpy() & alive_B[here]]
        lengths_B[ending], alive_B[ending] = step + 1, False
        alive_N &= ~ended_N
        remaining = int(alive_B.sum())
        if remaining == 0:
            break
        if remaining <= len(here) // 2:
            stay, leave = np.flatnonzero(alive_B[here]), np.flatnonzero(~alive_B[here])
            if keep_slots:
                slots.append(readers[0].slots(torch.from_numpy(leave).to(device), here[leave].tolist()))
            stay_N = torch.from_numpy(stay).to(device)
            for reader in readers:
                reader.select(stay_N)
            tokens_N, alive_N, rows_N, budgets_N = (x[stay_N] for x in (tokens_N, alive_N, rows_N, budgets_N))
            tables_NT = [table[stay_N] for table in tables_NT]
            here = here[stay]
        for reader in readers:
            reader.advance(tokens_N, alive_N)
    if keep_slots:
        slots.append(readers[0].slots(torch.arange(len(here), device=device), here.tolist()))
    lengths = lengths_B.tolist()
    kept = [_ragged(table, lengths) for table in values_BT]
    return Decoded(_ragged(tokens_BT, lengths), kept, states_BTH, tuple(slots))


def _ragged(table_BT: Tensor, lengths: Sequence[int]) -> list[list]:
    return [row[:length] for row, length in zip(table_BT.tolist(), lengths, strict=True)]
