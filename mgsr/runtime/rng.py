"""Randomness without state: every uniform is a hash of the place it is used at.

A generator that hands out numbers in order ties a sequence's text to its batch, to the order of the
batches and to the number of ranks. Here a draw is a pure function of (seed, stream, round, example id, pass,
position), in the manner of the counter-based generators of Salmon et al. 2011 ("Parallel random numbers: as
easy as 1, 2, 3").

Shapes: N rows, V classes.
"""

from __future__ import annotations

from enum import IntEnum
from operator import index

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mgsr.runtime import devices

_MASK64 = (1 << 64) - 1
_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, odd
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


class Stream(IntEnum):
    """What a draw is for. Streams share no key, so student and teacher cannot agree by sharing draws."""

    ROLLOUT = 0
    TEACHER = 1
    POSITION = 2
    EVALUATION = 3


def _finalise(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014), a bijection that mixes every bit."""
    words = (words ^ (words >> np.uint64(30))) * _MIX1
    words = (words ^ (words >> np.uint64(27))) * _MIX2
    return words ^ (words >> np.uint64(31))


def _word(value: ArrayLike, name: str) -> NDArray[np.uint64]:
    """`value` as 64-bit words, negative numbers wrapped; what is not whole, or wider, is refused."""
    if isinstance(value, int):
        return np.array([_word_of(value, name)], dtype=np.uint64)
    array = np.atleast_1d(np.asarray(value))
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be whole numbers, got {array.dtype}")
    return array.astype(np.int64).view(np.uint64) if array.dtype.kind == "i" else array.astype(np.uint64)


def _word_of(value: int, name: str) -> int:
    """A number as one word; taken modulo 2^64, two seeds would draw alike."""
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"{name} must lie between -2^63 and 2^64 - 1, got {value}")
    return value & _MASK64


def uniform(
    seed: int,
    stream: Stream | int,
    round: int,
    example_id: ArrayLike,
    pass_: ArrayLike,
    position: ArrayLike,
) -> NDArray[np.float64]:
    """Uniform draws in [0, 1), one for every key.

    The six words of the key are absorbed one after the other, each followed by the finaliser of SplitMix64;
    the top 53 bits of the last state are the draw. Nothing but the key counts, on any platform.

    Args:
        seed: of the run, from -2^63 to 2^64 - 1.
        stream: what the draw is for.
        round: of regeneration.
        example_id: whole numbers, any shape.
        pass_: 0 for the rollout, k for correction k; broadcasts against `example_id`.
        position: token within the response, from 0; broadcasts likewise.

    Returns:
        float64 of the broadcast shape of the last three, 0-dimensional when all three are scalars.

    Raises:
        ValueError: `stream` is no stream, or a part of the key is not whole or has more than 64 bits.

    >>> uniform(0, Stream.ROLLOUT, 0, 7, 0, [0, 1, 2]).round(4).tolist()
    [0.9266, 0.3925, 0.8037]
    """
    shape = np.broadcast_shapes(np.shape(example_id), np.shape(pass_), np.shape(position))
    words = (
        _word(seed, "seed"),
        _word(int(Stream(stream)), "stream"),
        _word(round, "round"),
        _word(example_id, "example_id"),
        _word(pass_, "pass_"),
        _word(position, "position"),
    )
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        state = _finalise((state + _GAMMA) ^ word)
    # The last word has gone through one finaliser only: neighbouring positions get a second.
    state = _finalise(state + _GAMMA)
    return ((state >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)


def draw_bits(*key: int) -> int:
    """The 53 bits that `uniform` scales to its draw: one key, in Python's own integers.

    A key that is needed once per step costs a tenth of what numpy's arrays of one element do.

    Raises:
        TypeError: a part of the key is not whole.
        ValueError: it has more than 64 bits.

    >>> draw_bits(0, Stream.ROLLOUT, 0, 7, 0, 0) == int(float(uniform(0, Stream.ROLLOUT, 0, 7, 0, 0)) * 2**53)
    True
    """
    gamma, mix1, mix2 = int(_GAMMA), int(_MIX1), int(_MIX2)

    def finalise(word: int) -> int:
        word = ((word ^ (word >> 30)) * mix1) & _MASK64
        word = ((word ^ (word >> 27)) * mix2) & _MASK64
        return word ^ (word >> 31)

    state = 0
    for word in key:
        # refuses what is not whole, as `uniform` does
        state = finalise(((state + gamma) & _MASK64) ^ _word_of(index(word), "a key"))
    return finalise((state + gamma) & _MASK64) >> 11


def inverse_cdf(logits_NV: Tensor, uniforms_N: Tensor, *, temperature: float = 1.0) -> Tensor:
    """One class per row by inversion: the smallest index whose cumulative mass exceeds the row's uniform.

    Softmax and sum are in float64, so that a class is drawn differently only where rounding of the logits
    moves its boundary across the draw. A class of zero probability is never drawn. Where the masses sum to just
    below 1 and the uniform lies above, the last class of positive probability is.

    Args:
        logits_NV: `[N, V]`, -inf for a class that cannot be drawn.
        uniforms_N: `[N]` in [0, 1).
        temperature: divides the logits, above 0.

    Returns:
        `[N]` int64, on the device of the logits.

    Raises:
        ValueError: shapes or temperature do not fit, or a row has no distribution (NaN, +inf, or all -inf).

    >>> inverse_cdf(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0.49, 0.5]))
    tensor([0, 1])
    """
    return checked(classes_at(logits_NV, uniforms_N, temperature=temperature))


def checked(drawn: Tensor) -> Tensor:
    """What `classes_at` has drawn, any shape.

    Raises:
        ValueError: a row had no distribution.
    """
    if bool((drawn < 0).any()):
        raise ValueError("cannot draw a token: the logits of a row are NaN, +inf or all -inf")
    return drawn


def classes_at(logits_NV: Tensor, uniforms_N: Tensor, *, temperature: float = 1.0) -> Tensor:
    """As `inverse_cdf`, but -1 for a row without a distribution: of a GPU nothing is read."""
    if logits_NV.ndim != 2 or uniforms_N.shape != logits_NV.shape[:1]:
        raise ValueError(
            f"need logits [N, V] and uniforms [N], got {list(logits_NV.shape)}, {list(uniforms_N.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if logits_NV.device.type == "mps":  # has no float64
        drawn = classes_at(logits_NV.cpu(), uniforms_N.cpu(), temperature=temperature)
        return drawn.to(logits_NV.device)
    if logits_NV.shape[0] == 0:
        return torch.zeros(0, dtype=torch.int64, device=logits_NV.device)
    uniforms = uniforms_N.to(device=logits_NV.device, dtype=torch.float64)
    probabilities = torch.softmax(logits_NV.double() / temperature, dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    # A parallel sum need not be monotone to the last bit, so zero-probability classes are excluded outright.
    possible = probabilities > 0
    above = (cumulative > uniforms[:, None]) & possible
    drawn, found = above.to(torch.uint8).argmax(dim=-1), above.any(dim=-1)
    if devices.reading_is_free(logits_NV.device) and bool(found.all()):
        return drawn
    last = probabilities.shape[-1] - 1 - possible.flip(-1).to(torch.uint8).argmax(dim=-1)
    drawn = torch.where(found, drawn, last)
    return drawn.masked_fill(torch.isnan(cumulative[:, -1]), -1)


def seed_dropout(key: tuple[int, int, int, int], device: torch.device) -> None:
    """Dropout depends on the key (seed, step, micro-batch, rank) alone, so that a resumed run repeats it."""
    run, step, micro_batch, rank = key
    seed = draw_bits(run, Stream.ROLLOUT, step, micro_batch, rank, 0)
    # torch.manual_seed would also queue a call for every kind of device that isn't there: milliseconds each
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
