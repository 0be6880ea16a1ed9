"""The block model against textbooks, scipy and simulation."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mgsr.study.analysis import Comparison, compare, contrast, critical_value, verdict_of


def frame(scores: dict[str, dict[int, float]]) -> pd.DataFrame:
    rows = [(arm, block, score) for arm, by_block in scores.items() for block, score in by_block.items()]
    return pd.DataFrame(rows, columns=["arm", "block", "score"]).assign(seed=lambda found: found["block"])


def drawn(
    seed: int, effects: dict[str, float], blocks: int, spread: float = 1.0, between: float = 5.0
) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    levels = draw.normal(0, between, blocks)
    return frame(
        {a: {b: 50 + levels[b] + e + draw.normal(0, spread) for b in range(blocks)} for a, e in effects.items()}
    )


def test_one_arm_is_the_paired_t_interval() -> None:
    scores = drawn(0, {"base": 0.0, "arm": 1.0}, 6)
    (found,) = compare(scores, "base", 0.5).values()
    wide = scores.pivot(index="block", columns="arm", values="score")
    test = stats.ttest_rel(wide["arm"], wide["base"])
    interval = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.effect == pytest.approx((wide["arm"] - wide["base"]).mean()) and found.blocks == 6


def test_critical_values_are_dunnetts() -> None:
    """Dunnett's table, two-sided, 5 %: k = 1, 2, 3, 5 comparisons of equal sizes."""
    for arms, freedom, want in ((2, 10, 2.57), (3, 20, 2.54), (5, 30, 2.66), (2, 60, 2.27)):
        correlation = tuple(tuple(1.0 if i == j else 0.5 for j in range(arms)) for i in range(arms))
        assert critical_value(correlation, freedom) == pytest.approx(want, abs=0.02)


def test_intervals_of_a_family_hold_together_in_95_of_100() -> None:
    effects = {"base": 0.0, "a": 0.3, "b": -0.2, "c": 0.0, "d": 1.0}
    held = 0
    for seed in range(120):
        found = compare(drawn(seed, effects, 5), "base", 0.5)
        held += all(found[arm].low <= effects[arm] <= found[arm].high for arm in found)
    assert 0.92 <= held / 120 <= 0.98


def test_families_apart_have_intervals_of_their_own() -> None:
    scores = drawn(1, {"base": 0.0, "asked": 0.5, "b": 0.0, "c": 0.0, "d": 0.0}, 6)
    together = compare(scores, "base", 0.5)["asked"]
    apart = compare(scores, "base", 0.5, [["asked"]])["asked"]
    assert apart.effect == pytest.approx(together.effect)
    assert apart.high - apart.low < together.high - together.low


def test_missing_runs_are_filled_by_the_model() -> None:
    """Blocks of unlike levels: the mean of what is there would be off by the level."""
    scores = frame({"base": {0: 10.0, 1: 20.0, 2: 31.0}, "a": {0: 11.0, 1: 21.5}, "b": {1: 19.0, 2: 30.5}})
    found = compare(scores, "base", 0.5)
    assert found["a"].effect == pytest.approx(1.25, abs=0.2) and found["a"].blocks == 2
    assert found["b"].effect == pytest.approx(-0.75, abs=0.2)


def test_an_arm_that_nothing_connects_has_no_comparison() -> None:
    scores = frame({"base": {0: 1.0, 1: 2.0, 2: 3.5}, "a": {0: 2.0, 1: 3.1, 2: 4.4}, "b": {7: 9.0, 8: 9.5}})
    assert set(compare(scores, "base", 0.5)) == {"a"}
    # a third arm connects them
    linked = pd.concat([scores, frame({"a": {7: 8.0}})])
    assert set(compare(linked, "base", 0.5)) == {"a", "b"}


