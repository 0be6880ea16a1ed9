"""How a token is drawn from its logits.

Shapes: N rows, V vocabulary; B rows of a batch, T new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mgsr.runtime.rng import Stream, classes_at, uniform

Choice = Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, tuple[Tensor, ...]]]
"""(logits `[N, V]` per reader, uniforms `[N]` per stream) -> (tokens `[N]`, values to keep, each `[N]`).

A token is -1 where its row has no distribution. Nothing may be read: a GPU has the next steps to do."""


@dataclass(frozen=True)
class Sampling:
    """From logits to a token.

    Attributes:
        temperature: divides the logits; above 0.
        top_p: keep the smallest set of most probable tokens with at least this mass; 1 keeps all.
        top_k: keep this many most probable tokens; 0 keeps all.
        greedy: take the most probable token, the smallest id on ties; the others are then ignored.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    greedy: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"temperature must be above 0, got {self.temperature} (greedy=True takes the best token)"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {self.top_k}")

    def __call__(self, logits: Sequence[Tensor], uniforms: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The `Choice` of a single model and a single stream."""
        (logits_NV,), (uniforms_N,) = logits, uniforms
        if self.greedy:
            return logits_NV.argmax(dim=-1), ()
        return classes_at(self.restrict(logits_NV), uniforms_N, temperature=self.temperature), ()

    def restrict(self, logits_NV: Tensor) -> Tensor:
        """Logits with -inf on the tokens that top-k and then top-p leave out; ties keep the smaller ids."""
        if self.top_k == 0 and self.top_p == 1.0:
            return logits_NV
        ranked_NV, order_NV = logits_NV.sort(dim=-1, descending=True, stable=True)
        if self.top_k > 0:
            ranked_NV[:, self.top_k :] = -torch.inf
        if self.top_p < 1.0:
            mass_NV = torch.softmax(ranked_NV.double() / self.temperature, dim=-1)
            before_NV = mass_NV.cumsum(dim=-1) - mass_NV
            ranked_NV = ranked_NV.masked_fill(before_NV >= self.top_p, -torch.inf)
        return torch.full_like(logits_NV, -torch.inf).scatter(1, order_NV, ranked_NV)


def draws(
    example_ids: Sequence[int],
    starts: Sequence[int],
    width: int,
    *,
    seed: int,
    stream: Stream | int,
    round: int,
    pass_: int,
) -> Tensor:
    """Uniforms `[B, T]` in float64: column t of a row is for its response position `starts[b] + t`."""
    ids_B1 = torch.tensor(example_ids, dtype=torch.int64)[:, None].numpy()
    positions_BT = (torch.tensor(starts, dtype=torch.int64)[:, None] + torch.arange(width)).numpy()
    return torch.from_numpy(uniform(seed, stream, round, ids_B1, pass_, positions_BT))
