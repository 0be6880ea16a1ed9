"""The clip network f_sub: a small MLP that sets DAC-KL's two bounds for every token.

Paper: Liu et al. 2024, arXiv 2407.10068, which says "an MLP" and no more; input, ranges and the priced objective
are choices of this project. Shapes: `...` leading shape, V classes, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mgsr.losses.clip_bounds import RAMP_REACH, PairSummary
from mgsr.losses.log_probs import entropy, log_probabilities
from mgsr.losses.ranking import top_classes

LOWEST_LOG_PROB = -50.0
"""Log-probabilities are clamped here; a vocabulary smaller than F is padded with it."""
INPUT_SCALE = 0.1
"""Brings nats to the size that the first layer's initialisation expects."""
START_PRICE = 0.3
PRICE_RANGE = (1e-3, 1e3)
MIN_STEERABLE = 1e-6
"""Below this range of clipped mass the price has nothing to steer."""


class ClipNetwork(nn.Module):
    """Two layers from what teacher and student think of a token to (lower, upper).

    lower lies in [-4 s, lower_max], upper in [upper_min, upper_max], through sigmoids that start mid-range. The
    input, detached, are the `features` largest teacher log-probabilities, the student's of the same classes and
    both entropies. An upper_max beyond 1 - 4 s works, but every token then needs a full sort of the vocabulary.

    With `objective="joint"` the network minimises DAC-KL alone. DAC-KL falls with `lower` and rises with
    `upper`, so that it drifts to the limits that clip most. With `"priced"` it minimises
    DAC-KL + price * (1 - retained mass); `mass_price="auto"` steers the price (`update_price`).

    Args:
        features: classes in the input.
        hidden: width of the hidden layer.
        lower_max: upper end of the range of `lower`.
        upper_min: lower end of the range of `upper`.
        upper_max: upper end of the range of `upper`.
        sharpness: width s of DAC-KL's ramps; the same must be used there.
        objective: "joint" or "priced".
        mass_price: "auto" starts at 0.3 and is steered; a number stays fixed.
        clip_share: where between the least and the most clipped mass the steering aims, in [0, 1].
        price_rate: step of log price per unit of share.

    Raises:
        ValueError: the ranges are empty or cross, sharpness is 0 (a hard mask gives no gradient), or an option
            is unknown or out of range.
    """

    price: Tensor

    def __init__(
        self,
        *,
        features: int = 64,
        hidden: int = 64,
        lower_max: float = 0.3,
        upper_min: float = 0.9,
        upper_max: float = 0.97,
        sharpness: float = 0.005,
        objective: str = "joint",
        mass_price: float | str = "auto",
        clip_share: float = 0.5,
        price_rate: float = 0.01,
    ) -> None:
        super().__init__()
        _check_ranges(lower_max, upper_min, upper_max, sharpness)
        if features < 1 or hidden < 1:
            raise ValueError(f"features and hidden must be at least 1, got {features} and {hidden}")
        if objective not in ("joint", "priced"):
            raise ValueError(f"objective must be 'joint' or 'priced', got {objective!r}")
        if isinstance(mass_price, str) and mass_price != "auto":
            raise ValueError(f"mass_price must be 'auto' or a number, got {mass_price!r}")
        if not isinstance(mass_price, str) and not (mass_price >= 0 and math.isfinite(mass_price)):
            raise ValueError(f"mass_price must be finite and at least 0, got {mass_price}")
        if not 0.0 <= clip_share <= 1.0:
            raise ValueError(f"clip_share must lie between 0 and 1, got {clip_share}")
        if not price_rate > 0.0:
            raise ValueError(f"price_rate must be positive, got {price_rate}")
        # `tiled_objective` hands over this many ranked classes instead of logits (`losses.ClipModule`)
        self.features = self.summary_features = features
        self.sharpness = float(sharpness)
        self.lower_min, self.lower_max = -RAMP_REACH * float(sharpness), float(lower_max)
        self.upper_min, self.upper_max = float(upper_min), float(upper_max)
        self.objective, self.mass_price = objective, mass_price
        self.clip_share, self.price_rate = float(clip_share), float(price_rate)
        self.inner = nn.Linear(2 * features + 2, hidden)
        self.outer = nn.Linear(hidden, 2)
        self.register_buffer("price", torch.empty((), dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise afresh: the last layer is zero, so that both bounds start in the middle of their ranges."""
        self.inner.reset_parameters()
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        self.price.fill_(START_PRICE if self.mass_price == "auto" else float(self.mass_price))

    def forward(
        self,
        teacher_logits: Tensor | None = None,
        student_logits: Tensor | None = None,
        *,
        summary: PairSummary | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Bounds of every token.

        Args:
            teacher_logits: `[..., V]`, over the temperature; detached here.
            student_logits: `[..., V]`, likewise.
            summary: in place of both logits, with fields `[R, F]` and `[R]`.

        Returns:
            (lower `[...]`, upper `[...]`) in the parameters' dtype, float32 at least.

        Raises:
            ValueError: neither logits nor a summary were given, or the vocabularies differ in width.
        """
        shape: torch.Size | None = None
        if summary is None:
            if teacher_logits is None or student_logits is None:
                raise ValueError("ClipNetwork needs teacher and student logits, or a summary of both")
            shape = teacher_logits.shape[:-1]
            log_p, log_q = log_probabilities(teacher_logits.detach(), student_logits.detach())
            rows = [log_probs.reshape(-1, log_probs.shape[-1]) for log_probs in (log_p, log_q)]
            summary = _summary(rows[0], rows[1], self.features)
        with torch.autocast(summary.teacher_entropy.device.type, enabled=False):
            lower, upper = self._bounds(summary)
        return (lower, upper) if shape is None else (lower.reshape(shape), upper.reshape(shape))

    def _bounds(self, summary: PairSummary) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(self.inner.weight.dtype, torch.float32)
        missing = self.features - summary.teacher_log_probs.shape[-1]
        columns = [
            nn.functional.pad(part.to(dtype).clamp_min(LOWEST_LOG_PROB), (0, missing), value=LOWEST_LOG_PROB)
            for part in (summary.teacher_log_probs, summary.student_log_probs)
        ]
        entropies = torch.stack([summary.teacher_entropy, summary.student_entropy], dim=-1).to(dtype)
        inputs = torch.cat([*columns, entropies], dim=-1).detach() * INPUT_SCALE
        hidden = nn.functional.silu(_linear(self.inner, inputs, dtype))
        share = torch.sigmoid(_linear(self.outer, hidden, dtype))
        lower = self.lower_min + (self.lower_max - self.lower_min) * share[..., 0]
        upper = self.upper_min + (self.upper_max - self.upper_min) * share[..., 1]
        return lower, upper

    def limit_shares(self, lower: Tensor, upper: Tensor) -> dict[str, Tensor]:
        """Share of tokens whose bound lies within 4 s of either limit of its range (NaN without tokens)."""
        near = RAMP_REACH * self.sharpness
        return {
            "lower_min": (lower <= self.lower_min + near).float().mean(),
            "lower_max": (lower >= self.lower_max - near).float().mean(),
            "upper_min": (upper <= self.upper_min + near).float().mean(),
            "upper_max": (upper >= self.upper_max - near).float().mean(),
        }

    @torch.no_grad()
    def update_price(self, clipped: Tensor | float, least: Tensor | float, most: Tensor | float) -> None:
        """One step of the steering, after an optimiser step: log price += rate * (share - clip_share).

        share = (clipped - least) / (most - least), where the three are the step's mean clipped mass (over all
        ranks) at the network's bounds, at (-4 s, upper_max) and at (lower_max, upper_min). Nothing happens if
        most - least < 1e-6, with a fixed price, or with the joint objective. The price stays in [1e-3, 1e3].
        """
        if self.objective != "priced" or self.mass_price != "auto":
            return
        low, spread = float(least), float(most) - float(least)
        # written so that NaN doesn't steer either
        if not spread >= MIN_STEERABLE:
            return
        step = self.price_rate * ((float(clipped) - low) / spread - self.clip_share)
        if math.isfinite(step):
            price = math.exp(math.log(float(self.price)) + step)
            self.price.fill_(min(max(price, PRICE_RANGE[0]), PRICE_RANGE[1]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Casting the module leaves the price in float32: in bfloat16 a step of 0.5 % would be rounded away."""
        price = self.price
        super()._apply(fn, recurse)
        if self.price.dtype != torch.float32:
            self.price = price.to(self.price.device)
        return self


def _summary(teacher_log_probs_RV: Tensor, student_log_probs_RV: Tensor, features: int) -> PairSummary:
    """Of log-probabilities, ranked with a selection of its own."""
    values, ids = top_classes(teacher_log_probs_RV, features)
    return PairSummary(
        values,
        student_log_probs_RV.gather(1, ids),
        entropy(teacher_log_probs_RV, teacher_log_probs_RV.exp()),
        entropy(student_log_probs_RV, student_log_probs_RV.exp()),
    )


def _linear(layer: nn.Linear, inputs: Tensor, dtype: torch.dtype) -> Tensor:
    return nn.functional.linear(inputs, layer.weight.to(dtype), layer.bias.to(dtype))


def _check_ranges(lower_max: float, upper_min: float, upper_max: float, sharpness: float) -> None:
    if not (sharpness > 0 and math.isfinite(sharpness)):
        raise ValueError(
            f"sharpness must be positive for learned bounds (0 gives them no gradient), got {sharpness}"
        )
    if not lower_max <= upper_min < upper_max:
        raise ValueError(f"need lower_max <= upper_min < upper_max, got {lower_max}, {upper_min} and {upper_max}")
    if not lower_max > -RAMP_REACH * sharpness:
        raise ValueError(f"lower_max must exceed -4 * sharpness = {-RAMP_REACH * sharpness}, got {lower_max}")
