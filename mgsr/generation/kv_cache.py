"""The key-value cache of a batch that was written, kept so that a correction needs no second prefill.

A correction keeps the tokens before the error. Their keys and values depend on nothing after them, so the
slots of these tokens are what a fresh prefill would compute; the rest is dropped, and the kept slots are
lined up against the right edge, as a fresh prefill lays them out. The cache therefore does not grow with
the number of passes.

Shapes: n rows of a segment, B rows asked for, W slots, h heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mgsr.generation.reader import Reader


@dataclass(frozen=True)
class _Segment:
    """Rows that left the batch at the same time, and with the same number of slots."""

    layers: list[tuple[Tensor, Tensor]]  # keys and values [n, h, W, d]
    padding: Tensor  # [n]


class KeptCache:
    """Keys and values of written sequences, by example id.

    Args:
        example_ids: of the rows of the batch, distinct.
    """

    def __init__(self, example_ids: Sequence[int]) -> None:
        self._example_ids = list(example_ids)
        self._segments: list[_Segment] = []
        self._place: dict[int, tuple[int, int]] = {}
        self._text: dict[int, tuple[int, ...]] = {}

    def archive(self, reader: Reader, rows_N: Tensor, batch_rows: Sequence[int]) -> None:
        """Keep rows of a reader, which are these rows of the batch."""
        whole = len(rows_N) == reader.padding_B.shape[0]
        layers = []
        for layer in reader.cache.layers:
            assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
            kept = (layer.keys, layer.values) if whole else (layer.keys[rows_N], layer.values[rows_N])
            layers.append(kept)
        for row, batch_row in enumerate(batch_rows):
            self._place[self._example_ids[batch_row]] = len(self._segments), row
        self._segments.append(_Segment(layers, reader.padding_B[rows_N]))

    def set_text(self, text: dict[int, tuple[int, ...]]) -> None:
        """Prompt and response of every example; the last token of a response was written but never read."""
        self._text = text

    def holds(self, example_id: int, tokens: Sequence[int]) -> bool:
        """Whether the slots of exactly these leading tokens are kept."""
        text = self._text.get(example_id, ())
        return len(tokens) < len(text) and text[: len(tokens)] == tuple(tokens)

    def restore(self, example_ids: Sequence[int], lengths: Sequence[int], config: Any) -> DynamicCache:
        """A cache of the first `lengths[b]` tokens of every example, padded on the left to the longest."""
        width = max(lengths)
        plan: dict[int, list[tuple[int, int]]] = {}
        for row, example_id in enumerate(example_ids):
            segment, source = self._place[example_id]
            plan.setdefault(segment, []).append((row, source))
        device = self._segments[0].padding.device
        lengths_B = torch.tensor(lengths, device=device)
        moves = []
        for index, pairs in plan.items():
            rows_N, sources_N = torch.tensor(pairs, device=device).unbind(1)
            shift_N = self._segments[index].padding[sources_N] - (width - lengths_B[rows_N])
            slots_NW = (torch.arange(width, device=device) + shift_N[:, None]).clamp(min=0)
            moves.append((self._segments[index], rows_N, sources_N[:, None], slots_NW))
        cache = DynamicCache(config=config)
        for layer in range(len(self._segments[0].layers)):
            restored = []
            for part in (0, 1):
                like = self._segments[0].layers[layer][part]
                target = like.new_zeros(len(lengths), like.shape[1], width, like.shape[3])
                for origin, rows_N, sources_N1, slots_NW in moves:
                    # Indices around a full slice bring their own dimensions to the front: [n, W, h, d].
                    target[rows_N] = origin.layers[layer][part][sources_N1, :, slots_NW].transpose(1, 2)
                restored.append(target)
            cache.update(restored[0], restored[1], layer)
        return cache
