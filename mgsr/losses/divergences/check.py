"""Whether a function can be trained on as a divergence, tried on two tokens."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from mgsr.runtime.errors import did_you_mean

CLASSES = 1024
"""As many as a function may need that takes the most probable ones, where nobody knows how many there will be."""


def check_divergence(function: Any, options: Mapping[str, Any], classes: int = CLASSES) -> None:
    """Call a divergence, with every schedule at its ends and in the middle.

    Args:
        options: its arguments by name; a pair of numbers is a schedule.
        classes: width of the logits.

    Raises:
        ValueError: it is no function, has no such argument or refuses one, returns something else than one value
            per token, or no gradient reaches the student's logits.
    """
    if not callable(function):
        raise ValueError(f"is no function but {type(function).__name__}")
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD][2:]
    own = [name for name in known if name != "temperature"]
    for name in options:
        if name not in own and not takes_any:
            told = f"it has {', '.join(own)}" if own else "it has none"
            raise ValueError(f"has no option {name!r}; {told}{did_you_mean(name, own)}")
    pairs = {name: value for name, value in options.items() if isinstance(value, (list, tuple))}
    for done in (0.0, 0.5, 1.0) if pairs else (0.0,):
        now = {name: start + (end - start) * done for name, (start, end) in pairs.items()}
        _call(function, {**options, **now}, classes)


def _call(function: Any, options: Mapping[str, Any], classes: int) -> None:
    draw = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(2, classes, generator=draw) for _ in range(2))
    student.requires_grad_()
    try:
        loss = function(teacher, student, temperature=1.0, **options)
    except ValueError:
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(f"fails on logits [2, {classes}]: {type(error).__name__}: {error}") from error
    if not isinstance(loss, torch.Tensor) or loss.shape != (2,):
        shape = list(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise ValueError(f"has to return one value per token: of logits [2, {classes}] [2], not {shape}")
    if not loss.is_floating_point():
        raise ValueError(f"has to return real numbers, not {loss.dtype}")
    try:
        found = torch.autograd.grad(loss.sum(), student, allow_unused=True) if loss.requires_grad else (None,)
    except (Exception, SystemExit) as error:
        raise ValueError(f"has no gradient on logits [2, {classes}]: {type(error).__name__}: {error}") from error
    gradient = found[0]
    if gradient is None:
        raise ValueError("has no gradient to the student's logits, its second argument")
    if not bool(torch.isfinite(loss).all()) or not bool(torch.isfinite(gradient).all()):
        raise ValueError("gives a value or a gradient that is infinite or no number on ordinary logits")
