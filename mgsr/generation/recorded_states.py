"""Hidden states that writing left behind, so that scoring what was just written needs no second forward.

The state from which a token was drawn is the state that scores it. A correction at position j changes no state up
to j: those of the rollout go on holding, and the continuation adds its own.

Shapes: B rows, T new tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mgsr.scrg import Prefix, Prompt


class RecordedStates:
    """Last hidden states of written responses, by example id; only what was written last is held."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[tuple[int, ...], Tensor]] = {}

    def clear(self) -> None:
        self._rows = {}

    def note(self, prefixes: Sequence[Prefix], written: Sequence[Sequence[int]], states_BTH: Tensor) -> None:
        """Take in the states from which the new tokens of every row were drawn."""
        for prefix, tokens, states in zip(prefixes, written, states_BTH, strict=True):
            text = (*prefix.prompt_ids, *prefix.response_ids, *tokens)
            before = len(prefix.response_ids)
            new = states[: len(tokens)]
            if before:
                old_text, old = self._rows.pop(prefix.example_id, ((), new[:0]))
                # all but the last token of the prefix stood there already; its last place was scored then
                same = len(prefix.prompt_ids) + before - 1
                if len(old) < before or old_text[:same] != text[:same]:
                    continue
                new = torch.cat([old[:before], new])
            self._rows[prefix.example_id] = text, new

    def find(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> list[Tensor] | None:
        """States `[len, H]` of every response, or None unless all of them are here."""
        found = []
        for (example_id, prompt_ids), response in zip(prompts, responses, strict=True):
            text, states = self._rows.get(example_id, ((), None))
            if states is None or text != (*map(int, prompt_ids), *map(int, response)):
                return None
            found.append(states)
        return found
