"""What a writer of the user's own has written (`scrg.text=module:Class`), before a round takes it."""

from __future__ import annotations

import operator
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mgsr.runtime.devices import is_out_of_memory
from mgsr.runtime.errors import ConfigError, UserError
from mgsr.scrg import Prompt

KEPT = ("behaviour_log_probs", "replaced", "by_teacher")
"""What `mgsr.rounds.entry.RoundEntry` has of a response beside its text."""

Checked = tuple[list[tuple[int, ...]], list[dict[str, Any]], int]


def checked_text(
    unrevised: Callable[[Sequence[Prompt], int], Any],
    prompts: Sequence[Prompt],
    round_: int,
    *,
    name: str,
    vocab_size: int,
    longest: int,
) -> Checked:
    """What `unrevised` gives for a batch of prompts, in plain numbers: tensors and arrays of whole numbers too.

    Args:
        unrevised: the user's method; name: import path of its class.
        longest: tokens that a response may have.

    Raises:
        ConfigError: the method fails, or gives something else.
        RuntimeError: memory did not suffice for it.
    """

    def refuse(what: str) -> ConfigError:
        return ConfigError(f"`scrg.text`: {name}.unrevised {what}", "scrg.text")

    try:
        found = unrevised(prompts, round_)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            # half of the batch may do
            raise
        raise refuse(f"fails at {_place(error, unrevised)}: {type(error).__name__}: {error}") from error
    parts = found if isinstance(found, (tuple, list)) else ()
    if len(parts) != 3:
        what = f"{len(parts)} things" if parts else type(found).__name__
        raise refuse(f"has to return responses, what else is kept of each, and a number of models, not {what}")
    responses, more = map(_listed, parts[:2])
    for what, some in (("responses", responses), ("dicts of what else is kept", more)):
        if some is None or len(some) != len(prompts):
            number = "something else" if some is None else len(some)
            raise refuse(f"has to return as many {what} as there are prompts, {len(prompts)}, not {number}")
    readers = _whole([parts[2]])
    if readers is None or readers[0] < 0:
        raise refuse(f"has to return how many models have read the responses, not {parts[2]!r:.40}")
    texts: list[tuple[int, ...]] = []
    kept: list[dict[str, Any]] = []
    for row, (response, extra) in enumerate(zip(responses or (), more or (), strict=True)):
        # by its example, as another batch has other rows
        which = f"returns for example {prompts[row][0]}"
        ids = _whole(_listed(response))
        if ids is None:
            raise refuse(f"{which} no sequence of token ids but {_shown(response)}")
        if len(ids) > longest:
            raise refuse(f"{which} {len(ids)} tokens, and `scrg.max_new_tokens` is {longest}: raise that, or cut")
        wrong = [token for token in ids if not 0 <= token < vocab_size]
        if wrong:
            raise refuse(f"{which} the id {wrong[0]}; the ids that may be written are 0 to {vocab_size - 1}")
        else_kept = _kept(extra, len(ids))
        if else_kept is None:
            raise refuse(
                f"{which} {_shown(extra)} beside the text; it takes a dict, empty or of {', '.join(KEPT)}, with a "
                "log-probability of each token, places in the response, and true or false"
            )
        texts.append(ids)
        kept.append(else_kept)
    return texts, kept, readers[0]


def _listed(value: Any) -> list[Any] | None:
    """What a sequence, a tensor or an array holds; None of anything else."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        value = value.tolist()
    return list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else None


def _whole(values: list[Any] | None) -> tuple[int, ...] | None:
    """Plain whole numbers; None where one is none."""
    if values is None or bool in map(type, values):
        return None
    try:
        return tuple(map(operator.index, values))
    except TypeError:
        return None


def _kept(extra: Any, tokens: int) -> dict[str, Any] | None:
    """What else is kept of a response, as a round's file can hold it; None where it cannot."""
    if not isinstance(extra, Mapping) or not set(extra) <= set(KEPT):
        return None
    kept: dict[str, Any] = {}
    if "by_teacher" in extra:
        kept["by_teacher"] = bool(extra["by_teacher"])
    if "replaced" in extra:
        places = _whole(_listed(extra["replaced"]))
        if places is None or any(not 0 <= place < tokens for place in places):
            return None
        kept["replaced"] = places
    if "behaviour_log_probs" in extra:
        listed = _listed(extra["behaviour_log_probs"])
        try:
            kept["behaviour_log_probs"] = tuple(map(float, listed or ()))
        except (TypeError, ValueError):
            return None
        if listed is None or len(listed) not in (0, tokens):
            return None
    return kept


def _shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _place(error: BaseException, method: Any) -> str:
    """`file:line` of the user's code, where it failed or called what failed."""
    own = [kind for kind in type(method.__self__).__mro__ if not kind.__module__.startswith("mgsr.")]
    files = [getattr(sys.modules.get(kind.__module__), "__file__", None) for kind in own]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    # none where it could not be called at all
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else str(files[0])
