"""One SCRG round: mgsr's engine against the naive way with `transformers.generate`.

A round writes, scores, corrects and continues every prompt once (passes 1). Neither side scores the corrected
text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from experiments.bench.measure import measure
from experiments.bench.pair import Pair, demo_pair
from mgsr.generation import LanguageModel, sample
from mgsr.generation.decoding import pad_left
from mgsr.scrg import RevisedSequence, revise
from mgsr.training.fsdp import working

SEED = 0


def mgsr_round(pair: Pair) -> int:
    """Tokens of the revised sequences."""
    return sum(len(sequence.response_ids) for sequence in revised(pair))


def revised(pair: Pair, max_cache_slots: int | None = None) -> list[RevisedSequence]:
    """One round; with `max_cache_slots` 0 every correction reads its prefix afresh."""

    def language_model(model: Any) -> LanguageModel:
        return LanguageModel(
            model,
            eos_token_id=pair.eos,
            pad_token_id=pair.pad,
            max_new_tokens=pair.max_new_tokens,
            batch_size=pair.batch_size,
            vocab_size=pair.vocab_size,
            max_cache_slots=max_cache_slots,
        )

    return revise(
        language_model(pair.student),
        language_model(pair.teacher),
        pair.prompts,
        passes=1,
        max_new_tokens=pair.max_new_tokens,
        eos_token_id=pair.eos,
        seed=SEED,
        vocab_size=pair.vocab_size,
    )


@torch.no_grad()
def naive_round(pair: Pair) -> int:
    """As one would write it: generate, two forwards over everything, generate again from the corrected prefix."""
    torch.manual_seed(SEED)
    total = 0
    texts = by_length(pair)
    for start in range(0, len(texts), pair.batch_size):
        prompts = texts[start : start + pair.batch_size]
        responses = _generate(pair, prompts, pair.max_new_tokens)
        corrected = _correct(pair, prompts, responses)
        whole = [[*prompt, *response] for prompt, response in zip(prompts, corrected, strict=True)]
        still = [i for i, c in enumerate(corrected) if c[-1] != pair.eos and len(c) < pair.max_new_tokens]
        # generate takes one limit for all rows: what goes beyond a row's own is cut
        longest = max((pair.max_new_tokens - len(corrected[i]) for i in still), default=0)
        for i, new in zip(still, _generate(pair, [whole[i] for i in still], longest), strict=True):
            corrected[i] = [*corrected[i], *new][: pair.max_new_tokens]
        total += sum(map(len, corrected))
    return total


def _generate(pair: Pair, texts: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
    if not texts:
        return []
    ids, mask = pad_left(texts, pair.pad)
    written = pair.student.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=limit,
        eos_token_id=pair.eos,
        pad_token_id=pair.pad,
    )[:, ids.shape[1] :].tolist()
    return [row[: row.index(pair.eos) + 1] if pair.eos in row else row for row in written]


def _correct(pair: Pair, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[list[int]]:
    """Every response up to its worst disagreement, and the teacher's token there."""
    texts = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    ids, mask = pad_left(texts, pair.pad)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    first = -1 - max(map(len, responses))
    logs = [
        model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=-first)
        .logits[:, :-1, : pair.vocab_size]
        .float()
        .log_softmax(-1)
        for model in (pair.teacher, pair.student)
    ]
    kl = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)
    proposed = torch.multinomial(logs[0].exp().flatten(0, 1), 1).reshape(kl.shape)
    out = []
    for row, response in enumerate(responses):
        tail = slice(kl.shape[1] - len(response), None)
        tokens = torch.tensor(response)
        differs = proposed[row, tail] != tokens
        if not differs.any():
            out.append(list(response))
            continue
        worst = int(torch.where(differs, kl[row, tail], -torch.inf).argmax())
        out.append([*response[:worst], int(proposed[row, tail][worst])])
    return out


def by_length(pair: Pair) -> list[list[int]]:
    """The prompts, short ones first, as mgsr takes them: less padding for `generate` too."""
    return sorted((list(ids) for _, ids in pair.prompts), key=len)


def mgsr_sampling(pair: Pair) -> int:
    """Plain sampling, no correction; batches of 32."""
    return sum(map(len, _sampled(pair, pair.student, batch_size=32)))


def _sampled(pair: Pair, student: Any, **options: Any) -> list[tuple[int, ...]]:
    return sample(
        student,
        pair.prompts,
        seed=SEED,
        eos_token_id=pair.eos,
        pad_token_id=pair.pad,
        max_new_tokens=pair.max_new_tokens,
        vocab_size=pair.vocab_size,
        **options,
    )


@torch.no_grad()
def generate_sampling(pair: Pair) -> int:
    """The same with `generate`."""
    torch.manual_seed(SEED)
    texts = by_length(pair)
    return sum(
        len(response)
        for start in range(0, len(texts), 32)
        for response in _generate(pair, texts[start : start + 32], pair.max_new_tokens)
    )


CASES: dict[str, Callable[[Pair], int]] = {
    "mgsr_round": mgsr_round,
    "naive_round": naive_round,
    "mgsr_sampling": mgsr_sampling,
    "generate_sampling": generate_sampling,
}


def flips(pair: Pair, dtype: str) -> dict[str, float]:
    """Share of sequences, and of their tokens up to there, that another batch size turns into another text.

    Draws do not depend on the batch; rounding may still carry a probability across a draw.
    """
    # the copy that a run of this precision writes with
    with working(pair.student, getattr(torch, dtype)) as student:
        texts = [_sampled(pair, student, batch_size=size) for size in (64, 3)]
    changed = sum(left != right for left, right in zip(*texts, strict=True))
    return {"changed": changed / len(pair.prompts), "per_token": changed / sum(map(len, texts[0]))}


def check(pair: Pair, prompts: int = 64) -> None:
    """What is timed writes what it should.

    Greedy text is `generate`'s; a round is the one that reads every corrected prefix afresh; both ways of a round
    write about as much.

    Raises:
        AssertionError: more than one response in fifty differs (float32 may turn a near tie around), or the two
            ways' tokens differ by a quarter.
    """
    few = replace(pair, prompts=pair.prompts[:prompts])
    ours = _sampled(few, pair.student, greedy=True)
    same = 0
    for (_, prompt), response in zip(few.prompts, ours, strict=True):
        ids = torch.tensor([list(prompt)])
        theirs: Tensor = pair.student.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=pair.max_new_tokens,
            eos_token_id=pair.eos,
            pad_token_id=pair.pad,
        )[0, ids.shape[1] :]
        same += theirs.tolist() == response
    assert same >= len(few.prompts) * 0.98, f"only {same} of {len(few.prompts)} greedy responses agree"
    kept, afresh = revised(few), revised(few, max_cache_slots=0)
    same = sum(a.response_ids == b.response_ids for a, b in zip(kept, afresh, strict=True))
    assert same >= len(few.prompts) * 0.98, f"only {same} of {len(few.prompts)} corrected responses agree"
    written, naively = sum(len(sequence.response_ids) for sequence in kept), naive_round(few)
    assert 0.8 < written / naively < 1.25, f"a round writes {written} tokens, the naive way {naively}"


def case(name: str) -> dict[str, Any]:
    """`check`, a type of weights whose flips are counted, or one of `CASES`."""
    models = demo_pair()
    if name == "check":
        check(models)
        return {"check": "passed"}
    if name not in CASES:
        return flips(models, name)
    tokens: list[int] = []
    result = measure(lambda: tokens.append(CASES[name](models)), repeats=3)
    return {**result, "tokens": tokens[-1]}