def test_an_arm_that_swings_is_alone_and_does_not_widen_the_others() -> None:
    scores = drawn(3, {"base": 0.0, "a": 0.0, "b": 0.0, "c": 0.0}, 8, spread=0.3)
    swings = scores["arm"] == "c"
    scores.loc[swings, "score"] += np.random.default_rng(5).normal(0, 8.0, int(swings.sum()))
    found = compare(scores, "base", 0.5)
    assert found["c"].alone and not found["a"].alone
    # the family's 5 % is shared out: two thirds for the two others, one third for the one alone
    rest = scores[~swings].pivot(index="block", columns="arm", values="score")
    residuals = rest.sub(rest.mean(axis=1), axis=0).sub(rest.mean() - rest.to_numpy().mean())
    error = math.sqrt(2 / 8 * float((residuals**2).to_numpy().sum()) / 14)
    half = critical_value(((1.0, 0.5), (0.5, 1.0)), 14, 0.05 * 2 / 3) * error
    assert found["a"].high - found["a"].effect == pytest.approx(half, rel=1e-6)
    wide = scores.pivot(index="block", columns="arm", values="score")
    difference = wide["c"] - wide["base"]
    half = stats.t.ppf(1 - 0.05 / 3 / 2, 7) * difference.std() / math.sqrt(8)
    assert found["c"].high - found["c"].effect == pytest.approx(half)


def test_a_calm_arm_is_not_alone_because_blocks_hold_different_arms() -> None:
    """Half of the blocks hold an arm that scores far less: their means say nothing of another arm's spread."""
    scores = drawn(3, {"base": 0.0, "a": 0.0, "low": -5.0}, 12, spread=0.05)
    scores = scores[(scores["arm"] != "low") | (scores["seed"] < 6)]
    found = compare(scores, "base", 0.5)
    assert set(found) == {"a", "low"} and not any(one.alone for one in found.values())


def test_arms_that_only_a_third_connects_are_no_reason_to_set_it_apart() -> None:
    here, there = {"base": 0.0, "a": 0.1}, {"low": -5.0, "lower": -9.0}
    scores = drawn(3, {**here, **there, "x": 0.0}, 12, spread=0.05)
    scores = scores[(scores["arm"] == "x") | (scores["arm"].isin(here) == (scores["seed"] < 6))]
    found = compare(scores, "base", 0.5)
    assert set(found) == {"a", "low", "lower", "x"} and not found["x"].alone


def test_one_block_tells_no_spread() -> None:
    (found,) = compare(frame({"base": {0: 1.0}, "a": {0: 3.0}}), "base", 0.5).values()
    assert found.effect == pytest.approx(2.0) and math.isnan(found.low) and found.verdict == ""


def test_equal_scores_are_no_error() -> None:
    (found,) = compare(frame({"base": {0: 1.0, 1: 1.0}, "a": {0: 1.0, 1: 1.0}}), "base", 0.5).values()
    assert found.effect == pytest.approx(0.0, abs=1e-12)


def test_verdicts() -> None:
    assert verdict_of(-0.5, 0.5, 0.5) == "equivalent"
    assert verdict_of(math.nan, math.nan, 0.5) == ""
    scores = drawn(4, {"base": 0.0, "a": 0.2}, 40, spread=0.05)
    found = compare(scores, "base", 0.5)["a"]
    assert found.verdict == "better" and found.small
    assert isinstance(found, Comparison)


def test_the_detectable_effect_is_detected_four_times_in_five() -> None:
    known = compare(drawn(0, {"base": 0.0, "a": 0.0, "b": 0.0}, 6), "base", 0.5)["a"]
    # of the true spread 1, not of what these draws happened to have
    correlation = ((1.0, 0.5), (0.5, 1.0))
    effect = (critical_value(correlation, 10) + stats.t.ppf(0.8, 10)) * math.sqrt(2 / 6)
    assert known.detectable == pytest.approx(effect, rel=0.5)
    seen = sum(
        compare(drawn(s, {"base": 0.0, "a": effect, "b": 0.0}, 6), "base", 0.5)["a"].low > 0 for s in range(100)
    )
    assert 0.7 <= seen / 100 <= 0.9


