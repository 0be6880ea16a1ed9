"""The clipping bounds of every row, from two numbers or from a network."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mgsr.losses.clipping import RAMP_REACH, PairSummary


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


class RowBounds:
    """Bounds of the rows of one call, handed out tile by tile and remembered with their graph."""

    def __init__(self, clip: Any, kept_M: Tensor, rows: int, dtype: torch.dtype) -> None:
        self.module: Any = None
        self.fixed: tuple[float, float] | None = None
        self._given: tuple[Tensor, Tensor] | None = None
        self._grad = torch.is_grad_enabled()
        self.lower: list[Tensor] = []
        self.upper: list[Tensor] = []
        if isinstance(clip, (tuple, list)):
            if len(clip) != 2:
                raise ValueError(f"clip must be (lower, upper) or a module, got {len(clip)} values")
            if not any(isinstance(bound, Tensor) for bound in clip):
                self.fixed = (float(clip[0]), float(clip[1]))
            lower, upper = (torch.as_tensor(b, dtype=dtype, device=kept_M.device) for b in clip)
            self._given = (lower.expand(rows)[kept_M], upper.expand(rows)[kept_M])
        elif callable(clip):
            self.module = clip
        else:
            raise ValueError(f"clip must be (lower, upper) or a module that returns them, got {clip!r}")

    @property
    def features(self) -> int:
        """Classes in the summary that the module asks for; 0 = it reads logits, or there is none."""
        return int(getattr(self.module, "summary_features", 0))

    @property
    def price(self) -> Tensor | None:
        """Price of a unit of clipped mass, from a priced module."""
        if getattr(self.module, "objective", None) != "priced":
            return None
        price: Tensor = self.module.price
        return price.detach()

    def limits(self, sharpness: float) -> tuple[tuple[float, float], ...]:
        """The bounds of a priced module that clip least and most; nothing for any other."""
        if self.price is None:
            return ()
        module, low = self.module, -RAMP_REACH * sharpness
        return ((low, float(module.upper_max)), (float(module.lower_max), float(module.upper_min)))

    def tile(
        self, start: int, stop: int, teacher_logits: Tensor, student_logits: Tensor, summary: PairSummary | None
    ) -> tuple[Tensor, Tensor]:
        """Bounds of rows `start` to `stop`, in the grad mode that the object was made in."""
        with torch.set_grad_enabled(self._grad):
            if self._given is not None:
                lower, upper = (bound[start:stop] for bound in self._given)
            elif summary is not None:
                lower, upper = self.module(summary=summary)
            else:
                lower, upper = self.module(teacher_logits.detach(), student_logits.detach())
        self.lower.append(lower)
        self.upper.append(upper)
        return lower, upper

    def joined(self) -> tuple[Tensor, Tensor]:
        """All bounds handed out so far, `[M]` each, with their graph."""
        return torch.cat(self.lower), torch.cat(self.upper)


def resolve_sharpness(sharpness: float | None, clip: Any) -> float:
    """The caller's sharpness, or the clip module's, or 0.005.

    Raises:
        ValueError: caller and module disagree.
    """
    own = getattr(clip, "sharpness", None)
    if sharpness is None:
        return 0.005 if own is None else float(own)
    if own is not None and float(own) != float(sharpness):
        raise ValueError(f"sharpness {sharpness} differs from the clip network's {float(own)}; give both the same")
    return float(sharpness)
