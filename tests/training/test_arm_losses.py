"""Every arm of a shipped study minimises what its paper says.

The arm's configuration is read from the study's file, its step planned and its objective built as a run does it,
and the loss compared with numpy. The constants of the papers stand here once more, as numbers: a default, a base
configuration or an arm that says something else is an error.
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


# the clip network starts in the middle of [-4 * 0.005, 0.3] and of [0.9, 0.97]
AT_START = (0.14, 0.935)
FORWARD, REVERSE = kl_kind("forward_kl"), kl_kind("reverse_kl")


@dataclass(frozen=True)
class Loss:
    """Weights of cross-entropy, divergence and span correlation, and what they are weights of."""

    weights: tuple[float, float, float]
    divergence: Divergence = FORWARD
    cross_entropy_on: str = "ground truth"
    temperature: float = 1.0


@dataclass(frozen=True)
class Text:
    """Who writes, and how many of ten prompts begin on written text."""

    writer: str
    count: int


BASELINES = {
    "mgsr": (Text("student, corrected once", 5), Loss((1, 1, 1), dac(*AT_START))),
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
    "distillm_forward": (Text("student", 1), Loss((0, 1, 0), kl_kind("skewed_forward_kl", 0.1))),
    "distillm_reverse": (Text("student", 1), Loss((0, 1, 0), kl_kind("skewed_reverse_kl", 0.1))),
    # Xu et al. 2025
    "skd": (Text("interleaved, within the top 25", 10), Loss((0, 1, 0), FORWARD)),
}
# beside all of them stand cross-entropy and span correlation, each with weight 1
DIVERGENCES = {
    "full": dac(*AT_START),
    "full_kl": FORWARD,
    "reverse_kl": REVERSE,
    "symmetric_kl": kl_kind("symmetric_kl", 0.5),
    "jensen_shannon": kl_kind("jensen_shannon", 0.5),
    "total_variation": kl_kind("total_variation"),
    "skewed_forward_kl": kl_kind("skewed_forward_kl", 0.1),
    "skewed_reverse_kl": kl_kind("skewed_reverse_kl", 0.1),
    "fixed_at_limits": dac(0.3, 0.9),
    "fixed_at_start": dac(*AT_START),
    "fixed_wide": dac(0.1, 0.95),
    "fixed_head_kept": dac(-INF, 0.9),
    "top_k_10": dac(-INF, 10 / CLASSES, sharpness=0, quantile="rank"),
    "top_p_0.9": dac(-INF, 0.9, sharpness=0),
    "target_only": dac(INF, INF),
    "high_density_only": dac(*AT_START, keep_target=False),
    "literal": dac(*AT_START, form="literal"),
}


def check(config: ExperimentConfig, loss: Loss, folder: Path) -> float:
    """That the loss of a run's step is the definitions'; returns it."""
    objective, given = built(config), problem(config, folder)
    # also where a weight has nothing to weigh, as on written text alone
    assert objective.weights == loss.weights
    got = product_loss(objective, given)
    terms = expected_terms(given, loss.divergence, loss.cross_entropy_on, loss.temperature)
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
    check(arm_config("baselines", arm), BASELINES[arm][1], tmp_path)


@pytest.mark.parametrize("arm", DIVERGENCES)
def test_divergences_and_clipping(arm: str, tmp_path: Path) -> None:
    check(arm_config("dac_kl", arm), Loss((1, 1, 1), DIVERGENCES[arm]), tmp_path)


def test_no_baseline_is_left_out() -> None:
    assert set(committed("baselines").arms) == {*BASELINES, "minillm"}


def writer(config: ExperimentConfig) -> str:
    scrg = config.scrg
    if not scrg.enabled:
        return "nobody"
    if scrg.text == "interleaved":
        return f"interleaved, within the top {scrg.interleaved_top_k}"
    if scrg.text != "student":
        return scrg.text
    return {0: "student", 1: "student, corrected once"}[scrg.passes]


@pytest.mark.parametrize("arm", [*BASELINES, "minillm"])
def test_text_of_the_baselines(arm: str, tmp_path: Path) -> None:
    text = BASELINES[arm][0] if arm in BASELINES else Text("mixed", 5)
    config = arm_config("baselines", arm)
    assert writer(config) == text.writer
    rows = problem(config, tmp_path).step.rows
    assert sum(row.response_ids == TEXTS["written"][row.example_id] for row in rows) == text.count
    assert len(rows) == 10


@pytest.mark.parametrize(
    ("study", "arm", "overrides", "loss"),
    [
        ("baselines", "kd", "temperature=2", Loss((1, 1, 0), FORWARD, temperature=2.0)),
        ("baselines", "mgsr", "temperature=2", Loss((1, 1, 1), dac(*AT_START), temperature=2.0)),
        ("dac_kl", "reverse_kl", "temperature=0.5", Loss((1, 1, 1), REVERSE, temperature=0.5)),
        ("baselines", "mgsr", "w_sft=0.5 w_dac=2 w_span=30", Loss((0.5, 2, 30), dac(*AT_START))),
        ("dac_kl", "symmetric_kl", "divergence_weight=0.9", Loss((1, 1, 1), kl_kind("symmetric_kl", 0.9))),
        ("dac_kl", "jensen_shannon", "beta=0.9", Loss((1, 1, 1), kl_kind("jensen_shannon", 0.9))),
        ("dac_kl", "skewed_forward_kl", "alpha=0.6", Loss((1, 1, 1), kl_kind("skewed_forward_kl", 0.6))),
        ("dac_kl", "skewed_reverse_kl", "alpha=0.6", Loss((1, 1, 1), kl_kind("skewed_reverse_kl", 0.6))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_values_make_another_loss(study: str, arm: str, overrides: str, loss: Loss, tmp_path: Path) -> None:
    default = BASELINES[arm][1] if study == "baselines" else Loss((1, 1, 1), DIVERGENCES[arm])
    before = check(arm_config(study, arm), default, tmp_path / "default")
    others = [f"objective.{override}" for override in overrides.split()]
    after = check(arm_config(study, arm, *others), loss, tmp_path / "other")
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
    clip = built(arm_config("baselines", "mgsr")).clip
    assert isinstance(clip, ClipNetwork)
    assert (clip.lower_min, clip.lower_max, clip.upper_min, clip.upper_max) == (-0.02, 0.3, 0.9, 0.97)
