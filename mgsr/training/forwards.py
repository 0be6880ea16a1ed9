"""What stands around a training step's forwards: the teacher's states, the draws of dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mgsr.data.collate import Batch
from mgsr.models.output_layer import OutputHead
from mgsr.runtime.rng import Stream, draw_bits


def teacher_states(read: Callable[..., Tensor], teacher: Any, batch: Batch, head: OutputHead) -> Tensor:
    """Last hidden states `[B, L, H]`; 0 for sequences whose teacher distributions are cached.

    Args:
        read: `heads.last_hidden`, or its compiled form.
    """
    if batch.teacher_top is None:
        return read(teacher, batch.input_ids, batch.attention_mask)
    size, length = batch.input_ids.shape
    cached_B = torch.zeros(size, dtype=torch.bool, device=batch.input_ids.device)
    cached_B[batch.teacher_top.rows // (length - 1)] = True
    unread = (~cached_B).nonzero().squeeze(1)
    if not unread.numel():
        return head.weight.new_zeros(size, length, head.weight.shape[1])
    ids, mask = batch.input_ids[unread], batch.attention_mask[unread]
    width = int(mask.sum(dim=1).max())
    some = read(teacher, ids[:, :width], mask[:, :width])
    states = some.new_zeros(size, length, some.shape[-1])
    states[unread, :width] = some
    return states


def seed_dropout(key: tuple[int, int, int, int], device: torch.device) -> None:
    """Dropout depends on (seed, step, micro-batch, rank) alone, so a resumed run repeats it."""
    run, step, micro_batch, rank = key
    seed = draw_bits(run, Stream.ROLLOUT, step, micro_batch, rank, 0)
    # torch.manual_seed would also queue a call for every kind of device that isn't there: milliseconds each
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
