"""What writing a batch leaves behind, so that correcting it needs no second prefill and scoring it no forward.

A correction keeps the tokens before the error. Their keys and values depend on nothing after them, so the
slots of these tokens are what a fresh prefill would compute; the rest is dropped, and the kept slots are
lined up against the right edge, as a fresh prefill lays them out. The cache therefore does not grow with
the number of passes. Likewise the state from which a token was drawn is the state that scores it: those of the
rollout go on holding up to the correction, and the continuation adds its own.

Shapes: n rows of a segment, B rows asked for, W slots, h heads, d head width, T new tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mgsr.scrg import Prefix, Prompt

CHUNK = 64
"""Slots by which a cache grows. One that grows with every token copies all of itself every time."""


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer; they are views of the slots in use, of a few more that lie ready.

    Args:
        limit: slots that will be used at most.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self._room: list[Tensor] = []

    @property
    def states(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def open(self, keys_BhWd: Tensor, values_BhWd: Tensor, batch: int, width: int) -> tuple[Tensor, Tensor]:
        """Take `width` slots of `batch` rows into use, all 0, to be filled; the two tensors say of what kind."""
        self.lazy_initialization(keys_BhWd, values_BhWd)
        size = min(max(self.limit, width), width + CHUNK)
        self._room = [t.new_zeros(batch, t.shape[1], size, t.shape[3]) for t in (keys_BhWd, values_BhWd)]
        self.keys, self.values = (room[:, :, :width] for room in self._room)
        return self.states

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in further positions, `[B, h, T, d]`; returns all that are in use."""
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if not self._room or self._room[0].shape[-2] < stop:
            old = self.states if start else ()
            grown = self.open(key_states, value_states, key_states.shape[0], stop)
            for new, kept in zip(grown, old, strict=False):
                new[:, :, :start] = kept
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:stop] = states
        self.keys, self.values = (room[:, :, :stop] for room in self._room)
        return self.states

    def batch_select_indices(self, indices: Tensor) -> None:
        """Go on with these rows."""
        width = self.get_seq_length()
        self._room = [room[indices] for room in self._room]
        self.keys, self.values = (room[:, :, :width] for room in self._room)