def test_what_cannot_be_analysed_is_refused() -> None:
    with pytest.raises(ValueError, match="no run of the baseline"):
        compare(frame({"a": {0: 1.0}}), "base", 0.5)
    twice = pd.concat([frame({"base": {0: 1.0}}), frame({"base": {0: 2.0}})])
    with pytest.raises(ValueError, match="twice"):
        compare(twice, "base", 0.5)


def test_a_factor_is_the_difference_of_means() -> None:
    effects = {"full": 2.0, "no_a": 0.0, "no_b": 1.5, "none": 0.2}
    scores = drawn(6, effects, 6, spread=0.1)
    sides = {"a": (["full", "no_b"], ["no_a", "none"]), "gone": (["full"], ["never_run"])}
    (found,) = contrast(scores, "full", sides, 0.5).values()
    wide = scores.pivot(index="block", columns="arm", values="score").mean()
    assert found.effect == pytest.approx((wide["full"] + wide["no_b"] - wide["no_a"] - wide["none"]) / 2)
    assert found.low < 1.65 < found.high and found.verdict == "better" and found.blocks == 6


def test_a_factor_that_differs_from_seed_to_seed_has_that_spread() -> None:
    """Its four differences in a block are alike: as independent runs they would make the interval too narrow."""
    scores = drawn(6, {"full": 0.0, "no_a": 0.0, "no_b": 0.0, "none": 0.0}, 6, spread=0.05)
    with_a = scores["arm"].isin(["full", "no_b"])
    scores.loc[with_a, "score"] += scores.loc[with_a, "seed"].map(
        dict(enumerate((-2.0, 0.0, -0.2, -0.9, -0.1, -0.4)))
    )
    sides = {"a": (["full", "no_b"], ["no_a", "none"]), "b": (["full", "no_a"], ["no_b", "none"])}
    found = contrast(scores, "full", sides, 0.5)
    wide = scores.pivot(index="block", columns="arm", values="score")
    for name, (own, others) in sides.items():
        difference = wide[own].mean(axis=1) - wide[others].mean(axis=1)
        half = stats.t.ppf(1 - 0.05 / 2 / 2, 5) * difference.std() / math.sqrt(6)
        assert found[name].effect == pytest.approx(difference.mean())
        assert found[name].high - found[name].effect == pytest.approx(half)
    assert found["a"].verdict == "open" and found["b"].verdict == "equivalent"


def test_a_factor_with_a_wide_arm_has_a_spread_of_its_own() -> None:
    scores = drawn(6, {"full": 2.0, "no_a": 0.0, "no_b": 1.5, "none": 0.2}, 12, spread=0.1)
    noise = np.random.default_rng(1).normal(0, 3, 12)
    scores.loc[scores["arm"] == "none", "score"] += noise
    sides = {"a": (["full", "no_b"], ["no_a", "none"]), "b": (["full"], ["no_b"])}
    found = contrast(scores, "full", sides, 0.5)
    table = scores.pivot(index="block", columns="arm", values="score")
    difference = (table["full"] + table["no_b"] - table["no_a"] - table["none"]) / 2
    half = stats.t.ppf(1 - 0.05 / 2 / 2, 11) * difference.std() / math.sqrt(12)
    assert list(found) == ["a", "b"] and found["a"].alone and not found["b"].alone
    assert found["a"].high - found["a"].effect == pytest.approx(half)
    # the others keep their spread, and share the family's 5 %
    rest = contrast(scores[scores["arm"] != "none"], "full", {"b": sides["b"]}, 0.5)["b"]
    assert found["b"].effect == rest.effect
    wider = stats.t.ppf(1 - 0.05 / 2 / 2, 22) / stats.t.ppf(0.975, 22)
    assert (found["b"].high - found["b"].low) / (rest.high - rest.low) == pytest.approx(wider)
