"""The loop that writes a batch, and how a token is chosen from its logits.

Shapes: B rows of the batch, n rows that are still in it, T new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mgsr.generation.kv_cache import Slots
from mgsr.generation.reader import Reader
from mgsr.runtime.rng import inverse_cdf

Choice = Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, tuple[Tensor, ...]]]
"""(logits `[n, V]` per reader, uniforms `[n]` per stream) -> (tokens `[n]`, values to keep, each `[n]`)."""


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
        return inverse_cdf(self.restrict(logits_NV), uniforms_N, temperature=self.temperature), ()

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
    logits: Sequence[Tensor],
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
        readers: one or more models that read the same text, all of B rows.
        logits: `[B, V]` per reader, the distribution of the next token.
        uniforms_BT: `[B, T]` per stream of draws, column t for a row's t-th new token.
        choose: the token from logits and uniforms.
        budgets: new tokens per row, at least 1, at most T.
        eos_ids: ids that end a row; they are part of it.
        keep_states, keep_slots: what the first reader leaves behind is returned too.

    Returns:
        The new tokens of all B rows, and what was kept of them.
    """
    device, batch = logits[0].device, len(budgets)
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
        tokens_N, values = choose(logits, [table[:, step] for table in tables_NT])
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
        logits = [reader.advance(tokens_N, alive_N) for reader in readers]
    if keep_slots:
        slots.append(readers[0].slots(torch.arange(len(here), device=device), here.tolist()))
    lengths = lengths_B.tolist()
    kept = [_ragged(table, lengths) for table in values_BT]
    return Decoded(_ragged(tokens_BT, lengths), kept, states_BTH, tuple(slots))


def _ragged(table_BT: Tensor, lengths: Sequence[int]) -> list[list]:
    return [row[:length] for row, length in zip(table_BT.tolist(), lengths, strict=True)]
