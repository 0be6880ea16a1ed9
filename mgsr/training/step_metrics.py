"""What one optimiser step is made of, added up over micro-batches and ranks.

Shapes: N response rows of a micro-batch, B sequences.
"""

from __future__ import annotations

import math
import time
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mgsr.data.collate import Batch
from mgsr.losses import LossTerms, Objective, OutputLayer, TermCounts, Weights
from mgsr.models.clip_network import ClipNetwork
from mgsr.runtime import devices
from mgsr.runtime.errors import UserError
from mgsr.runtime.ranks import gathered, is_first

TERMS = ("sft", "dac_kl", "span")
ROW_FIGURES = ("retained_mass", "teacher_entropy", "lower", "upper", "clipped", "clipped_min", "clipped_max")
FIGURES = ("loss", "clip_penalty", *(f"loss_{term}" for term in TERMS), "rows", *ROW_FIGURES)


class StepMetrics:
    """Sums of a step's terms and per-token figures.

    Attributes:
        tokens, slots: read since the last `restart`, without and with padding, on this rank.
        likelihood_after: example id -> teacher log-likelihood per token of its model-written text.
        last_rows: per-token figures of the last micro-batch that has some.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.tokens = self.slots = 0
        self.likelihood_after: dict[int, float] = {}
        self.last_rows: Any = None
        self._learned = objective.clip_network is not None
        self._sums: dict[str, Tensor] = {}
        self._rows = 0
        self._clock = time.monotonic()
        # examples of micro-batches, and the likelihoods of their text, which nobody has read yet
        self._unread: list[tuple[tuple[int | None, ...], Tensor]] = []

    def add(self, batch: Batch, terms: LossTerms) -> None:
        """One micro-batch. Its terms are over the whole step's denominators, so the step's are their sums."""
        parts = {"sft": terms.sft, "dac_kl": terms.dac_kl, "span": terms.span}
        if not self.objective.weights[0]:
            del parts["sft"]
        if not self.objective.needs_teacher:
            del parts["dac_kl"], parts["span"]
        self._sum("loss", terms.total)
        self._sum("clip_penalty", terms.clip_penalty)
        for name, value in parts.items():
            self._sum(f"loss_{name}", value)
        self.tokens += batch.tokens
        self.slots += batch.slots
        rows = terms.rows
        if rows is None or rows.index.numel() == 0:
            return
        if any(batch.written):
            examples = (
                e if is_written else None for e, is_written in zip(batch.example_ids, batch.written, strict=True)
            )
            self._unread.append((tuple(examples), _means(batch, rows.index, rows.teacher_log_prob)))
        self._rows += rows.index.numel()
        for name in ROW_FIGURES:
            value = getattr(rows, name)
            if value is not None and (self._learned or name not in ("lower", "upper")):
                self._sum(name, value.sum())
        self.last_rows = rows

    def reduce(
        self, strategy: Any = None, local: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, float], dict[str, float]]:
        """The step's sums, and numbers of this rank; the next step starts from nothing.

        All that the step leaves on a GPU is read here, at once: whoever reads waits for all its work.

        Args:
            strategy: adds the sums up over all its ranks, if one is given.
            local: scalars to read along.
        """
        sums, self._sums = self._sums, {}
        rows, self._rows = self._rows, 0
        unread, self._unread = self._unread, []
        local, device = local or {}, sums["loss"].device
        if rows:
            sums["rows"] = torch.full((), float(rows), device=device)
        if strategy is None and devices.reading_is_free(device):
            # nothing to wait for: one by one is quicker than to stack them
            self._note((examples, means.tolist()) for examples, means in unread)
            step = {name: float(sums[name]) for name in FIGURES if name in sums}
            return step, {name: float(value) for name, value in local.items()}
        # every rank reduces the same names, whatever its own micro-batches held
        zero = torch.zeros((), dtype=torch.float64, device=device)
        values = torch.stack([sums[name].double() if name in sums else zero for name in FIGURES])
        if strategy is not None:
            values = strategy.reduce(values, reduce_op="sum")
        reported = set(sums) if strategy is None else set(self._reported())
        parts = [values, *local.values(), *(means for _, means in unread)]
        read = iter(torch.cat([part.double().reshape(-1) for part in parts]).tolist())
        step = {name: value for name, value in zip(FIGURES, read, strict=False) if name in reported}
        mine = dict(zip(local, read, strict=False))
        self._note((examples, islice(read, means.numel())) for examples, means in unread)
        return step, mine

    def steer_price(self, step: Mapping[str, float]) -> None:
        """Have a priced clip network follow the masses that a step has clipped."""
        clip, rows = self.objective.clip_network, step.get("rows")
        if isinstance(clip, ClipNetwork) and "clipped_min" in step and rows:
            clip.update_price(step["clipped"] / rows, step["clipped_min"] / rows, step["clipped_max"] / rows)

    def curves(self, step: Mapping[str, float]) -> dict[str, float]:
        """What is drawn of a step: its terms, means over its tokens; of all ranks, each of which has to ask.

        The rate and the share of padding are those since `restart`.
        """
        curves = {f"train/{k}": v for k, v in step.items() if k == "loss" or k.startswith("loss_")}
        tokens, slots = (sum(counted) for counted in zip(*gathered((self.tokens, self.slots)), strict=True))
        curves["train/tokens_per_second"] = tokens / max(1e-9, time.monotonic() - self._clock)
        if slots:
            curves["train/padding"] = 1.0 - tokens / slots
        for name in ("retained_mass", "lower", "upper", "teacher_entropy"):
            if step.get("rows") and name in step:
                curves[f"dac/{name}"] = step[name] / step["rows"]
        clip = self.objective.clip_network
        if isinstance(clip, ClipNetwork) and clip.objective == "priced":
            curves["dac/price"] = float(clip.price)
        return curves

    def _reported(self) -> Iterator[str]:
        """What some rank has collected, by what the objective is."""
        yield from ("loss", "clip_penalty")
        if self.objective.weights[0]:
            yield "loss_sft"
        if self.objective.needs_teacher:
            yield from ("loss_dac_kl", "loss_span", "rows", "teacher_entropy")
            if self.objective.clip is not None:
                yield from ("retained_mass", "clipped")
            if self._learned:
                yield from ("lower", "upper")
                if getattr(self.objective.clip, "objective", "") == "priced":
                    yield from ("clipped_min", "clipped_max")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: of all ranks, so that any number of them can go on; every rank has to ask."""
        everyone = gathered((self.likelihood_after, self.tokens, self.slots))
        likelihoods, tokens, slots = zip(*everyone, strict=True)
        return {"likelihood_after": dict(ChainMap(*likelihoods)), "tokens": sum(tokens), "slots": sum(slots)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`: one rank takes what all had counted, as it is added up in the end."""
        if is_first():
            self.likelihood_after = dict(state["likelihood_after"])
            self.tokens, self.slots = int(state["tokens"]), int(state["slots"])

    def take_likelihoods(self) -> dict[int, float]:
        """`likelihood_after` of all ranks, each of which has to ask; each is handed out once."""
        taken, self.likelihood_after = self.likelihood_after, {}
        return dict(ChainMap(*gathered(taken)))

    def restart(self) -> None:
        """Count tokens, slots and seconds from here on."""
        self.tokens = self.slots = 0
        self._clock = time.monotonic()

    def _sum(self, name: str, value: Tensor) -> None:
        value = value.detach()
        self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()

    def _note(self, read: Iterable[tuple[Sequence[int | None], Iterable[float]]]) -> None:
        for examples, means in read:
            for example, mean in zip(examples, means, strict=True):
                if example is not None:
                    self.likelihood_after.setdefault(example, mean)


def _means(batch: Batch, index_N: Tensor, log_prob_N: Tensor) -> Tensor:
    """Teacher log-likelihood per token of every sequence, `[B]`."""
    rows_N = index_N // (batch.input_ids.shape[1] - 1)
    total_B = log_prob_N.new_zeros(batch.input_ids.shape[0]).index_add_(0, rows_N, log_prob_N)
    count_B = torch.zeros_like(total_B).index_add_(0, rows_N, torch.ones_like(log_prob_N))
    return total_B / count_B.clamp(min=1)


def non_finite(step: Mapping[str, float]) -> str:
    """Names of a step's figures that are NaN or infinite, comma-separated; empty where all are well.

    The terms are named: the total is bad because one of them is.
    """
    bad = [name for name in step if not math.isfinite(step[name])]
    return ", ".join([name for name in bad if name.startswith("loss_") or name == "clip_penalty"] or bad)


def term_gradient_norms(
    losses: Callable[[Weights], Iterable[Tensor]],
    weights: Weights,
    parameters: Sequence[Tensor],
    reduce: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> dict[str, float]:
    """Norm of each term's own gradient over a whole optimiser step, as it enters the sum.

    Args:
        losses: of the step's micro-batches on this rank, for `weights` of which one is not 0; terms without weight
            are left out.
        reduce: adds a gradient up over the ranks.
    """
    norms: dict[str, Tensor] = {}
    for i, name in enumerate(TERMS):
        if not weights[i]:
            continue
        alone = (weights[0] * (i == 0), weights[1] * (i == 1), weights[2] * (i == 2))
        sums: list[Tensor | None] = [None] * len(parameters)
        for loss in losses(alone):
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            for k, new in enumerate(found):
                old = sums[k]
                sums[k] = new if old is None else old if new is None else old + new
        # every rank reduces every parameter, also one that its own rows do not reach
        whole = (reduce(torch.zeros_like(p) if g is None else g) for p, g in zip(parameters, sums, strict=True))
        norms[name] = torch.stack([g.float().square().sum() for g in whole]).sum().sqrt()
    # read at once
    return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True)) if norms else {}


MATCHED_BATCHES = 20
"""Optimiser steps' worth of dev rows that `divergence_factor` is measured on."""


def divergence_factor(
    objective: Objective,
    read: Iterable[tuple[Batch, Tensor, OutputLayer, Tensor, OutputLayer]],
    vocab_size: int,
    reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> float:
    """What makes the divergence's gradient to the student's logits as large as the forward KL's.

    Norms are over the tokens of all batches together, whatever the batches are.

    Args:
        read: batches with the student's and the teacher's last hidden states and output layers.
        reduce: adds sums up over the ranks.

    Raises:
        UserError: one of the two has no gradient, or none that is finite.
    """
    own = Objective((0.0, 1.0, 0.0), objective.clip, objective.options, objective.divergence_options)
    like = Objective((0.0, 1.0, 0.0), None, {**objective.options, "divergence": "forward_kl"})
    squares = torch.zeros(2, dtype=torch.float64)
    for batch, hidden, layer, taught, teacher in read:
        # sums over tokens: a token's share must not hang on its batch
        targets = batch.targets._replace(counts=TermCounts(1, 1, 1))
        fixed = replace(layer, weight=layer.weight.detach())
        for i, one in enumerate((own, like)):
            found: list[Tensor] = []

            def watch(gradient: Tensor, found: list[Tensor] = found) -> None:
                found.append(gradient.double().square().sum())

            with torch.enable_grad():
                states = hidden.detach().requires_grad_()
                one(targets, states, fixed, taught, teacher, vocab_size=vocab_size, watch=watch)
            if found:
                squares[i] += torch.stack(found).sum().cpu()
    mine, theirs = reduce(squares).sqrt().tolist()
    if not (mine > 0 and theirs > 0 and math.isfinite(mine) and math.isfinite(theirs)):
        raise UserError(
            f"`objective.match_gradient`: at the start the gradient has the norm {mine:g}, and that of forward KL "
            f"{theirs:g}; set objective.match_gradient=false"
        )
    return theirs / mine


def gradient_norm(part: nn.Module, device: torch.device) -> Tensor:
    """Norm of the gradients of a model, for `clip_grads_with_norm_`; 0 where there are none."""
    gradients = [p.grad for p in part.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(gradients) if gradients else torch.zeros((), device=device)
