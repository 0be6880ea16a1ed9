"""revise against the slow reference, on next-token tables."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsr.scrg import Correction, RevisedSequence, revise
from tests.scrg import reference
from tests.scrg.reference import FakeModel, Settings, assert_same
from tests.scrg.tables import EOS, prompts, run, scripted, table


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**16),
    st.sampled_from([0, 1, 2, 3, 5]),
    st.sampled_from(["sample", "argmax"]),
    st.sampled_from(["max_kl", "random", "first_disagreement", "threshold"]),
    st.integers(1, 9),
    st.integers(1, 8),
)
def test_equals_the_slow_reference(seed, passes, teacher_token, error_position, budget, batch_size):
    s = Settings(budget, EOS, seed, seed % 3, passes, teacher_token, error_position)
    student, teacher = table(seed), table(seed + 1)
    given_prompts = prompts(6, seed)
    revised = run(student, teacher, given_prompts, s, batch_size=batch_size, tile_size=1 + seed % 7)
    for sequence, (example, prompt) in zip(revised, given_prompts, strict=True):
        assert sequence.prompt_ids == tuple(prompt)
        assert_same(sequence, reference.revise(student, teacher, example, prompt, s))


def test_the_reference_covers_everything():
    """The comparison above is worth something only if all kinds of outcome occur in it."""
    seen = set()
    for seed in range(25):
        s = Settings(6, EOS, seed, passes=3, error_position="threshold" if seed % 2 else "max_kl")
        for example, prompt in prompts(6, seed):
            out = reference.revise(table(seed), table(seed + 1), example, prompt, s)
            seen.add((out["status"], len(out["corrections"])))
            for correction in out["corrections"]:
                seen.add("teacher eos" if correction["teacher_token"] == EOS else "teacher other")
                seen.add("first" if correction["position"] == 0 else "later")
                seen.add("last" if correction["position"] == s.max_new_tokens - 1 else "inside")
                seen.add("student eos" if correction["student_token"] == EOS else "student other")
    assert {("corrected", n) for n in (1, 2, 3)} | {("no_disagreement", 0), ("below_threshold", 0)} <= seen
    assert {"teacher eos", "teacher other", "first", "later", "last", "inside", "student eos"} <= seen


def one(student, teacher, budget=4, **options) -> RevisedSequence:
    s = Settings(budget, EOS, 1, **options)
    (sequence,) = run(student, teacher, [(5, [1, 2])], s)
    assert_same(sequence, reference.revise(student, teacher, 5, [1, 2], s))
    return sequence


def test_no_disagreement_is_returned_unchanged_and_marked():
    sequence = one(scripted(3, 4, EOS), scripted(3, 4, EOS), passes=3)
    assert sequence.response_ids == sequence.rollout_ids == (3, 4, EOS)
    assert sequence.status == "no_disagreement" and sequence.corrections == ()
    assert (sequence.disagreements, sequence.positions) == (0, 3)


@pytest.mark.parametrize("teacher_token", ["sample", "argmax"])
def test_error_at_the_first_and_the_last_token(teacher_token):
    first = one(scripted(3, 4, EOS), scripted(6, 4, EOS), teacher_token=teacher_token)
    assert first.response_ids == (6, 4, EOS) and first.corrections[0].position == 0
    end = one(scripted(3, 4, EOS), scripted(3, 4, 5), teacher_token=teacher_token)
    assert end.response_ids == (3, 4, 5, EOS) and end.corrections[0].position == 2
    assert end.corrections[0].student_token == EOS and end.corrections[0].length_after == 4
    budget = one(scripted(3, 4, 5, 5), scripted(3, 4, 5, 6), teacher_token=teacher_token, passes=5)
    assert budget.response_ids == (3, 4, 5, 6) and len(budget.corrections) == 1


def test_teacher_eos_ends_the_sequence_and_further_passes():
    sequence = one(scripted(3, 4, 5), scripted(3, EOS, 6), passes=5, error_position="first_disagreement")
    assert sequence.rollout_ids == (3, 4, 5, 5) and sequence.response_ids == (3, EOS)
    assert len(sequence.corrections) == 1 and sequence.corrections[0].length_after == 2
    for teacher in (scripted(3, EOS, 6), scripted(3, 4, 5, 6)):  # ends the sequence; fills the budget
        s = Settings(4, EOS, 1, passes=5)
        scorer = FakeModel(teacher, s)
        run(scripted(3, 4, 5), scorer, [(5, [1, 2])], s)
        assert scorer.scored == [[5]]


def test_passes_advance():
    """The teacher objects everywhere; each pass may touch only what lies behind the last correction."""
    sequence = one(scripted(3), scripted(4), passes=3, error_position="first_disagreement")
    assert [c.position for c in sequence.corrections] == [0, 1, 2]
    assert [c.positions for c in sequence.corrections] == [4, 3, 2]
    assert sequence.response_ids == (4, 4, 4, 3)
    assert len(one(scripted(3), scripted(4), passes=9, error_position="first_disagreement").corrections) == 4


def test_hand_computed_record():
    """p = (1/4, 3/4) and q = (1/2, 1/2) at the only position: KL = 3/4 log(3/2) + 1/4 log(1/2)."""

    def student(tokens):
        return np.log([1e-12, 0.5, 0.5])

    def teacher(tokens):
        return np.log([1e-12, 0.25, 0.75])

    s = Settings(1, EOS, 0, teacher_token="argmax")
    for example in range(20):
        (sequence,) = run(student, teacher, [(example, [1])], s)
        if sequence.rollout_ids == (1,):
            break
    (correction,) = sequence.corrections
    assert math.isclose(correction.kl, 0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs_tol=1e-9)
    found = (correction.teacher_prob_student_token, correction.teacher_prob_teacher_token)
    assert np.allclose(found, (0.25, 0.75))
    found = (correction.student_prob_student_token, correction.student_prob_teacher_token)
    assert np.allclose(found, (0.5, 0.5))
    assert math.isclose(correction.teacher_log_likelihood_before, math.log(0.25), abs_tol=1e-9)


def test_no_passes_need_no_teacher():
    s = Settings(5, EOS, 3, passes=0)
    given_prompts = prompts(5)
    for sequence in run(table(1), None, given_prompts, s):
        assert sequence.response_ids == sequence.rollout_ids and sequence.corrections == ()
        assert (sequence.status, sequence.disagreements, sequence.positions) == ("not_searched", 0, 0)
    with pytest.raises(ValueError, match="teacher"):
        run(table(1), None, given_prompts, Settings(5, EOS, 3))


def test_passes_end_when_all_sequences_are_finished():
    """However many are asked for: each searches behind the last one, so there are no more than tokens."""
    student, teacher, given_prompts = table(1), table(2), prompts(4)
    few, many = (run(student, teacher, given_prompts, Settings(5, EOS, 0, passes=n)) for n in (6, 10**12))
    assert few == many
    assert 1 < max(len(sequence.corrections) for sequence in many) <= 5


def test_only_active_sequences_are_scored_and_continued():
    def teacher(tokens):
        """Objects to example [1, 2] in every pass, and to [5, 2] never."""
        return scripted(4 if tokens[0] == 1 else 3)(tokens)

    s = Settings(4, EOS, 1, passes=3, error_position="first_disagreement")
    models = FakeModel(scripted(3), s), FakeModel(teacher, s)
    run(*models, [(7, [5, 2]), (8, [1, 2])], s)
    assert models[1].scored == models[0].scored == [[7, 8], [8], [8]]
    assert models[0].continued == [[8], [8], [8]] and models[0].released == 1


def test_nothing_larger_than_a_tile_is_asked_for():
    s = Settings(9, EOS, 1, passes=2)
    student, teacher = FakeModel(table(1), s), FakeModel(table(2), s)
    run(student, teacher, prompts(8), s, tile_size=5)
    assert student.largest_tile == teacher.largest_tile == 5


def test_order_and_batches_do_not_matter():
    s = Settings(8, EOS, 4, passes=3)
    given_prompts = prompts(9)
    whole = run(table(1), table(2), given_prompts, s)
    shuffled = [given_prompts[i] for i in (4, 2, 8, 0, 1, 7, 3, 6, 5)]
    parts = run(table(1), table(2), shuffled, s, batch_size=2)
    assert sorted(whole, key=lambda r: r.example_id) == sorted(parts, key=lambda r: r.example_id)
    assert run(table(1), table(2), given_prompts[3:4], s) == whole[3:4]
    assert run(table(1), table(2), [], s) == []


def test_seed_and_round_matter():
    texts = {
        tuple(r.response_ids for r in run(table(1), table(2), prompts(4), Settings(8, EOS, seed, round_)))
        for seed in (0, 1)
        for round_ in (0, 1)
    }
    assert len(texts) == 4


def test_teacher_and_student_do_not_share_draws():
    """With p = q over n classes, independent draws agree once in n times; shared ones would always."""
    s, flat = Settings(40, 99, 1), lambda tokens: np.zeros(8)
    revised = run(flat, flat, [(n, [1]) for n in range(50)], s)
    agreement = 1 - sum(r.disagreements for r in revised) / sum(r.positions for r in revised)
    assert abs(agreement - 1 / 8) < 5 * (1 / 8 * 7 / 8 / 2000) ** 0.5


def test_wider_teacher_is_cut_to_the_shared_ids():
    """Mass beyond the shared ids must neither be drawn nor count."""
    s = Settings(8, EOS, 4, passes=2, vocab_size=7)
    student, teacher = table(1), table(2, width=9)
    for sequence, (example, prompt) in zip(run(student, teacher, prompts(6), s), prompts(6), strict=True):
        assert_same(sequence, reference.revise(student, teacher, example, prompt, s))
        assert max(sequence.response_ids) < 7
    with pytest.raises(ValueError, match="9 and 7"):
        run(student, teacher, prompts(6), Settings(8, EOS, 4))


def test_json_round_trip():
    s = Settings(8, EOS, 4, passes=2)
    for sequence in run(table(1), table(2), prompts(6), s):
        again = RevisedSequence.from_dict(json.loads(json.dumps(asdict(sequence))))
        assert again == sequence and hash(again) == hash(sequence)
        assert all(isinstance(c, Correction) for c in again.corrections)
    with pytest.raises(ValueError, match="rollout_ids"):
        RevisedSequence.from_dict({"prompt_ids": [1]})


def test_ids_of_any_integer_type_become_plain():
    s = Settings(4, EOS, 4)
    (sequence,) = run(table(1), table(2), [(np.int64(3), torch.tensor([1, 2]))], s)
    json.dumps(asdict(sequence))
    assert sequence.prompt_ids == (1, 2)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("teacher_token", "best"),
        ("error_position", "last"),
        ("passes", -1),
        ("tile_size", 0),
        ("max_new_tokens", 0),
        ("vocab_size", 0),
    ],
)
def test_refuses_options(option, value):
    options = {"passes": 1, "max_new_tokens": 4, "eos_token_id": EOS, "seed": 0, option: value}
    s = Settings(4, EOS, 0)
    with pytest.raises(ValueError, match=str(value)):
        revise(FakeModel(table(1), s), FakeModel(table(2), s), prompts(2), **options)


def test_refuses_broken_models():
    class Broken(FakeModel):
        def write(self, prompts, *, seed, round):
            return self.text

    s = Settings(4, EOS, 0)
    for broken, why in (
        ([[1, 2, 3, 4, 5]], "5 tokens"),
        ([[]], "0 tokens"),
        *(([text], "do not end") for text in ([1, 2], [1, EOS, 2, 3])),
        ([[EOS], [EOS]], "wrote 2"),
        ([[1, 9, 2, 3]], "token 9"),
    ):
        student = Broken(table(1), s)
        student.text = broken
        with pytest.raises(ValueError, match=why):
            run(student, table(2), [(0, [1])], s)
    limited = FakeModel(table(1), s)
    limited.max_new_tokens = 5
    with pytest.raises(ValueError, match="distinct"):
        run(table(1), table(2), [(0, [1]), (0, [2])], s)
    with pytest.raises(ValueError, match="5 in the student"):
        run(limited, table(2), [(0, [1])], s)
    with pytest.raises(ValueError, match="NaN"):
        run(table(1), lambda tokens: np.full(7, np.nan), [(0, [1])], s)
