"""The objective of a run on tensors: weights, terms, and which function computes them.

Other ways to distil are settings of the same core, `experiments/baselines/study.yaml`. With p the teacher, q the
student, y* a ground-truth response, y the student's, and all losses per token, sums over the positions t:

- SFT: -log q(y*_t | y*_<t, x).
- KD (Hinton et al. 2015; word level in Kim and Rush 2016): SFT + KL(p || q) on y*.
- SeqKD (Kim and Rush 2016): -log q(y^T_t | y^T_<t, x) on a response y^T of the teacher's, the only text. Theirs is
  found by beam search; here it is sampled.
- ImitKD (Lin et al. 2020): KL(p || q) after prefixes of y* and of y, in the mixture's shares.
- GKD (Agarwal et al. 2024): beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, on y* and y.
- MiniLLM (Gu et al. 2024): KL(q || p) of whole responses by policy gradient, and SFT; see `MiniLLMObjective`.
- DistiLLM (Ko et al. 2024): KL(p || alpha p + (1 - alpha) q), or KL(q || (1 - alpha) p + alpha q), on y* and on
  replayed y, whose share rises when the dev loss does.
- SKD (Xu et al. 2025): KL(p || q) on text the student writes, a token outside the teacher's top K replaced by one
  of the teacher's as it is written.

Shapes: B sequences, T positions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from mgsr.losses.fused.policy_gradient import policy_gradient_objective
from mgsr.losses.fused.tiled_objective import tiled_objective
from mgsr.losses.projection import OutputLayer
from mgsr.losses.reduction import AnswerRows, LossTerms, TermCounts
from mgsr.losses.teacher_topk import CachedRows

Weights = tuple[float, float, float]


class Targets(NamedTuple):
    """What a micro-batch is trained on, `[B, T]`, at the token itself: the state before a token predicts it.

    `labels`: -100 on prompt and padding. `span_ids`: unique within the micro-batch, -1 for none.
    `is_ground_truth [B]`: False for model-written text. `counts`: of the whole optimiser step. `teacher_top`: the
    teacher's distributions of rows that need no states, a row's place among the B (T - 1) that predict a token.
    `behaviour_log_probs`: of the distribution that model-written text was drawn from. `answers`: the rows that
    count, as labels and spans have them; None: looked for there.
    """

    labels: Tensor
    span_ids: Tensor
    is_ground_truth: Tensor
    counts: TermCounts
    teacher_top: CachedRows | None = None
    behaviour_log_probs: Tensor | None = None
    answers: AnswerRows | None = None


class Objective:
    """w_sft * SFT + w_dac * token-level divergence + w_span * span correlation (Liu et al. 2024, eq. 1).

    Args:
        clip: DAC-KL's bounds, see `tiled_objective`.
        options: its further keyword arguments, the same for every call.
        divergence_options, written_options: those of the divergences on ground truth and on written text.

    Attributes:
        needs_teacher: whether a term of the teacher's has weight.
        clip_network: the trained part of the clipping, if there is one.
        has_idle_parameters: whether some trained parameters never get a gradient: those of a clip network
            without weight.
        factor: on the weight of the divergence, 1 unless it is to be as strong as another (`match`).
        match: whether `factor` is measured when training begins.
        progress: share of the training that is done, 0 to 1. An option of the divergence that is a pair of numbers
            goes from the one to the other with it.
    """

    def __init__(
        self,
        weights: Weights,
        clip: Any,
        options: dict[str, Any],
        divergence_options: Mapping[str, Any] | None = None,
        written_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.divergence_options, self.written_options = dict(divergence_options or {}), dict(written_options or {})
        self.factor, self.match = 1.0, False
        self._weights, self.clip, self.options = weights, clip, options
        self.progress = 0.0
        self.needs_teacher = weights[1] > 0 or weights[2] > 0
        self.clip_network: nn.Module | None = clip if isinstance(clip, nn.Module) else None
        self.has_idle_parameters = self.clip_network is not None and not weights[1]

    @property
    def weights(self) -> Weights:
        """Of cross-entropy, divergence and span correlation, as they enter the sum."""
        sft, divergence, span = self._weights
        return sft, divergence * self.factor, span

    def __call__(
        self,
        targets: Targets,
        student_hidden_BTH: Tensor,
        student: OutputLayer,
        teacher_hidden_BTH: Tensor | None,
        teacher: OutputLayer | None,
        *,
        weights: Weights | None = None,
        vocab_size: int | None = None,
        collect_rows: bool = False,
        watch: Callable[[Tensor], None] | None = None,
    ) -> LossTerms:
        """Terms of one micro-batch, each over the denominator of its whole optimiser step.

        Args:
            student_hidden_BTH: last hidden states; state t predicts token t + 1.
            weights: in place of the configured ones, as for the gradient norm of one term.
            vocab_size: number of token ids that teacher and student share.
            collect_rows: keep per-token figures for logging.
            watch: see `tiled_objective`.
        """
        if weights is not None and not weights[1] and not weights[2]:
            # cross-entropy alone, as for its gradient norm: nothing of the teacher enters
            teacher_hidden_BTH = teacher = None
        layers: dict[str, Any] = {"teacher_weight": None}
        for name, layer in (("student", student), ("teacher", teacher)):
            if layer is not None:
                parts = "weight", "bias", "scale", "softcap"
                layers |= {f"{name}_{part}": getattr(layer, part) for part in parts}
        return self.terms(
            targets,
            student_hidden_BTH[:, :-1],
            None if teacher_hidden_BTH is None else teacher_hidden_BTH[:, :-1],
            self.weights if weights is None else weights,
            vocab_size=vocab_size,
            collect_rows=collect_rows,
            **layers,
            **self.options,
            **self._scheduled(),
            **({} if watch is None else {"watch": watch}),
        )

    def _scheduled(self) -> dict[str, Any]:
        """The divergences' options at this point of the training."""
        given = {"divergence_kwargs": self.divergence_options, "written_kwargs": self.written_options}
        return {name: {k: self._now(v) for k, v in options.items()} for name, options in given.items() if options}

    def _now(self, value: Any) -> Any:
        is_pair = isinstance(value, (list, tuple))
        return value[0] + (value[1] - value[0]) * self.progress if is_pair else value

    def terms(
        self, targets: Targets, student: Tensor, teacher: Tensor | None, weights: Weights, **arguments: Any
    ) -> LossTerms:
        """The loss itself.

        Args:
            student: states that predict a next token, `[B, T - 1, H]`.
            teacher: likewise.
            arguments: those of its function: output layers, vocabulary, options.
        """
        labels_N, span_ids_N, truth_N = flat_targets(targets)
        return tiled_objective(
            student_hidden=student.reshape(-1, student.shape[-1]),
            teacher_hidden=None if teacher is None else teacher.reshape(-1, teacher.shape[-1]),
            labels=labels_N,
            span_ids=span_ids_N,
            clip=self.clip,
            weights=weights,
            sft_mask=truth_N,
            counts=targets.counts,
            cached=targets.teacher_top,
            answers=targets.answers,
            **arguments,
        )


