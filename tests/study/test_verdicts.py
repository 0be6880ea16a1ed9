"""Verdicts on synthetic figures whose truth is known."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
from scipy import integrate, stats

import mgsr.study.verdicts
from mgsr.study.verdicts import (
    BETTER,
    INCONCLUSIVE,
    NOT_RUN,
    TOO_FEW,
    WORSE,
    bootstrap_interval,
    contrast,
    contrast_verdicts,
    effect_size,
    holm,
    seeds_needed,
    verdicts,
    verdicts_of_sets,
)


def draw(effects, seeds, generator, spread=1.0, shared=5.0):
    """Arms that share each seed's luck and differ by `effects`."""
    luck = shared * generator.standard_normal(seeds)
    return {
        arm: {s: float(60 + effect + luck[s] + spread * generator.standard_normal()) for s in range(seeds)}
        for arm, effect in effects.items()
    }


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of hundreds of studies the verdicts alone: no number of seeds, and no garbage collected by statsmodels."""
    monkeypatch.setattr(gc, "collect", lambda *arguments: 0)
    monkeypatch.setattr(mgsr.study.verdicts, "seeds_needed", lambda *arguments, **options: None)


def test_without_an_effect_the_family_is_wrong_at_most_at_the_nominal_rate(quick):
    generator = np.random.default_rng(0)
    arms = dict.fromkeys(("full", "a", "b", "c"), 0.0)
    families, wrong = 600, 0
    for _ in range(families):
        found = verdicts(draw(arms, 5, generator), "full")
        wrong += any(v.verdict in (BETTER, WORSE) for v in found)
    # Holm holds 5% for the whole family; it is conservative where arms share a baseline
    assert wrong / families < 0.05 + 3 * math.sqrt(0.05 * 0.95 / families)
    assert wrong > 0


def test_a_single_comparison_is_wrong_at_the_nominal_rate(quick):
    generator = np.random.default_rng(1)
    draws = 800
    wrong = sum(
        verdicts(draw({"full": 0.0, "a": 0.0}, 5, generator), "full")[1].verdict != INCONCLUSIVE
        for _ in range(draws)
    )
    assert abs(wrong / draws - 0.05) < 3 * math.sqrt(0.05 * 0.95 / draws)


def test_planted_effects_are_found_with_their_sign():
    generator = np.random.default_rng(2)
    found = {
        v.arm: v for v in verdicts(draw({"full": 0.0, "up": 8.0, "down": -8.0, "same": 0.0}, 5, generator), "full")
    }
    assert (found["up"].verdict, found["down"].verdict) == (BETTER, WORSE)
    assert found["same"].verdict == INCONCLUSIVE
    assert found["up"].difference.low > 0 > found["down"].difference.high


def test_the_interval_is_that_of_a_paired_t_test():
    base, arm = {0: 60.0, 1: 62.0, 2: 61.0, 3: 59.0}, {0: 61.5, 1: 63.0, 2: 61.5, 3: 61.0}
    verdict = verdicts({"full": base, "a": arm}, "full")[1]
    want = stats.ttest_rel(list(arm.values()), list(base.values()))
    interval = want.confidence_interval(0.95)
    assert verdict.p == pytest.approx(want.pvalue)
    assert (verdict.difference.low, verdict.difference.high) == pytest.approx((interval.low, interval.high))
    assert verdict.effect == pytest.approx(np.mean([1.5, 1, 0.5, 2]) / np.std([1.5, 1, 0.5, 2], ddof=1))


def test_seeds_are_paired_not_lined_up():
    verdict = verdicts({"full": {0: 1.0, 1: 50.0, 2: 3.0}, "a": {2: 4.5, 0: 2.0, 7: 90.0}}, "full")[1]
    assert verdict.paired == (0, 2)
    assert verdict.difference.mean == pytest.approx(1.25)


def test_arms_that_did_not_run_are_no_zeros():
    found = {v.arm: v for v in verdicts({"full": {0: 1.0, 1: 2.0}, "none": {}, "one": {1: 5.0}}, "full")}
    assert (found["none"].verdict, found["one"].verdict) == (NOT_RUN, TOO_FEW)
    assert math.isnan(found["none"].mean) and found["none"].difference is None
    with pytest.raises(ValueError, match="other"):
        verdicts({"a": {0: 1.0}}, "other")


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.04 times 3, 2, 1, made monotone
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([]) == []


def power_by_hand(effect: float, pairs: int, alpha: float) -> float:
    """Of the two-sided t test: normal tails at a given standard deviation, weighed by its chi density."""
    freedom, shift = pairs - 1, effect * pairs**0.5
    critical = stats.t.isf(alpha / 2, freedom)

    def weighed(s: float) -> float:
        tails = stats.norm.cdf(shift - critical * s) + stats.norm.cdf(-shift - critical * s)
        return float(tails * stats.chi.pdf(s * freedom**0.5, freedom) * freedom**0.5)

    return float(integrate.quad(weighed, 0, 12, points=[0.5, 1, 2])[0])


def test_two_looks_err_no_more_often_than_one(quick):
    """Open arms are given seeds and judged again: under no effect, at most 5 % of studies may say anything."""
    generator = np.random.default_rng(11)
    said = {1: 0, 2: 0}
    studies = 400
    for _ in range(studies):
        values = draw({"full": 0.0, "a": 0.0}, 12, generator)
        first = {
            arm: {seed: value for seed, value in by_seed.items() if seed < 4} for arm, by_seed in values.items()
        }
        for looks in said:
            found = [verdicts(first, "full", looks)[1], verdicts(values, "full", looks)[1]]
            said[looks] += any(v.verdict != INCONCLUSIVE for v in found)
    assert said[2] / studies <= 0.06 < said[1] / studies


def test_looks_multiply_p_before_holm():
    values = {
        "full": dict.fromkeys(range(4), 60.0),
        "a": {0: 61.0, 1: 62.0, 2: 64.0, 3: 62.5},
        "b": {0: 60.5, 1: 59.0},
    }
    raw = [v.difference.p for v in verdicts(values, "full")[1:]]
    found = verdicts(values, "full", 3)[1:]
    assert [v.p for v in found] == pytest.approx(holm([min(1.0, 3 * p) for p in raw]))
    assert found[0].level == "0.05/6" and found[0].needed == seeds_needed(found[0].effect, 0.05 / 6, run=4)
    with pytest.raises(ValueError, match="at least 1"):
        verdicts(values, "full", 0)


def test_needed_seeds_reach_the_power_they_promise():
    effect = 1.2
    needed = seeds_needed(effect, 0.05)
    generator = np.random.default_rng(3)
    hits = [stats.ttest_1samp(generator.normal(effect, 1.0, needed), 0).pvalue < 0.05 for _ in range(2000)]
    assert 0.78 < np.mean(hits) < 0.9
    assert seeds_needed(0.001) is None
    assert seeds_needed(5.0) == 3
    # powers by integrating over the density of the standard deviation; scipy's noncentral t is nan at four pairs
    level = 0.05 / 16
    assert power_by_hand(3.7, 4, level) == pytest.approx(0.455, abs=0.001) and seeds_needed(3.7, level) == 5
    assert power_by_hand(5.1, 4, level) == pytest.approx(0.737, abs=0.001) and seeds_needed(5.1, level) == 5
    assert seeds_needed(effect, 0.01) > needed
    for size, alpha in ((0.7, 0.05), (1.5, 0.01), (2.4, level), (7.9, level)):
        pairs = seeds_needed(size, alpha)
        assert power_by_hand(size, pairs, alpha) >= 0.8 > power_by_hand(size, pairs - 1, alpha)


def test_an_inconclusive_arm_says_how_many_seeds_it_would_take():
    verdict = verdicts({"full": dict.fromkeys(range(3), 60.0), "a": {0: 61.0, 1: 59.5, 2: 62.0}}, "full")[1]
    assert verdict.verdict == INCONCLUSIVE
    assert verdict.needed == seeds_needed(effect_size([1.0, -0.5, 2.0]))


def test_seeds_needed_are_more_than_have_run_and_not_told_from_two():
    full = dict.fromkeys(range(4), 60.0)
    # p 0.02 alone; adjusted over three more arms it is not below 0.05
    arms = {f"other_{k}": {s: 60.0 + (s + k) * (-1) ** s for s in range(4)} for k in range(3)}
    found = verdicts({"full": full, "a": {0: 61.0, 1: 62.0, 2: 64.0, 3: 62.5}, **arms}, "full")[1]
    assert (found.verdict, found.comparisons) == (INCONCLUSIVE, 4)
    assert found.needed == seeds_needed(found.effect, 0.05 / 4) > seeds_needed(found.effect)
    assert found.needed_in_words == f"about {found.needed} seeds"
    assert (seeds_needed(5.0), seeds_needed(5.0, run=4)) == (3, 5)
    few = verdicts({"full": {0: 1.0, 1: 2.0}, "a": {0: 3.0, 1: 4.5}}, "full")[1]
    assert (few.verdict, few.needed, few.needed_in_words) == (INCONCLUSIVE, None, "")
    tiny = verdicts({"full": dict.fromkeys(range(3), 0.0), "a": {0: 1.0, 1: -1.0, 2: 0.001}}, "full")[1]
    assert (tiny.needed, tiny.needed_in_words) == (None, "more than 1,000 seeds")


def test_a_contrast_is_the_difference_of_the_two_means_per_seed():
    values = {
        "ab": {0: 10.0, 1: 12.0},
        "a": {0: 8.0, 1: 9.0},
        "b": {0: 7.0, 1: 7.0},
        "none": {0: 1.0, 1: 1.0, 2: 9.0},
    }
    assert contrast(values, ["ab", "a"], ["b", "none"]) == {0: 9.0 - 4.0, 1: 10.5 - 4.0}
    assert contrast({**values, "a": {}}, ["ab", "a"], ["b", "none"]) == {}


def test_contrasts_are_judged_as_a_family_of_their_own():
    rng = np.random.default_rng(6)
    seeds = range(6)
    values = {arm: {s: float(rng.normal(50, 1)) for s in seeds} for arm in ("none", "a", "b")}
    values["ab"] = {s: values["b"][s] + 4.0 + float(rng.normal(0, 0.5)) for s in seeds}
    sides = {"a": (["ab", "a"], ["b", "none"]), "b": (["ab", "b"], ["a", "none"]), "c": (["ab"], ["c"])}
    found = {v.arm: v for v in contrast_verdicts(values, sides, looks=2)}
    raw = {
        name: stats.ttest_1samp(list(contrast(values, *sides[name]).values()), 0.0).pvalue for name in ("a", "b")
    }
    small, large = sorted(raw.values())
    expected = {small: 4 * small, large: min(1.0, max(4 * small, 2 * large))}
    for name in ("a", "b"):
        assert found[name].p == pytest.approx(expected[raw[name]])
        assert found[name].verdict == (INCONCLUSIVE if found[name].p >= 0.05 else BETTER)
    assert (found["c"].difference, found["c"].verdict) == (None, TOO_FEW)


def test_arms_are_adjusted_over_all_test_sets_of_a_study():
    rng = np.random.default_rng(7)
    values = {"full": {s: float(rng.normal(50, 1)) for s in range(5)}}
    for arm, gain in (("a", 1.5), ("b", 0.3)):
        values[arm] = {s: values["full"][s] + gain + float(rng.normal(0, 1)) for s in range(5)}
    other = {arm: {s: v + float(rng.normal(0, 1)) for s, v in by_seed.items()} for arm, by_seed in values.items()}
    found = verdicts_of_sets({"test": values, "more": other}, "full")
    raw = [verdicts(v, "full")[i].difference.p for v in (values, other) for i in (1, 2)]
    got = [v.p for name in ("test", "more") for v in found[name][1:]]
    assert got == pytest.approx(holm(raw)) and got != pytest.approx(holm(raw[:2]) + holm(raw[2:]))
    assert {v.level for name in found for v in found[name][1:]} == {"0.05/4"}
    assert verdicts_of_sets({"test": values}, "full")["test"] == verdicts(values, "full")


def test_the_bootstrap_repeats_itself_and_covers_the_mean():
    values = np.random.default_rng(4).normal(2.0, 3.0, 200)
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1)
    assert bootstrap_interval([1.0, 1.0]) == (1.0, 1.0)
