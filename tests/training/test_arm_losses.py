"""Every arm of a shipped study minimises what its paper says.

The arm's configuration is read from the study's file, its step planned and its objective built as a run does it,
and the loss compared with numpy. The constants of the papers stand here once more, as numbers: a default, a base
configuration or an arm that says something else is an error. What no arm has is named by overrides of `full`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mgsr.config.schema import ExperimentConfig
from mgsr.data.splits import Annotation
from mgsr.losses import LossTerms, MiniLLMObjective
from mgsr.models.clip_network import ClipNetwork
from mgsr.rounds.unrevised import WRITERS
from mgsr.training.placement import Placement
from tests.losses import reference
from tests.scrg.tiny import next_logits, prompts, tiny
from tests.training.by_definition import (
    CLASSES,
    EOS,
    TEXTS,
    Divergence,
    arm_config,
    built,
    committed,
    expected_minillm,
    expected_terms,
    problem,
    product_loss,
)

INF = math.inf


def kl_kind(name: str, value: float = math.nan) -> Divergence:
    return partial(reference.divergence, name, value=value)


def dac(lower: float, upper: float, **options: float | str | bool) -> Divergence:
    """DAC-KL at bounds that are the same for all tokens."""

    def divergence(p: np.ndarray, q: np.ndarray) -> float:
        return reference.dac_kl(p, q, lower, upper, **options)[0]  # type: ignore[arg-type]

    return divergence


def concrete_score(p: np.ndarray, q: np.ndarray, tau: float) -> float:
    """At temperature 1: log-probabilities are logits up to a constant, which has no part in the differences."""
    weights = reference.softmax(np.log(q), tau)
    return reference.concrete_score(np.log(q) - np.log(p), weights, weights)


# the clip network starts in the middle of [-4 * 0.005, 0.3] and of [0.9, 0.97]
AT_START = (0.14, 0.935)
FORWARD, REVERSE = kl_kind("forward_kl"), kl_kind("reverse_kl")


@dataclass(frozen=True)
class Loss:
    """Weights of cross-entropy, divergence and span correlation, and what they are weights of.

    `written`: another divergence on text that is neither ground truth nor the teacher's half of a pair.
    """

    weights: tuple[float, float, float]
    divergence: Divergence = FORWARD
    cross_entropy_on: str = "ground truth"
    temperature: float = 1.0
    written: Divergence | None = None


@dataclass(frozen=True)
class Text:
    """Who writes, and how many of ten prompts begin on written text."""

    writer: str
    count: int


MIXTURE = partial(reference.alpha_mixture, alpha=0.5, lam=0.5, of="alpha_beta")
UNSURE = partial(reference.entropy_aware, threshold=0.8, alpha=1.0)
SKEWED = kl_kind("skewed_forward_kl", 0.1), kl_kind("skewed_reverse_kl", 0.1)
MORE_SKEWED = kl_kind("skewed_forward_kl", 0.6), kl_kind("skewed_reverse_kl", 0.6)
TOWARDS_TEACHER = kl_kind("symmetric_kl", 0.9), kl_kind("jensen_shannon", 0.9)
BASELINES = {
    "full": (Text("student, corrected once", 5), Loss((1, 1, 1), dac(*AT_START))),
    "sft": (Text("nobody", 0), Loss((1, 0, 0))),
    # Hinton et al. 2015
    "kd": (Text("nobody", 0), Loss((1, 1, 0), FORWARD)),
    # Kim and Rush 2016
    "seqkd": (Text("teacher", 10), Loss((1, 0, 0), cross_entropy_on="written")),
    # Lin et al. 2020
    "imitkd": (Text("student", 5), Loss((0, 1, 0), FORWARD)),
    # Agarwal et al. 2024: beta 0.5
    "gkd": (Text("student", 5), Loss((0, 1, 0), kl_kind("jensen_shannon", 0.5))),
    # Ko et al. 2024: alpha 0.1; a tenth of the text, until the dev loss rises
    "distillm": (Text("student", 1), Loss((0, 1, 0), SKEWED[1])),
    # Ko et al. 2025
    "distillm2": (Text("paired", 10), Loss((0, 1, 0), SKEWED[0], written=SKEWED[1])),
    # Xu et al. 2025
    "skd": (Text("interleaved, within the top 25", 10), Loss((0, 1, 0), FORWARD)),
    "opd": (Text("student", 10), Loss((0, 1, 0), REVERSE)),
    "ssd": (Text("switched, JSD above 0.3", 10), Loss((0, 1, 0), FORWARD)),
    # Jung et al. 2025
    "todi": (Text("student", 5), Loss((0.5, 0.5, 0), reference.todi, temperature=2.0)),
    # Wang et al. 2025
    "alpha_beta": (Text("student", 5), Loss((0, 1, 0), partial(reference.alpha_beta, alpha=0.2, beta=0.7))),
    # Wu et al. 2024
    "adaptive_kl": (Text("student", 5), Loss((0, 1, 0), partial(reference.adaptive_kl, mu=0.5))),
    # Shin et al. 2025
    "alpha_mixture": (Text("student", 5), Loss((0, 1, 0), MIXTURE)),
    # Kim et al. 2025
    "concrete_score": (Text("student", 5), Loss((0, 1, 0), partial(concrete_score, tau=1.5))),
    # arXiv 2603.07079
    "entropy_aware": (Text("student", 5), Loss((0, 1, 0), UNSURE)),
    # arXiv 2601.07155, as it begins
    "veto": (Text("student", 5), Loss((0, 1, 0), partial(reference.veto, beta=0.8))),
}
# beside all of them stand cross-entropy and span correlation, each with weight 1
DIVERGENCES = {
    "full": dac(*AT_START),
    "full_kl": FORWARD,
    "reverse_kl": REVERSE,
    "jensen_shannon": kl_kind("jensen_shannon", 0.5),
    "fixed_at_start": dac(*AT_START),
    "top_k_10": dac(-INF, 10 / CLASSES, sharpness=0, quantile="rank"),
    "target_only": dac(INF, INF),
    "literal": dac(*AT_START, form="literal"),
}
# likewise, but no arm of a study has them: overrides of full
UNSHIPPED = {
    "symmetric_kl": ("objective.divergence=symmetric_kl", kl_kind("symmetric_kl", 0.5)),
    "skewed_forward_kl": ("objective.divergence=skewed_forward_kl", SKEWED[0]),
    "skewed_reverse_kl": ("objective.divergence=skewed_reverse_kl", SKEWED[1]),
    "total_variation": ("objective.divergence=total_variation", kl_kind("total_variation")),
    "fixed_wide": ("clip.mode=fixed clip.lower=0.1 clip.upper=0.95", dac(0.1, 0.95)),
    "top_p_0.9": (
        "clip.mode=fixed clip.lower=-.inf clip.upper=0.9 clip.sharpness=0",
        dac(-INF, 0.9, sharpness=0),
    ),
    "fixed_head_kept": ("clip.mode=fixed clip.lower=-.inf clip.upper=0.9", dac(-INF, 0.9)),
    "high_density_only": ("clip.keep_target=false", dac(*AT_START, keep_target=False)),
}
LOSSES = {
    "baselines": {arm: loss for arm, (_, loss) in BASELINES.items()},
    "dac_kl": {arm: Loss((1, 1, 1), divergence) for arm, divergence in DIVERGENCES.items()},
    "unshipped": {name: Loss((1, 1, 1), divergence) for name, (_, divergence) in UNSHIPPED.items()},
}


def config_of(study: str, name: str, *overrides: str) -> ExperimentConfig:
    """Of what `LOSSES` has."""
    if study == "unshipped":
        return arm_config("dac_kl", "full", *UNSHIPPED[name][0].split(), *overrides)
    return arm_config(study, name, *overrides)


def check(config: ExperimentConfig, loss: Loss, folder: Path, progress: float = 0.0) -> float:
    """That the loss of a run's step is the definitions'; returns it."""
    objective, given = built(config), problem(config, folder)
    objective.progress = progress
    # also where a weight has nothing to weigh, as on written text alone
    assert objective.weights == loss.weights
    got = product_loss(objective, given)
    written = loss.written or loss.divergence
    terms = expected_terms(given, loss.divergence, written, loss.cross_entropy_on, loss.temperature)
    total = sum(weight * term for weight, term in zip(loss.weights, terms, strict=True))
    # the clip network has float32 weights, and a ramp is as steep as 1 / sharpness
    near = partial(pytest.approx, rel=1e-5)
    for weight, mine, term in zip(loss.weights, (got.sft, got.dac_kl, got.span), terms, strict=True):
        if weight:
            assert float(mine) == near(term)
    assert trained_on(got) == near(total)
    return total


def trained_on(terms: LossTerms) -> float:
    return float((terms.total + terms.clip_penalty).detach())


@pytest.mark.parametrize("arm", BASELINES)
def test_baselines(arm: str, tmp_path: Path) -> None:
    check(arm_config("baselines", arm), LOSSES["baselines"][arm], tmp_path)


@pytest.mark.parametrize(
    ("study", "name"), [(study, name) for study in ("dac_kl", "unshipped") for name in LOSSES[study]]
)
def test_divergences_and_clipping(study: str, name: str, tmp_path: Path) -> None:
    check(config_of(study, name), LOSSES[study][name], tmp_path)


def test_cross_entropy_is_on_the_teacher_s_half_of_paired_text(tmp_path: Path) -> None:
    halves = "objective.divergence=skewed_forward_kl objective.written_divergence=skewed_reverse_kl"
    config = arm_config("dac_kl", "full", "scrg.text=paired", "mixture.student_fraction=1", *halves.split())
    check(config, Loss((1, 1, 1), SKEWED[0], "teacher's half", written=SKEWED[1]), tmp_path)


@pytest.mark.parametrize(("progress", "divergence"), [(0.5, partial(reference.veto, beta=0.4)), (1.0, FORWARD)])
def test_veto_ends_as_forward_kl(progress: float, divergence: Divergence, tmp_path: Path) -> None:
    check(arm_config("baselines", "veto"), Loss((0, 1, 0), divergence), tmp_path, progress)


def test_no_baseline_is_left_out() -> None:
    assert set(committed("baselines").arms) == {*BASELINES, "minillm"}


def writer(config: ExperimentConfig) -> str:
    scrg = config.scrg
    if not scrg.enabled:
        return "nobody"
    if scrg.text == "interleaved":
        return f"interleaved, within the top {scrg.interleaved_top_k}"
    if scrg.text == "switched" and scrg.switch == "threshold":
        return f"switched, JSD above {scrg.switch_threshold}"
    if scrg.text != "student":
        return scrg.text
    return {0: "student", 1: "student, corrected once"}[scrg.passes]


@pytest.mark.parametrize("arm", [*BASELINES, "minillm"])
def test_text_of_the_baselines(arm: str, tmp_path: Path) -> None:
    text = BASELINES[arm][0] if arm in BASELINES else Text("mixed", 5)
    config = arm_config("baselines", arm)
    assert writer(config) == text.writer
    rows = problem(config, tmp_path).step.rows
    count = {kind: sum(row.response_ids == texts[row.example_id] for row in rows) for kind, texts in TEXTS.items()}
    taught = text.count // 2 if text.writer == "paired" else 0
    expected = {"ground truth": 10 - text.count, "written": text.count - taught, "teacher's half": taught}
    assert count == expected and len(rows) == 10


@pytest.mark.parametrize(
    ("study", "arm", "overrides", "loss"),
    [
        ("baselines", "kd", "temperature=2", Loss((1, 1, 0), FORWARD, temperature=2.0)),
        ("baselines", "full", "temperature=2", Loss((1, 1, 1), dac(*AT_START), temperature=2.0)),
        ("dac_kl", "reverse_kl", "temperature=0.5", Loss((1, 1, 1), REVERSE, temperature=0.5)),
        ("baselines", "full", "w_sft=0.5 w_dac=2 w_span=30", Loss((0.5, 2, 30), dac(*AT_START))),
        ("unshipped", "symmetric_kl", "divergence_options.weight=0.9", Loss((1, 1, 1), TOWARDS_TEACHER[0])),
        ("dac_kl", "jensen_shannon", "divergence_options.beta=0.9", Loss((1, 1, 1), TOWARDS_TEACHER[1])),
        ("unshipped", "skewed_forward_kl", "divergence_options.alpha=0.6", Loss((1, 1, 1), MORE_SKEWED[0])),
        ("unshipped", "skewed_reverse_kl", "divergence_options.alpha=0.6", Loss((1, 1, 1), MORE_SKEWED[1])),
        # so sharp a teacher is unsure of some tokens alone
        ("baselines", "entropy_aware", "temperature=0.3", Loss((0, 1, 0), UNSURE, temperature=0.3)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_values_make_another_loss(study: str, arm: str, overrides: str, loss: Loss, tmp_path: Path) -> None:
    before = check(config_of(study, arm), LOSSES[study][arm], tmp_path / "default")
    others = [f"objective.{override}" for override in overrides.split()]
    after = check(config_of(study, arm, *others), loss, tmp_path / "other")
    assert abs(after - before) > 1e-3 * before


# -- MiniLLM (Gu et al. 2024), which has an objective of its own --------------------------------------------


def test_minillm(tmp_path: Path) -> None:
    config = arm_config("baselines", "minillm")
    objective, given = built(config), problem(config, tmp_path)
    assert isinstance(objective, MiniLLMObjective) and objective.weights == (1, 1, 0)
    got, (sft, policy) = product_loss(objective, given), expected_minillm(given)
    assert (float(got.sft), float(got.dac_kl), float(got.span)) == pytest.approx((sft, policy, 0.0))
    assert trained_on(got) == pytest.approx(sft + policy)


def test_minillm_draws_a_fifth_from_the_teacher() -> None:
    """Its importance weights are right if the text's log-probabilities are those of 0.2 p + 0.8 q."""
    config = arm_config("baselines", "minillm", "scrg.max_new_tokens=8")
    student, teacher = tiny("llama", 2), tiny("gpt2", 2)
    tokenizer = SimpleNamespace(eos_token_id=EOS, pad_token_id=EOS, decode=lambda ids, **options: "")
    models = Placement(student, teacher)
    ids = {"vocab_size": 11, "eos_token_id": EOS, "pad_token_id": EOS, "device": torch.device("cpu")}
    writer = WRITERS[config.scrg.text](config, models, tokenizer, Annotation(None), **ids)  # type: ignore[arg-type]
    for entry in writer.write(prompts(4), 0)[0]:
        read, expected = list(entry.revised.prompt_ids), []
        for token in entry.revised.response_ids:
            p, q = (reference.softmax(next_logits(model)(read))[token] for model in (teacher, student))
            expected.append(math.log(0.2 * p + 0.8 * q))
            read.append(token)
        assert entry.behaviour_log_probs == pytest.approx(expected)


def test_the_clip_network_starts_where_the_losses_above_take_it_to() -> None:
    clip = built(arm_config("baselines", "full")).clip
    assert isinstance(clip, ClipNetwork)
    assert (clip.lower_min, clip.lower_max, clip.upper_min, clip.upper_max) == (-0.02, 0.3, 0.9, 0.97)
