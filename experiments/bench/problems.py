"""What the objective is timed on: models as peaked as language models on text, artificial and real.

A nearly uniform student flatters: rows of one class far above the rest take paths that it never does. `figures`
says how peaked a problem is, and the report prints it beside the times.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from experiments.bench.pair import folder_pair
from mgsr.losses import IGNORED, CachedRows, top_of_logits
from mgsr.models.output_layer import last_hidden, output_head

TOKENS, MASKED = 1024, 128


@dataclass
class Problem:
    """Inputs of one call; gradients go to the student's hidden states and output layer."""

    student: Tensor
    student_weight: Tensor
    teacher: Tensor
    teacher_weight: Tensor
    labels: Tensor
    span_ids: Tensor
    kept_classes: dict[int, CachedRows] = field(default_factory=dict)

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.student, self.student_weight

    def clear(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None

    def backward(self, loss: Tensor) -> float:
        loss.backward()
        return float(loss.detach())

    def cached(self, k: int) -> CachedRows:
        """The teacher's k most probable classes of every row, as its cache holds them; made at the first call."""
        if k not in self.kept_classes:
            parts = [top_of_logits(part @ self.teacher_weight.T, k) for part in self.teacher.split(128)]
            values, ids, tail = (torch.cat(each) for each in zip(*parts, strict=True))
            self.kept_classes[k] = CachedRows(torch.arange(len(values)), values, ids, tail)
        return self.kept_classes[k]


def artificial(tokens: int = TOKENS, classes: int = 50257, *, hidden: tuple[int, int] = (256, 384)) -> Problem:
    """An eighth of the tokens is masked; three of four tokens lie in spans of four.

    The teacher knows `hidden[1]` directions, of which the student sees the strongest `hidden[0]`, with some noise.
    """
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    (narrow, wide), weak, spread = hidden, 0.25, 3.9
    teacher_weight = normal(classes, wide)
    teacher_weight[:, narrow:] *= weak
    teacher_weight *= spread / (narrow + weak**2 * (wide - narrow)) ** 0.5
    teacher = normal(tokens, wide) * (torch.rand(tokens, 1, generator=draw) * 1.1 + 0.9)
    labels = torch.randint(0, classes, (tokens,), generator=draw)
    labels[: tokens // 8] = IGNORED
    return Problem(
        student=(teacher[:, :narrow] + 0.1 * normal(tokens, narrow)).requires_grad_(),
        student_weight=(teacher_weight[:, :narrow] + 0.02 * normal(classes, narrow)).requires_grad_(),
        teacher=teacher,
        teacher_weight=teacher_weight,
        labels=labels,
        span_ids=_spans(tokens),
    )


def _spans(tokens: int) -> Tensor:
    places = torch.arange(tokens)
    return torch.where(places % 16 < 12, places // 4, -1)


@torch.no_grad()
def of_text(teacher: str, student: str, data: str) -> Problem:
    """Last states and output layers of two model folders on the first rows of a data file.

    As in `artificial`, 128 tokens of prompts are masked and 896 tokens of answers count; spans are of four tokens.

    Raises:
        ValueError: the first 256 rows have fewer tokens than that.
    """
    pair = folder_pair(teacher, student, data, prompts=256)
    read: list[tuple[Tensor, Tensor, Tensor]] = []
    for row in pair.examples:
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
        labels = ids[0, 1:].clone()
        labels[: len(row.prompt_ids) - 1] = IGNORED
        read.append((last_hidden(pair.student, ids)[0, :-1], last_hidden(pair.teacher, ids)[0, :-1], labels))
        if sum(int((each != IGNORED).sum()) for *_, each in read) >= TOKENS - MASKED:
            break
    states, taught, labels = (torch.cat(each) for each in zip(*read, strict=True))
    masked, counted = (torch.nonzero(mask).flatten() for mask in (labels == IGNORED, labels != IGNORED))
    rows = torch.cat([masked[:MASKED], counted[: TOKENS - MASKED]])
    if len(rows) < TOKENS:
        raise ValueError(f"{data}: its first rows have fewer than {TOKENS - MASKED} tokens of answers")
    layers = [output_head(model).weight[: pair.vocab_size].clone() for model in (pair.student, pair.teacher)]
    return Problem(
        student=states[rows].requires_grad_(),
        student_weight=layers[0].requires_grad_(),
        teacher=taught[rows],
        teacher_weight=layers[1],
        labels=labels[rows],
        span_ids=_spans(TOKENS),
    )


@torch.no_grad()
def figures(problem: Problem) -> dict[str, float]:
    """How peaked both models are, and how alike: means over the tokens that count."""
    kept = problem.labels != IGNORED
    log_p = torch.log_softmax(problem.teacher[kept] @ problem.teacher_weight.T, -1)
    log_q = torch.log_softmax(problem.student[kept] @ problem.student_weight.T, -1)
    found = {"classes": float(log_p.shape[1])}
    for name, log_probs in (("teacher", log_p), ("student", log_q)):
        found[f"{name}_hidden"] = float(getattr(problem, name).shape[1])
        found[f"{name}_top_1"] = float(log_probs.exp().amax(-1).mean())
        found[f"{name}_entropy"] = float(-(log_probs.exp() * log_probs).sum(-1).mean())
    found["same_argmax"] = float((log_p.argmax(-1) == log_q.argmax(-1)).float().mean())
    found["kl"] = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    return found
