"""Sequence correction and re-generation: the teacher mends one token, the student writes on from there.

Liu et al. 2024 (arXiv 2407.10068), the sequence level. The student samples a response, the teacher proposes a
token at every position given the *student's* prefix, and where the two differ most, in KL(p || q) over the
whole vocabulary, the teacher's token replaces the student's; the student then samples on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mgsr.runtime.meter import Meter
from mgsr.scrg.locate import ErrorPosition
from mgsr.scrg.records import Correction, Prefix, Prompt, RevisedSequence, Scorer, Student
from mgsr.scrg.search import Draft, Options, Search, TeacherToken, search_errors


def splice(response_ids: Sequence[int], position: int, token: int) -> list[int]:
    """The response up to `position`, with `token` there: y_<j, y^T_j (Liu et al. 2024, eq. 4).

    >>> splice([5, 6, 7, 8], 2, 9)
    [5, 6, 9]
    """
    if not 0 <= position < len(response_ids):
        raise ValueError(f"position {position} lies outside a response of {len(response_ids)} tokens")
    return [*response_ids[:position], token]


def _continue(
    student: Student,
    drafts: Sequence[Draft],
    prefixes: Sequence[list[int]],
    pass_: int,
    round: int,
    options: Options,
) -> list[list[int]]:
    """What the student makes of the spliced prefixes; those that end or fill the budget stay as they are."""
    results = list(prefixes)
    open_rows = [
        row
        for row, prefix in enumerate(prefixes)
        if prefix[-1] not in options.eos_ids and len(prefix) < options.max_new_tokens
    ]
    if not open_rows:
        return results
    asked = [Prefix(drafts[row].example_id, drafts[row].prompt_ids, tuple(prefixes[row])) for row in open_rows]
    written = student.continue_from(asked, seed=options.seed, round=round, pass_=pass_)
    _check_written(asked, written, options)
    for row, prefix, response in zip(open_rows, asked, written, strict=True):
        kept = len(prefix.response_ids)
        if len(response) <= kept or tuple(response[:kept]) != prefix.response_ids:
            raise ValueError(f"the student did not continue the prefix of example {prefix.example_id}")
        results[row] = list(response)
    return results


def _check_written(asked: Sequence[object], written: Sequence[Sequence[int]], options: Options) -> None:
    if len(written) != len(asked):
        raise ValueError(f"the student was asked for {len(asked)} responses and wrote {len(written)}")
    for response in written:
        if not 1 <= len(response) <= options.max_new_tokens:
            raise ValueError(f"the student wrote {len(response)} tokens, not 1 to {options.max_new_tokens}")
        ends = [token in options.eos_ids for token in response]
        if any(ends[:-1]) or not (ends[-1] or len(response) == options.max_new_tokens):
            raise ValueError(f"the student wrote {len(response)} tokens that do not end where eos_token_id does")


def _correct(
    student: Student,
    teacher: Scorer,
    drafts: Sequence[Draft],
    pass_: int,
    round: int,
    options: Options,
    meter: Meter,
) -> None:
    """One pass over the drafts: search, splice, continue, record."""
    read = sum(len(draft.prompt_ids) + len(draft.response_ids) for draft in drafts)
    with meter.phase("scoring", tokens=read):
        search = search_errors(student, teacher, drafts, pass_, round, options)
    if pass_ == 1:
        for draft, disagreements, positions in zip(drafts, search.disagreements, search.positions, strict=True):
            draft.disagreements, draft.positions = disagreements, positions
            draft.status = "below_threshold" if disagreements else "no_disagreement"
    found = [index for index, position in enumerate(search.chosen) if position >= 0]
    for index, draft in enumerate(drafts):
        if search.chosen[index] < 0:
            draft.finished = True
    prefixes = []
    for index in found:
        position = search.chosen[index]
        token = int(search.comparison.teacher_token[int(search.starts[index]) + position])
        prefixes.append(splice(drafts[index].response_ids, position, token))
    with meter.phase("generation") as spent:
        responses = _continue(student, [drafts[index] for index in found], prefixes, pass_, round, options)
        spent.tokens += sum(map(len, responses)) - sum(map(len, prefixes))
    for index, prefix, response in zip(found, prefixes, responses, strict=True):
        draft = drafts[index]
        draft.corrections.append(_record(search, index, draft, pass_, len(response)))
        draft.response_ids, draft.after, draft.status = response, search.chosen[index], "corrected"
        draft.finished = len(prefix) == len(response)


def _record(search: Search, index: int, draft: Draft, pass_: int, length_after: int) -> Correction:
    """The record of sequence `index`, whose response still is as it was before."""
    position, seen = search.chosen[index], search.comparison
    row = int(search.starts[index]) + position
    return Correction(
        pass_=pass_,
        position=position,
        student_token=draft.response_ids[position],
        teacher_token=int(seen.teacher_token[row]),
        kl=float(seen.kl[row]),
        teacher_prob_student_token=float(seen.teacher_log_prob_student_token[row].exp()),
        teacher_prob_teacher_token=float(seen.teacher_log_prob_teacher_token[row].exp()),
        student_prob_student_token=float(seen.student_log_prob_student_token[row].exp()),
        student_prob_teacher_token=float(seen.student_log_prob_teacher_token[row].exp()),
        length_before=len(draft.response_ids),
        length_after=length_after,
        teacher_log_likelihood_before=search.log_likelihoods[index],
        disagreements=search.disagreements[index],
        positions=search.positions[index],
    )


def revise_batch(
    student: Student,
    teacher: Scorer | None,
    prompts: Sequence[Prompt],
    options: Options,
    *,
    round: int,
    meter: Meter,
) -> list[RevisedSequence]:
    """`revise` for prompts that the student takes at once, with options that were checked before.

    What the student keeps of a batch for the next pass it keeps no longer than this.
    """
    try:
        with meter.phase("generation", tokens=sum(len(prompt_ids) for _, prompt_ids in prompts)) as spent:
            written = student.write(prompts, seed=options.seed, round=round)
            spent.tokens += sum(map(len, written))
        _check_written(prompts, written, options)
        drafts = [
            Draft(int(example_id), tuple(map(int, prompt_ids)), list(response), list(response))
            for (example_id, prompt_ids), response in zip(prompts, written, strict=True)
        ]
        for pass_ in range(1, options.passes + 1):
            active = [draft for draft in drafts if not draft.finished]
            if not active:
                break
            assert teacher is not None, "without one passes are 0"
            _correct(student, teacher, active, pass_, round, options, meter)
    finally:
        student.release()
    return [
        RevisedSequence(
            draft.example_id,
            draft.prompt_ids,
            tuple(draft.rollout_ids),
            tuple(draft.response_ids),
            tuple(draft.corrections),
            draft.status,
            draft.disagreements,
            draft.positions,
        )
        for draft in drafts
    ]


def revise(
    student: Student,
    teacher: Scorer | None,
    prompts: Sequence[Prompt],
    *,
    passes: int = 1,
    max_new_tokens: int,
    eos_token_id: int | Iterable[int],
    seed: int,
    round: int = 0,
    teacher_token: TeacherToken = "sample",
    error_position: ErrorPosition = "max_kl",
    kl_threshold: float = 1.0,
    tile_size: int = 256,
    vocab_size: int | None = None,
    batch_size: int | None = None,
    meter: Meter | None = None,
) -> list[RevisedSequence]:
    """Student-written responses to the prompts, corrected by the teacher `passes` times.

    One pass: both models score the responses; the teacher proposes a token at every position, from the
    student's prefix; j is the disagreement chosen by `error_position` (Liu et al. 2024, eq. 3); the response
    becomes y_<j, the teacher's token, and what the student samples after it (eq. 4). The next pass searches
    positions > j only. A sequence is finished when a search finds nothing, or when the teacher's token ends
    it or fills the budget.

    The text of a sequence depends on its own prompt, example id, `seed` and `round` alone, not on the
    company it is written in: every draw is keyed (see `mgsr.runtime.rng`). The rollout has pass 0 in its keys,
    correction k pass k.

    Args:
        student: writes and scores (`mgsr.scrg.Student`).
        teacher: scores; may be None when `passes` is 0.
        prompts: (example id, token ids) pairs with distinct ids.
        passes: corrections per sequence, at most; 0 gives plain student text.
        max_new_tokens: tokens of a response, end of sequence included; also the student's own limit.
        eos_token_id: one or several ids that end a sequence.
        seed: of the run.
        round: of regeneration.
        teacher_token: `sample` draws the teacher's token from p, `argmax` takes its best.
        error_position: `max_kl`, `random`, `first_disagreement` or `threshold`.
        kl_threshold: for `threshold`, in nats.
        tile_size: response positions whose logits exist at the same time.
        vocab_size: ids that the two models share, where their logits differ in width.
        batch_size: prompts that are written and corrected together; None takes the student's own
            `batch_size`, or all prompts at once if it has none.
        meter: takes seconds and tokens of `generation` and `scoring`.

    Returns:
        One `RevisedSequence` per prompt, in the order of the prompts.

    Raises:
        ValueError: an option or a prompt cannot be used, or a model breaks its protocol.
    """
    ids = frozenset(eos_token_id if isinstance(eos_token_id, Iterable) else [eos_token_id])
    options = Options(
        max_new_tokens,
        ids,
        seed,
        passes,
        teacher_token,
        error_position,
        kl_threshold,
        tile_size,
        vocab_size,
    )
    if teacher is None and passes > 0:
        raise ValueError(f"passes={passes} needs a teacher")
    if len({example_id for example_id, _ in prompts}) != len(prompts):
        raise ValueError("example ids must be distinct: they are the keys of the draws")
    limit = getattr(student, "max_new_tokens", max_new_tokens)
    if limit != max_new_tokens:
        raise ValueError(f"max_new_tokens is {max_new_tokens} here and {limit} in the student")
    if batch_size is None:
        batch_size = getattr(student, "batch_size", None) or max(len(prompts), 1)
    meter = meter or Meter()
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index][1]))
    revised: dict[int, RevisedSequence] = {}
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        batch = [prompts[index] for index in chunk]
        sequences = revise_batch(student, teacher, batch, options, round=round, meter=meter)
        revised.update(zip(chunk, sequences, strict=True))
    return [revised[index] for index in range(len(prompts))]
