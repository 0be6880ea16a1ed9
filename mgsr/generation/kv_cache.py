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
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from mgsr.scrg import Prefix, Prompt


class Slots(NamedTuple):
    """Keys and values of rows that left a batch at the same time, and with the same number of slots."""

    layers: list[tuple[Tensor, Tensor]]  # keys and values [n, h, W, d]
    padding: Tensor  # [n]
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
        self, example_ids: Sequence[int], texts: Sequence[Sequence[int]], config: Any
    ) -> DynamicCache | None:
        """A cache of every text but its last token, padded on the left; None unless all of it is kept.

        The slots are given up in any case, so that no two caches stand side by side while a batch is written.
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
        device = segments[0].padding.device
        lengths_B = torch.tensor(lengths, device=device)
        moves = []
        for number, pairs in plan.items():
            rows_N, sources_N = torch.tensor(pairs, device=device).unbind(1)
            shift_N = segments[number].padding[sources_N] - (width - lengths_B[rows_N])
            slots_NW = (torch.arange(width, device=device) + shift_N[:, None]).clamp(min=0)
            moves.append((segments[number], rows_N, sources_N[:, None], slots_NW))
        cache = DynamicCache(config=config)
        for layer in range(len(segments[0].layers)):
            restored = []
            for part in (0, 1):
                like = segments[0].layers[layer][part]
                target = like.new_zeros(len(lengths), like.shape[1], width, like.shape[3])
                for origin, rows_N, sources_N1, slots_NW in moves:
                    # Indices around a full slice bring their own dimensions to the front: [n, W, h, d].
                    target[rows_N] = origin.layers[layer][part][sources_N1, :, slots_NW].transpose(1, 2)
                restored.append(target)
            cache.update(restored[0], restored[1], layer)
        return cache

    def _holds(self, example_id: int, text: Sequence[int]) -> bool:
        """Whether the slots of all its tokens but the last are kept."""
        known, wanted = self._text.get(example_id, ()), tuple(text[:-1])
        return len(wanted) < len(known) and known[: len(wanted)] == wanted
