"""Sequences as one model reads them: padded on the left, one token more at a time, with a key-value cache.

Everything that writes text stands on `Reader`; a writer of two models steps two of them in lockstep.

Shapes: B rows of a batch, V vocabulary, W slots of the cache (positions of the longest row, padding
included).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mgsr.generation.batching import passes
from mgsr.generation.kv_cache import Slots
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

    After `read`, and after every `advance`, row b has taken in all its tokens so far, and the returned logits
    are the distribution of its next one, made from the hidden states `state [B, H]`. Token i of a row lies in
    slot `padding[b] + i` of the cache.

    Args:
        body, head: trunk and output layer of a model (`mgsr.models.output_layer`), in evaluation mode.
        pad_id: any id; padded slots are masked.
        vocab_size: number of leading ids that take part, None for all.
    """

    def __init__(self, body: Any, head: OutputLayer, *, pad_id: int, vocab_size: int | None = None) -> None:
        self.body, self.head, self.config = body, head, body.config
        self.pad_id, self.vocab_size = pad_id, vocab_size
        self.cache = DynamicCache(config=self.config)
        self.keeps_every_slot = keeps_every_slot(self.cache)
        self._cache_name = cache_argument(self.body)
        self.device = head.weight.device
        self.width = 0
        self.padding_B = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.state = self.head.weight.new_zeros(0, self.head.weight.shape[1])
        self._position_B = self.padding_B
        self._mask_BW = self.padding_B[:, None]
        self._takes_ready_mask = (
            self.config.model_type in READY_MASKS and self.config._attn_implementation == "sdpa"
        )
        self._ready_B11W: Tensor | None = None

    def read(self, sequences: Sequence[Sequence[int]], *, room: int, cache: DynamicCache | None = None) -> Tensor:
        """Take in whole sequences and return logits `[B, V]`; `room` tokens more will follow at most.

        Very ragged ones are read in several passes, and their slots then lined up at the right edge; not so with
        caches that do not hold every position.

        Args:
            cache: of all tokens but the last of every row, padded on the left; only the last ones are then read.
        """
        lengths = [len(sequence) for sequence in sequences]
        if cache is not None:
            self.cache = cache
            self._lay_out([length - 1 for length in lengths], max(lengths) - 1, room + 1)
            return self.advance(torch.tensor([sequence[-1] for sequence in sequences], device=self.device))
        self._lay_out(lengths, max(lengths), room)
        groups = [list(range(len(lengths)))]
        if self.keeps_every_slot:
            groups = passes(self.body, lengths)
        if len(groups) == 1:
            self.state = self._states(sequences, self.cache)
        else:
            states_BH = self.head.weight.new_zeros(len(lengths), self.head.weight.shape[1])
            caches = []
            for rows in groups:
                caches.append(DynamicCache(config=self.config))
                states_BH[torch.tensor(rows, device=self.device)] = self._states(
                    [sequences[row] for row in rows], caches[-1]
                )
            self.state = states_BH
            self._line_up(groups, caches)
        return self.head.project(self.state, self.vocab_size)

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

    def advance(self, tokens_B: Tensor, alive_B: Tensor | None = None) -> Tensor:
        """Take in one token per row and return logits `[B, V]`.

        Rows that are not alive take theirs in too, for nothing: their position stays where it was, so that
        a row that ended at the model's last position does not step beyond it.
        """
        self.width += 1
        # Two models that write together may live on two devices.
        ids_B1 = tokens_B.to(self.device)[:, None]
        mask = self._mask_BW if self._ready_B11W is None else self._ready_B11W
        self.state = self._body(ids_B1, mask[..., : self.width], self._position_B[:, None], self.cache)
        self._position_B = self._position_B + (1 if alive_B is None else alive_B.to(self.device).long())
        return self.head.project(self.state, self.vocab_size)

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
        """Go on with these rows alone, in this order."""
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


@dataclass(frozen=True, eq=False)
class HiddenLogits:
    """Logits of response positions, made from their hidden states a slice at a time.

    Attributes:
        hidden_NH: `[N, H]`, sequence after sequence.
        head: the output embedding.
        vocab_size: number of leading ids, None for all.
    """

    hidden_NH: Tensor  # noqa: N815
    head: OutputLayer
    vocab_size: int | None = None

    def __len__(self) -> int:
        return self.hidden_NH.shape[0]

    @torch.no_grad()
    def __getitem__(self, rows: slice) -> Tensor:
        return self.head.project(self.hidden_NH[rows], self.vocab_size)
