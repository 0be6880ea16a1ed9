"""Quality of corrections and diversity of text on rounds whose figures can be told by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from mgsr.rounds import text_quality
from mgsr.rounds.store import (
    SHARD_NAME,
    RoundEntry,
    finish_round,
    round_folder,
    write_after,
    write_shard,
)
from mgsr.rounds.text_quality import (
    correction_examples,
    correction_quality,
    measure_corrected,
    rounds_of,
    text_diversity,
)
from mgsr.runtime.errors import DataError
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
ALL = (RAISED, LOWERED, TWICE)


Write = Callable[..., Path]


@pytest.fixture
def write_round(tmp_path: Path) -> Write:
    """Writes a finished round of the run `tmp_path`, a shard for every two sequences."""

    def write(number: int, entries: Sequence[RoundEntry], after: Mapping[int, float] | None = None) -> Path:
        folder, names = round_folder(tmp_path, number), []
        for start in range(0, len(entries), 2):
            part, names = entries[start : start + 2], [*names, SHARD_NAME.format(0, start)]
            write_shard(folder / names[-1], "key", part, {}, measure_corrected(folder, part, REFERENCES))
        finish_round(folder, "key", names)
        if after is not None:
            write_after(folder, after)
        return folder

    return write


# -- corrections --------------------------------------------------------------------------------------------


def test_shares_and_gains_of_all_rounds_together(write_round: Write, tmp_path: Path) -> None:
    write_round(0, [RAISED, LOWERED], {1: -1.5, 2: -3.0})
    # what became of example 4 was not seen, and example 5 was not corrected
    write_round(1, [UNTOUCHED, TWICE, EQUAL], {3: -0.25, 5: -9.0})
    assert correction_quality(tmp_path) == {
        "corrected": 4.0,
        "rouge_l_raised": 2 / 4,
        "rouge_l_lowered": 1 / 4,
        "rouge_l_gain": pytest.approx((25 - 50 + 100 + 0) / 4),
        # gains of 0.5, -0.5 and, from before its first correction, 0.75
        "teacher_log_likelihood_raised": pytest.approx(2 / 3),
        "teacher_log_likelihood_lowered": pytest.approx(1 / 3),
        "teacher_log_likelihood_gain": pytest.approx(0.25),
    }


def test_an_example_of_two_rounds_has_a_likelihood_in_each(write_round: Write, tmp_path: Path) -> None:
    again = corrected(1, "the cat down again", "the cat down again", -3.0)
    write_round(0, [RAISED], {1: -1.0})
    write_round(1, [again], {1: -6.5})
    figures = correction_quality(tmp_path)
    assert figures is not None and figures["corrected"] == 2.0
    # 1 and -3.5
    assert figures["teacher_log_likelihood_gain"] == pytest.approx(-1.25)
    assert (figures["rouge_l_raised"], figures["rouge_l_lowered"]) == (0.5, 0.0)


def test_without_likelihoods_only_rouge_l_is_told(write_round: Write, tmp_path: Path) -> None:
    write_round(0, [LOWERED])
    write_round(1, [EQUAL], {7: -1.0})
    assert correction_quality(tmp_path) == {
        "corrected": 2.0,
        "rouge_l_raised": 0.0,
        "rouge_l_lowered": 0.5,
        "rouge_l_gain": pytest.approx(-25.0),
    }


def test_two_corrections_are_shown(write_round: Write, tmp_path: Path) -> None:
    """Of the first round that has some, by example id; what the correction left as it was is no example."""
    prompts = {1: "say this", 2: "say\nthat", 3: "say more " * 90}
    write_round(0, [UNTOUCHED])
    assert correction_examples(tmp_path, prompts) == []
    write_round(1, [TWICE, corrected(4, "d", "d", -1.0), LOWERED])
    write_round(2, [RAISED])
    found = correction_examples(tmp_path, prompts)
    assert found[0] == {"prompt": "say that", "before": "a b", "after": "b a"}
    assert found[1]["after"] == "c" and len(found[1]["prompt"]) == 300 and found[1]["prompt"].endswith("…")
    assert len(found) == 2


def test_without_corrections_there_is_nothing_to_tell(write_round: Write, tmp_path: Path) -> None:
    assert correction_quality(tmp_path) is None
    write_round(0, [UNTOUCHED], {5: -1.0})
    assert correction_quality(tmp_path) is None


@pytest.mark.parametrize("harm", ["lost", "of another text", "without figures"])
def test_a_record_that_does_not_tell_what_was_gained_is_refused(
    write_round: Write, tmp_path: Path, harm: str
) -> None:
    record = write_round(0, ALL) / SHARD_NAME.format(0, 0).replace("jsonl", "json")
    content = json.loads(record.read_text())
    if harm == "lost":
        record.unlink()
    elif harm == "of another text":
        record.write_text(json.dumps({**content, "sha256": "0"}))
    else:
        del content["corrected"]
        record.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"{record.name}: .*restore it, or delete {tmp_path}") as refused:
        correction_quality(tmp_path)
    assert "\n" not in str(refused.value)


def test_only_the_first_rank_reads_what_corrections_gained(
    write_round: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_round(0, ALL)
    monkeypatch.setattr(text_quality, "read_corrected", lambda *_: pytest.fail("not on this rank"))
    monkeypatch.setattr(text_quality, "is_first", lambda: False)
    monkeypatch.setattr(text_quality, "agreed", lambda mine: mine or {"told": 1.0})
    assert correction_quality(tmp_path) == {"told": 1.0}


def test_text_of_no_training_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="example 9 is no training row"):
        measure_corrected(tmp_path, [corrected(9, "a", "b", -1.0)], REFERENCES)


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


def test_written_text_is_the_mean_of_its_rounds(write_round: Write, tmp_path: Path) -> None:
    write_round(0, texts(*ALIKE))
    write_round(1, texts(*DIFFERENT))
    assert text_diversity(tmp_path, GROUND_TRUTH) == {
        "ground_truth": GROUND_TRUTH_FIGURES,
        # 1/2 and 1 of each, the two alike and nothing in common
        "written": pytest.approx({"distinct_1": 0.75, "distinct_2": 0.75, "distinct_3": 0.75, "self_bleu": 0.5}),
    }


def test_a_figure_that_a_round_lacks_is_left_out(write_round: Write, tmp_path: Path) -> None:
    write_round(0, texts(*ALIKE))
    write_round(1, texts((1, 1, 1)))
    written = text_diversity(tmp_path, GROUND_TRUTH)["written"]
    # 1/2 each, then 1/3, 1/2 and 1
    assert written == pytest.approx({"distinct_1": 5 / 12, "distinct_2": 0.5, "distinct_3": 0.75})


def test_without_written_text_ground_truth_is_told(tmp_path: Path) -> None:
    # a round that was cut short is none
    write_shard(round_folder(tmp_path, 0) / SHARD_NAME.format(0, 0), "key", [RAISED])
    assert text_diversity(tmp_path, GROUND_TRUTH) == {"ground_truth": GROUND_TRUTH_FIGURES}
    alike = text_diversity(tmp_path, ALIKE)
    assert alike == {"ground_truth": {"distinct_1": 0.5, "distinct_2": 0.5, "distinct_3": 0.5, "self_bleu": 1.0}}


def test_only_the_first_rank_measures_diversity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_quality, "diversity", lambda _: pytest.fail("not on this rank"))
    monkeypatch.setattr(text_quality, "is_first", lambda: False)
    monkeypatch.setattr(text_quality, "agreed", lambda mine: mine or {"told": {}})
    assert text_diversity(tmp_path, GROUND_TRUTH) == {"told": {}}


# -- the rounds of a run ------------------------------------------------------------------------------------


def test_finished_rounds_are_read_from_disk_in_their_order(tmp_path: Path) -> None:
    rounds = {0: [RAISED, UNTOUCHED], 2: [TWICE], 10: [LOWERED], 3: [EQUAL]}
    for number, entries in rounds.items():
        folder, name = round_folder(tmp_path, number), SHARD_NAME.format(0, 0)
        write_shard(folder / name, "key", entries, {}, measure_corrected(folder, entries, REFERENCES))
        # of a run that was cut short the last round has no manifest
        if number != 3:
            finish_round(folder, "key", [name])
            write_after(folder, {entry.revised.example_id: -1.5 for entry in entries})
    found = list(rounds_of(tmp_path))
    assert found == [(round_folder(tmp_path, number), rounds[number]) for number in (0, 2, 10)]
    figures = correction_quality(tmp_path)
    # 0.5, -0.5 and 1
    assert figures is not None and figures["teacher_log_likelihood_gain"] == pytest.approx(1 / 3)
