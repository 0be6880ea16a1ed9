"""DAC-KL's two bounds: quantiles, the ramps around a bound, and what a module that sets the bounds must be.

Shapes: `...` leading shape, R rows (tokens), V classes, K of them in descending order, F features. c is a class's
quantile: the mass, or the share of classes, that is ranked strictly before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

RAMPS, QUANTILES, FORMS = ("clipped", "sigmoid"), ("mass", "rank"), ("normalised", "literal")
RAMP_REACH = 4.0
"""The clipped ramp is exactly 0 or 1 further than this many sharpnesses from a bound."""
RAMP_TAIL = 1.0 / (1.0 + math.exp(RAMP_REACH))
"""What the sigmoid has left there; cut off, and the rest stretched over `RAMP_SPAN`."""
RAMP_SPAN = 1.0 - 2.0 * RAMP_TAIL


class PairSummary(NamedTuple):
    """What a clip network is told about one token: `[R, F]`, `[R, F]`, `[R]`, `[R]`.

    The F largest teacher log-probabilities (F = V where the vocabulary is smaller), the student's of the same
    classes, and both entropies.
    """

    teacher_log_probs: Tensor
    student_log_probs: Tensor
    teacher_entropy: Tensor
    student_entropy: Tensor


@runtime_checkable
class ClipModule(Protocol):
    """A module that sets the bounds of every token; `mgsr.models.clip_network.ClipNetwork` is one.

    It is called once per tile with the logits over the temperature, `[R, V]`, detached, and returns lower and
    upper, `[R]` each; their graph stays alive until backward, so it shouldn't save anything of size `[R, V]`.
    A call with no rows must work too: it gives the parameters a zero gradient.

    Optional attributes, read where present:

    - `summary_features: int`: the module is called as `module(summary=PairSummary)` instead, with that many
      classes, which saves it ranking the vocabulary a second time;
    - `sharpness: float`: the ramps' width that its ranges were made for; must agree with the caller's;
    - `objective == "priced"` with `price` (a scalar tensor) and the limits `lower_max`, `upper_min`,
      `upper_max`: `clip_penalty` is then price * clipped mass.
    """

    def __call__(self, teacher_logits: Tensor, student_logits: Tensor) -> tuple[Tensor, Tensor]: ...


Clip = ClipModule | tuple[float | Tensor, float | Tensor] | None


def check_clipping(sharpness: float, ramp: str, quantile: str, form: str) -> None:
    """Refuse an unknown option by its name.

    Raises:
        ValueError: with the offending value.
    """
    if not 0.0 <= sharpness < math.inf:
        raise ValueError(f"sharpness must be finite and at least 0, got {sharpness}")
    for name, value, known in (("ramp", ramp, RAMPS), ("quantile", quantile, QUANTILES), ("form", form, FORMS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


@dataclass(frozen=True)
class ClipOptions:
    """How DAC-KL clips; see `dac_kl`. `target` is "argmax" or "label"."""

    sharpness: float
    ramp: str
    quantile: str
    target: str
    form: str
    keep_target: bool
    margin: float = field(init=False)
    """How far outside a bound m is exactly 0, a little rounding included; inf for endless tails."""

    def __post_init__(self) -> None:
        check_clipping(self.sharpness, self.ramp, self.quantile, self.form)
        if self.target not in ("argmax", "label"):
            raise ValueError(f"target must be 'argmax' or 'label', got {self.target!r}")
        endless = self.ramp == "sigmoid" and self.sharpness
        object.__setattr__(self, "margin", math.inf if endless else RAMP_REACH * self.sharpness + 1e-5)

    @classmethod
    def of(cls, clip: Clip, sharpness: float | None, *others: Any) -> ClipOptions:
        """With the caller's sharpness, or the clip module's, or 0.005; `others` are the fields that follow it.

        Raises:
            ValueError: caller and module disagree, or an option is unknown or out of range.
        """
        own = getattr(clip, "sharpness", None)
        if sharpness is None:
            sharpness = 0.005 if own is None else float(own)
        elif own is not None and float(own) != float(sharpness):
            raise ValueError(
                f"sharpness {sharpness} differs from the clip network's {float(own)}; give both the same"
            )
        return cls(float(sharpness), *others)


def ramp_value(x: Tensor, kind: str, out: Tensor | None = None) -> Tensor:
    """The ramp from 0 to 1 around x = 0: a sigmoid, or a sigmoid whose tails beyond +-4 are cut.

    `out` takes the result and may be `x`; then no gradient flows.
    """
    value = torch.sigmoid(x, out=out)
    if kind == "clipped":
        value = torch.div(torch.sub(value, RAMP_TAIL, out=out), RAMP_SPAN, out=out)
        value = torch.clamp(value, 0.0, 1.0, out=out)
    return value


def clip_mask(c: Tensor, lower: Tensor, upper: Tensor, sharpness: float, ramp: str) -> Tensor:
    """m = ramp((c - lower) / s) * ramp((upper - c) / s); for s = 0 the hard mask lower <= c < upper.

    `lower` and `upper` broadcast against `c`; the soft mask is differentiable in both.
    """
    if sharpness == 0.0:
        return ((c >= lower) & (c < upper)).to(c.dtype)
    return ramp_value((c - lower) / sharpness, ramp) * ramp_value((upper - c) / sharpness, ramp)


def ranked_quantile(log_probs_RK: Tensor, quantile: str, width: int) -> Tensor:
    """Quantiles of the K largest classes, given in descending order. `width` is V."""
    if quantile == "rank":
        ranks = torch.arange(log_probs_RK.shape[-1], device=log_probs_RK.device, dtype=torch.float64)
        # in float64 first: rank / V then rounds exactly as a bound k / V that came as a Python float
        return (ranks / width).to(log_probs_RK.dtype).expand_as(log_probs_RK)
    # shifted by one, not cumsum - p: that would cancel for the top class
    first = torch.zeros_like(log_probs_RK[..., :1])
    return torch.cat([first, log_probs_RK[..., :-1].exp()], dim=-1).cumsum_(dim=-1)
