"""Quality of corrections and diversity of text on rounds whose figures can be told by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from mgsr.rounds.store import SHARD_NAME, RoundEntry, finish_round, round_folder, write_after, write_shard
from mgsr.rounds.text_quality import correction_quality, rounds_of, text_diversity
from mgsr.scrg import Correction, RevisedSequence

REFERENCES = {
    1: ("the cat sat down",),
    2: ("a b",),
    3: ("x y", "c"),
    4: ("d",),
}


def corrected(example: int, rollout: str, response: str, *before: float) -> RoundEntry:
    """A sequence with one correction for each teacher log-likelihood that stood before it."""
    corrections = tuple(
        Correction(i, 0, 5, 6, 1.0, 0.1, 0.6, 0.5, 0.2, 2, 2, value, 1, 2) for i, value in enumerate(before, 1)
    )
    status = "corrected" if corrections else "no_disagreement"
    revised = RevisedSequence(example, (4,), (5, 7), (6, 7), corrections, status, 1, 2)
    return RoundEntry(revised, (-1, -1), rollout=rollout, response=response)


# ROUGE-L of the texts: 75 to 100, 100 to 50, 0 to 100 (the second reference), 100 both times
RAISED = corrected(1, "the cat down again", "the cat sat down", -2.0)
LOWERED = corrected(2, "a b", "b a", -2.5)
TWICE = corrected(3, "e", "c", -1.0, -0.5)
EQUAL = corrected(4, "d", "D.", -1.0)
# its example has no reference: nobody may look for one
UNTOUCHED = corrected(5, "e", "f")


def folder_with(root: Path, number: int, after: Mapping[int, float]) -> Path:
    """A round's folder with the file that the training steps leave there."""
    folder = root / f"round={number}"
    folder.mkdir()
    lines = [json.dumps({"example_id": i, "teacher_log_likelihood_after": value}) for i, value in after.items()]
    (folder / "after.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


# -- corrections --------------------------------------------------------------------------------------------


def test_shares_and_gains_of_all_rounds_together(tmp_path: Path) -> None:
    rounds = [
        (folder_with(tmp_path, 0, {1: -1.5, 2: -3.0}), [RAISED, LOWERED]),
        # what became of example 4 was not seen, and example 5 was not corrected
        (folder_with(tmp_path, 1, {3: -0.25, 5: -9.0}), [UNTOUCHED, TWICE, EQUAL]),
    ]
    assert correction_quality(rounds, REFERENCES) == {
        "corrected": 4.0,
        "rouge_l_raised": 2 / 4,
        "rouge_l_lowered": 1 / 4,
        "rouge_l_gain": pytest.approx((25 - 50 + 100 + 0) / 4),
        # gains of 0.5, -0.5 and, from before its first correction, 0.75
        "teacher_log_likelihood_raised": pytest.approx(2 / 3),
        "teacher_log_likelihood_lowered": pytest.approx(1 / 3),
        "teacher_log_likelihood_gain": pytest.approx(0.25),
    }


def test_an_example_of_two_rounds_has_a_likelihood_in_each(tmp_path: Path) -> None:
    again = corrected(1, "the cat down again", "the cat down again", -3.0)
    rounds = [
        (folder_with(tmp_path, 0, {1: -1.0}), [RAISED]),
        (folder_with(tmp_path, 1, {1: -6.5}), [again]),
    ]
    figures = correction_quality(rounds, REFERENCES)
    assert figures is not None and figures["corrected"] == 2.0
    # 1 and -3.5
    assert figures["teacher_log_likelihood_gain"] == pytest.approx(-1.25)
    assert (figures["rouge_l_raised"], figures["rouge_l_lowered"]) == (0.5, 0.0)


def test_without_likelihoods_only_rouge_l_is_told(tmp_path: Path) -> None:
    rounds = [(tmp_path / "no file", [LOWERED]), (folder_with(tmp_path, 1, {7: -1.0}), [EQUAL])]
    assert correction_quality(rounds, REFERENCES) == {
        "corrected": 2.0,
        "rouge_l_raised": 0.0,
        "rouge_l_lowered": 0.5,
        "rouge_l_gain": pytest.approx(-25.0),
    }


def test_without_corrections_there_is_nothing_to_tell(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, 0, {5: -1.0})
    assert correction_quality([], REFERENCES) is None
    assert correction_quality([(folder, [])], REFERENCES) is None
    assert correction_quality([(folder, [UNTOUCHED])], REFERENCES) is None


# -- diversity ----------------------------------------------------------------------------------------------

# 2 of 5 tokens, 3 of 4 pairs, 3 of 3 triples; one sequence has no other to resemble
GROUND_TRUTH = [(1, 1, 2, 1, 1)]
GROUND_TRUTH_FIGURES = {"distinct_1": 2 / 5, "distinct_2": 3 / 4, "distinct_3": 1.0}
ALIKE, DIFFERENT = [(1, 2, 3, 4), (1, 2, 3, 4)], [(1, 2, 3), (4, 5, 6)]


def texts(*responses: Sequence[int]) -> list[RoundEntry]:
    """Responses whose rollouts, which nobody trained on, were all the same."""
    entries = []
    for i, ids in enumerate(responses):
        revised = RevisedSequence(i, (4,), (9, 9), tuple(ids), (), "not_searched", 0, 0)
        entries.append(RoundEntry(revised, (-1,) * len(ids)))
    return entries


def test_written_text_is_the_mean_of_its_rounds() -> None:
    # a round that wrote nothing is none
    rounds = [(Path("a"), texts(*ALIKE)), (Path("b"), []), (Path("c"), texts(*DIFFERENT))]
    assert text_diversity(rounds, GROUND_TRUTH) == {
        "ground_truth": GROUND_TRUTH_FIGURES,
        # 1/2 and 1 of each, the two alike and nothing in common
        "written": pytest.approx({"distinct_1": 0.75, "distinct_2": 0.75, "distinct_3": 0.75, "self_bleu": 0.5}),
    }


def test_a_figure_that_a_round_lacks_is_left_out() -> None:
    rounds = [(Path("a"), texts(*ALIKE)), (Path("b"), texts((1, 1, 1)))]
    written = text_diversity(rounds, GROUND_TRUTH)["written"]
    # 1/2 each, then 1/3, 1/2 and 1
    assert written == pytest.approx({"distinct_1": 5 / 12, "distinct_2": 0.5, "distinct_3": 0.75})


@pytest.mark.parametrize("rounds", [[], [(Path("a"), [])]])
def test_without_written_text_ground_truth_is_told(rounds: list[tuple[Path, list[RoundEntry]]]) -> None:
    assert text_diversity(rounds, GROUND_TRUTH) == {"ground_truth": GROUND_TRUTH_FIGURES}
    alike = text_diversity(rounds, ALIKE)
    assert alike == {"ground_truth": {"distinct_1": 0.5, "distinct_2": 0.5, "distinct_3": 0.5, "self_bleu": 1.0}}


# -- the rounds of a run ------------------------------------------------------------------------------------


def test_finished_rounds_are_read_from_disk_in_their_order(tmp_path: Path) -> None:
    rounds = {0: [RAISED, UNTOUCHED], 2: [TWICE], 10: [LOWERED], 3: [EQUAL]}
    for number, entries in rounds.items():
        folder, name = round_folder(tmp_path, number), SHARD_NAME.format(0, 0)
        write_shard(folder / name, "key", entries)
        # of a run that was cut short the last round has no manifest
        if number != 3:
            finish_round(folder, "key", [name])
            write_after(folder, {entry.revised.example_id: -1.5 for entry in entries})
    found = rounds_of(tmp_path)
    assert found == [(round_folder(tmp_path, number), rounds[number]) for number in (0, 2, 10)]
    figures = correction_quality(found, REFERENCES)
    # 0.5, -0.5 and 1
    assert figures is not None and figures["teacher_log_likelihood_gain"] == pytest.approx(1 / 3)