def growing_cache(config: Any, limit: int) -> DynamicCache:
    """A cache for a model, of at most `limit` slots; layers that do not hold every position stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer(limit) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def keeps_every_slot(cache: DynamicCache) -> bool:
    """Whether all layers hold all positions: not so with a sliding window, chunks or a recurrent state."""
    return all(isinstance(layer, GrowingLayer) for layer in cache.layers)


def growing_layers(cache: DynamicCache) -> list[GrowingLayer]:
    """The layers of a cache that keeps every slot."""
    return cast(list[GrowingLayer], cache.layers)


def line_up(
    cache: DynamicCache, groups: Sequence[Sequence[int]], parts: Sequence[DynamicCache], width: int
) -> None:
    """Fill a cache with all rows from those of the groups, lined up at the right; they are used up on the way."""
    batch = sum(map(len, groups))
    for index, layer in enumerate(growing_layers(cache)):
        sources = [growing_layers(part)[index].states for part in parts]
        targets = layer.open(*sources[0], batch, width)
        for rows, part, source in zip(groups, parts, sources, strict=True):
            rows_N = torch.tensor(rows, device=targets[0].device)
            for target, states in zip(targets, source, strict=True):
                target[rows_N, :, width - states.shape[2] :] = states
            # layer by layer, so that no two caches stand side by side
            part.layers[index] = DynamicLayer()


class Slots(NamedTuple):
    """Keys and values of rows that left a batch at the same time, and with the same number of slots."""

    layers: list[tuple[Tensor, Tensor]]  # keys and values [n, h, W, d]
    padding: list[int]  # [n]
    rows: list[int]  # [n], counted in the whole batch


@dataclass
class KeptText:
    """Slots and last hidden states of what was written last, by example id.

    Attributes:
        segments: the slots of the last batch, as its rows left it; empty where none are kept.
    """

    segments: list[Slots] = field(default_factory=list)
    _place: dict[int, tuple[int, int]] = field(default_factory=dict)
    # prompt and response of the slots; the last token of a response was written but never read
    _text: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _states: dict[int, tuple[tuple[int, ...], Tensor]] = field(default_factory=dict)

    def keep(
        self,
        prefixes: Sequence[Prefix],
        written: Sequence[Sequence[int]],
        states_BTH: Tensor,
        segments: Sequence[Slots],
    ) -> None:
        """Take in a batch: its new tokens, the states from which they were drawn, and its slots."""
        self.segments, self._place, self._text = list(segments), {}, {}
        for number, segment in enumerate(segments):
            for place, row in enumerate(segment.rows):
                self._place[prefixes[row].example_id] = number, place
        for prefix, tokens, states in zip(prefixes, written, states_BTH, strict=True):
            text = (*prefix.prompt_ids, *prefix.response_ids, *tokens)
            self._text[prefix.example_id] = text
            before = len(prefix.response_ids)
            new = states[: len(tokens)]
            if before:
                old_text, old = self._states.pop(prefix.example_id, ((), new[:0]))
                # all but the last token of the prefix stood there already; its last place was scored then
                same = len(prefix.prompt_ids) + before - 1
                if len(old) < before or old_text[:same] != text[:same]:
                    continue
                new = torch.cat([old[:before], new])
            self._states[prefix.example_id] = text, new

    def states(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> list[Tensor] | None:
        """States `[len, H]` of every response, or None unless all of them are here."""
        found = []
        for (example_id, prompt_ids), response in zip(prompts, responses, strict=True):
            text, states = self._states.get(example_id, ((), None))
            if states is None or text != (*map(int, prompt_ids), *map(int, response)):
                return None
            found.append(states)
        return found

    def restore(
        self, example_ids: Sequence[int], texts: Sequence[Sequence[int]], config: Any, limit: int
    ) -> DynamicCache | None:
        """A cache of every text but its last token, padded on the left; None unless all of it is kept.

        The slots are given up in any case, layer by layer as the cache takes them in, so that no two caches stand
        side by side.

        Args:
            limit: slots that the cache will have at most.
        """
        segments, self.segments = self.segments, []
        if not segments or not all(map(self._holds, example_ids, texts)):
            return None
        lengths = [len(text) - 1 for text in texts]
        width = max(lengths)
        plan: dict[int, list[tuple[int, int]]] = {}
        for row, example_id in enumerate(example_ids):
            number, source = self._place[example_id]
            plan.setdefault(number, []).append((row, source))
        device = segments[0].layers[0][0].device
        moves = []
        for number, pairs in plan.items():
            padding = segments[number].padding
            shifts = np.array([[padding[source] - (width - lengths[row])] for row, source in pairs])
            rows_N, sources_N = torch.tensor(pairs, device=device).unbind(1)
            slots_NW = torch.from_numpy((np.arange(width) + shifts).clip(0)).to(device)
            moves.append((number, rows_N, sources_N[:, None], slots_NW))
        cache = growing_cache(config, limit)
        for layer in growing_layers(cache):
            given = [segment.layers.pop(0) for segment in segments]
            targets = layer.open(*given[0], len(lengths), width)
            for number, rows_N, sources_N1, slots_NW in moves:
                for target, states in zip(targets, given[number], strict=True):
                    # Indices around a full slice bring their own dimensions to the front: [n, W, h, d].
                    target[rows_N] = states[sources_N1, :, slots_NW].transpose(1, 2)
        return cache

    def _holds(self, example_id: int, text: Sequence[int]) -> bool:
        """Whether the slots of all its tokens but the last are kept."""
        known, wanted = self._text.get(example_id, ()), tuple(text[:-1])
        return len(wanted) < len(known) and known[: len(wanted)] == wanted
