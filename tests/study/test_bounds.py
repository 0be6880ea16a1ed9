"""Learned bounds in a report: adaptive or not, in words and in a table."""

from __future__ import annotations

from pathlib import Path

from mgsr.study.results import write_result
from mgsr.study.study import Study, result_path
from tests.study.synthetic import STUDY, make_result, make_study, readme_of, record
from tests.study.test_report import rows

ARMS = """
  full: {}
  priced: {clip.objective: priced}
  fixed: {clip.mode: fixed, clip.lower: 0.3, clip.upper: 0.9}
  mean: {clip.mode: mean_of_run, clip.run: "{results}/full/seed={seed}.json"}
  literal: {clip.form: literal}
  full_kl: {objective.divergence: forward_kl}
  later: {clip.mode: fixed, clip.lower: 0.1, clip.upper: 0.9}
"""
AT_LIMITS = {"lower": 0.3, "upper": 0.9, "lower_std": 1e-5, "upper_std": 2e-6, "lower_max": 1.0, "upper_min": 1.0}
ADAPTIVE = {"lower": 0.2, "upper": 0.93, "lower_std": 0.05, "upper_std": 0.01, "lower_max": 0.25, "upper_min": 0.5}


def make(folder: Path, priced: dict[str, float]) -> Study:
    text = STUDY.partition("arms:")[0].replace("removed", "full_kl") + f"arms:{ARMS}"
    study = make_study(folder, text)
    learned = {"full": AT_LIMITS, "literal": AT_LIMITS, "priced": {**priced, "price": 1.8}}
    for arm in study.arms:
        for seed in range(3 if arm != "later" else 0):
            result = make_result(study, arm, seed, 60.0 + seed)
            for name, end in learned.get(arm, {}).items():
                known = f"dac/near_{name}" if name in ("lower_max", "upper_min") else f"dac/{name}"
                result["curves"][known] = {"steps": [0, 50, 100], "values": [0.1, end, end]}
            for name in ("lower_min", "upper_max") if arm in learned else ():
                result["curves"][f"dac/near_{name}"] = {"steps": [0, 50, 100], "values": [0.0] * 3}
            write_result(result_path(study.results, arm, seed), result)
    return study


def test_bounds_at_their_limits_are_one_treatment(tmp_path: Path) -> None:
    text = readme_of(make(tmp_path, AT_LIMITS))
    assert text.split("\n\n")[2] == (
        "**Is the learned clipping adaptive?** No, not on these data. In `full`, `priced` and `literal` the "
        "bounds end at (0.30, 0.90) on every token, with a mean spread of 1e-05 at most; both bounds stand "
        "at limits "
        "of their ranges from step 50 on, in every run. So `full`, `priced`, `fixed` and `mean` clip alike: they "
        "are practically one treatment."
    )
    table = rows(text, "Where the bounds end")
    assert table["full"] == [
        "learned",
        "0.3000",
        "1.0e-05",
        "0.9000",
        "2.0e-06",
        "0.0",
        "100.0",
        "100.0",
        "0.0",
        "–",
    ]
    assert table["priced"][-1] == "1.80" and table["mean"][:3] == ["fixed", "0.3000", "–"]
    assert set(table["later"]) == {"not yet run"} and "full_kl" not in table


def test_bounds_that_differ_between_tokens_are_told_apart(tmp_path: Path) -> None:
    text = readme_of(make(tmp_path, ADAPTIVE))
    answer = text.split("\n\n")[2]
    assert "Only in `priced`. In `priced` the bounds of tokens differ at the end (spread 0.05)." in answer
    assert "So `full`, `fixed` and `mean` clip alike" in answer
    assert rows(text, "Where the bounds end")["priced"][:4] == ["learned", "0.2000", "5.0e-02", "0.9300"]


def test_bounds_between_their_limits_may_stand_still(tmp_path: Path) -> None:
    still = {**ADAPTIVE, "lower_std": 1e-4, "upper_std": 1e-4}
    answer = readme_of(make(tmp_path, still)).split("\n\n")[2]
    assert "No, not on these data." in answer and "(0.30, 0.90) or (0.20, 0.93)" in answer
    # not all of them stand at limits
    assert "from step" not in answer


def test_a_bound_that_an_arm_leaves_out_is_the_base_configurations(tmp_path: Path) -> None:
    study = make_study(tmp_path, STUDY.replace("{scrg.passes: 3}", "{clip.mode: fixed, clip.lower: 0.25}"))
    record(study)
    table = rows(readme_of(study), "Where the bounds end")
    assert table["other"][1] == "0.2500" and float(table["other"][3]) == study.base_config().clip.upper


def test_a_mean_of_no_named_run_has_no_row(tmp_path: Path) -> None:
    study = make_study(tmp_path, STUDY.replace("{scrg.passes: 3}", "{clip.mode: mean_of_run}"))
    record(study)
    assert "other" not in rows(readme_of(study), "Where the bounds end")
    # a base that is whole only with a command line is enough for a report
    (tmp_path / "base.yaml").write_text("clip: {mode: mean_of_run, run: runs/full/seed=0, upper: 0.97}\n")
    changed = STUDY.replace("base: demo", f"base: {tmp_path}/base.yaml")
    study = make_study(tmp_path, changed.replace("{scrg.passes: 3}", "{clip.mode: fixed, clip.lower: 0.25}"))
    record(study)
    assert rows(readme_of(study), "Where the bounds end")["other"][3] == "0.9700"


def test_studies_of_other_things_have_no_such_table(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    record(study)
    text = readme_of(study)
    assert "adaptive?" not in text and "Where the bounds end" not in text