class MiniLLMObjective(Objective):
    """w_sft * cross-entropy on ground truth + w_dac * reverse KL by policy gradient on model-written text.

    The text is to be drawn by teacher-mixed sampling, its `behaviour_log_probs` in the targets. The policy part
    stands in the place of the token-level divergence: its value is `LossTerms.dac_kl`, averaged over the
    model-written tokens of the optimiser step. There is neither a span term nor a clip network, and the
    temperature is 1. See `mgsr.losses.policy_gradient` for the loss itself; `options` are keyword arguments of
    `policy_gradient_objective`.
    """

    def __init__(self, weights: Weights, clip: Any, options: dict[str, Any]) -> None:
        if weights[2] != 0 or clip is not None:
            raise ValueError(f"MiniLLM has no span term and no clip, got weights {weights}, clip {clip!r}")
        super().__init__(weights, clip, options)

    def terms(
        self, targets: Targets, student: Tensor, teacher: Tensor | None, weights: Weights, **arguments: Any
    ) -> LossTerms:
        """As `Objective.terms`; `rows` are of the model-written tokens alone."""
        sft, policy, span = weights
        if span != 0:
            raise ValueError(f"MiniLLM has no span term, got the weight {span}")
        counts, behaviour_BT = targets.counts, targets.behaviour_log_probs
        return policy_gradient_objective(
            student_hidden=student,
            teacher_hidden=teacher,
            labels=targets.labels[:, 1:],
            behaviour_log_probs=None if behaviour_BT is None else behaviour_BT[:, 1:],
            is_ground_truth=targets.is_ground_truth,
            weights=(sft, policy),
            counts=(counts.ground_truth_tokens, counts.response_tokens - counts.ground_truth_tokens),
            answers=targets.answers,
            **arguments,
        )


def flat_targets(targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, span ids and ground-truth rows as `[B (T - 1)]`, those that the states before them predict."""
    labels = targets.labels[:, 1:]
    truth = targets.is_ground_truth[:, None].expand_as(labels)
    return labels.reshape(-1), targets.span_ids[:, 1:].reshape(-1), truth.reshape(-1)
