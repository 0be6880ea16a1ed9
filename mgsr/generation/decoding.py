"""The loop that writes a batch, and the batch as one model reads it, token by token with a key-value cache.

Everything that writes text stands on `Reader`; a writer of two models steps two of them in lockstep.

Shapes: B rows of the batch, n rows that are still in it, T new tokens, V vocabulary, H hidden size, W slots of the
cache (positions of the longest row, padding on the left included).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from mgsr.generation.batching import passes
from mgsr.generation.kv_cache import Slots, growing_cache, growing_layers, keeps_every_slot, line_up
from mgsr.generation.sampling import Choice
from mgsr.models.output_layer import OutputLayer, cache_argument
from mgsr.runtime import devices
from mgsr.runtime.rng import checked

BLOCK = 8
"""Tokens that a GPU writes between two looks at what it has written: whoever looks waits for all its work. Rows
that end in between write some in vain. On a CPU every token is looked at."""


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
        lengths = [len(text) for text in texts]
        limit = max(lengths) + room
        self.cache = growing_cache(self.config, limit) if cache is None else cache
        self.keeps_every_slot = keeps_every_slot(self.cache)
        self._cache_name = cache_argument(self.body)
        self._takes_ready_mask = (
            self.config.model_type in READY_MASKS and self.config._attn_implementation == "sdpa"
        )
        if cache is not None:
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
            caches.append(growing_cache(self.config, max(lengths[row] for row in rows)))
            states_BH[torch.tensor(rows, device=self.device)] = self._states(
                [texts[row] for row in rows], caches[-1]
            )
        line_up(self.cache, groups, caches, self.width)
        self._next_from(states_BH)

    def _next_from(self, states_BH: Tensor) -> None:
        self.state, self.logits = states_BH, self.head.project(states_BH, self.vocab_size)

    def _states(self, sequences: Sequence[Sequence[int]], cache: DynamicCache) -> Tensor:
        """States `[B, H]` at the ends of whole sequences, which go into the cache."""
        ids, mask = pad_left(sequences, self.pad_id)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0).to(self.device)
        padded = len({len(sequence) for sequence in sequences}) > 1
        return self._body(ids.to(self.device), mask.to(self.device) if padded else None, positions, cache)

    def _lay_out(self, lengths: Sequence[int], width: int, room: int) -> None:
        self._position_B = torch.tensor(lengths, dtype=torch.int64, device=self.device)
        self.padding = [width - length for length in lengths]
        self.width = width
        slots = torch.arange(width + room, device=self.device)
        self._mask_BW = (slots >= width - self._position_B[:, None]).long()
        self._make_mask()

    def _make_mask(self) -> None:
        """The mask of the next steps, as far as there are rows that are padded.

        It is ready-made where a model takes that: transformers would make one anew in every step, which a small
        model feels. Caches with a window need masks of their own.
        """
        ready = self._takes_ready_mask and self.keeps_every_slot
        mask = self._mask_BW.bool()[:, None, None] if ready else self._mask_BW
        self._mask = mask if any(self.padding) else None

    def advance(self, tokens_B: Tensor, alive_B: Tensor | None = None) -> None:
        """Take in one token per row.

        Rows that are not alive take theirs in too, for nothing: their position stays where it was, so that
        a row that ended at the model's last position does not step beyond it.
        """
        self.width += 1
        # Two models that write together may live on two devices.
        ids_B1 = tokens_B.to(self.device)[:, None]
        mask = None if self._mask is None else self._mask[..., : self.width]
        states_BH = self._body(ids_B1, mask, self._position_B[:, None], self.cache)
        self._position_B = self._position_B + (1 if alive_B is None else alive_B.to(self.device).long())
        self._next_from(states_BH)

    def _body(self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: DynamicCache) -> Tensor:
        """States `[B, H]` after the last token."""
        output = self.body(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self._cache_name: cache},
        )
        return output.last_hidden_state[:, -1]

    def slots(self, batch_rows: Sequence[int]) -> Slots:
        """Keys and values of all rows, which are `batch_rows` of the whole batch; the reader is done with them."""
        return Slots([layer.states for layer in growing_layers(self.cache)], self.padding, list(batch_rows))

    def select(
        self, stay: Sequence[int], leave: Sequence[int] = (), batch_rows: Sequence[int] = ()
    ) -> Slots | None:
        """Go on with some rows alone, in this order, from the next `advance` on.

        Returns:
            Keys and values of the rows that `leave`, which are `batch_rows` of the whole batch; None if none do.
        """
        stay_N, leave_N = (torch.tensor(rows, dtype=torch.long, device=self.device) for rows in (stay, leave))
        layers = []
        for layer in growing_layers(self.cache):
            # layer by layer, so that no second cache stands beside this one
            if leave:
                layers.append((layer.states[0][leave_N], layer.states[1][leave_N]))
            layer.batch_select_indices(stay_N)
        left = Slots(layers, [self.padding[row] for row in leave], list(batch_rows)) if leave else None
        self.state = self.state[stay_N]
        self._mask_BW, self._position_B = self._mask_BW[stay_N], self._position_B[stay_N]
        self.padding = [self.padding[row] for row in stay]
        self._make_mask()
        return left


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
    device, batch, most = readers[0].logits.device, len(budgets), max(budgets)
    every = 1 if devices.reading_is_free(device) else BLOCK
    budgets_N = torch.tensor(budgets, device=device)
    eos_E = torch.tensor(list(eos_ids), device=device)
    tables_NT = [table.to(device) for table in uniforms_BT]
    rows_N = torch.arange(batch, device=device)
    alive_N = torch.ones(batch, dtype=torch.bool, device=device)
    # what has been read of the device: every row's tokens, its end, whether it goes on, and where rows are now
    tokens_BT = np.zeros((batch, most), dtype=np.int64)
    lengths_B, alive_B = np.array(budgets), np.ones(batch, dtype=bool)
    here, unread = np.arange(batch), list[Tensor]()
    values_BT: list[Tensor] = []
    state_NH = readers[0].state
    states_BTH = state_NH.new_zeros(batch, most, state_NH.shape[1]) if keep_states else None
    slots: list[Slots] = []
    for step in range(most):
        if states_BTH is not None:
            states_BTH[rows_N, step] = readers[0].state
        tokens_N, values = choose([reader.logits for reader in readers], [table[:, step] for table in tables_NT])
        unread.append(tokens_N)
        if step == 0:
            values_BT = [torch.zeros(batch, most, dtype=value.dtype, device=device) for value in values]
        for table, value in zip(values_BT, values, strict=True):
            table[rows_N, step] = value
        alive_N = alive_N & (tokens_N[:, None] != eos_E).all(dim=1) & (budgets_N != step + 1)
        if len(unread) == every or step + 1 == most:
            read_NT = checked(torch.stack(unread, dim=1).cpu()).numpy()
            first, unread = step + 1 - len(unread), []
            tokens_BT[here, first : step + 1] = read_NT
            ends_NT = np.isin(read_NT, eos_ids)
            ended = ends_NT.any(axis=1)
            lengths_B[here[ended]] = np.minimum(lengths_B[here], first + ends_NT.argmax(axis=1) + 1)[ended]
            alive_B &= lengths_B > step + 1
            remaining = int(alive_B.sum())
            if remaining == 0:
                break
            if remaining <= len(here) // 2:
                stay, leave = np.flatnonzero(alive_B[here]), np.flatnonzero(~alive_B[here])
                for reader in readers:
                    kept = keep_slots and reader is readers[0]
                    left = reader.select(stay.tolist(), leave.tolist() if kept else (), here[leave].tolist())
                    slots += [] if left is None else [left]
                stay_N = torch.from_numpy(stay).to(device)
                tokens_N, alive_N, rows_N, budgets_N = (x[stay_N] for x in (tokens_N, alive_N, rows_N, budgets_N))
                tables_NT = [table[stay_N] for table in tables_NT]
                here = here[stay]
        for reader in readers:
            reader.advance(tokens_N.clamp(min=0), alive_N)
    if keep_slots:
        slots.append(readers[0].slots(here.tolist()))
    lengths = lengths_B.tolist()
    kept_values = [_ragged(table.tolist(), lengths) for table in values_BT]
    return Decoded(_ragged(tokens_BT.tolist(), lengths), kept_values, states_BTH, tuple(slots))


def _ragged(table_BT: Sequence[list], lengths: Sequence[int]) -> list[list]:
    return [row[:length] for row, length in zip(table_BT, lengths, strict=True)]
