"""A GPU is looked at once in several tokens: the same text, and few reads."""

from __future__ import annotations

import pytest
import torch

from mgsr.generation import InterleavedWriter, MixedWriter, decoding
from mgsr.generation.decoding import Reader, decode
from mgsr.models.output_layer import output_head, trunk
from tests.host_reads import HostReads, as_on_a_gpu
from tests.scrg.tiny import EOS, FAMILIES, language_model, prompts, revised, tiny

BUDGET = 30


def texts(family, **options):
    """What a family writes, corrects and writes with a teacher, in float64."""
    student, given = tiny(family, 2), [(example, prompt[:4]) for example, prompt in prompts(12, seed=4)]
    options = {"max_new_tokens": BUDGET, "batch_size": 12, "vocab_size": 11, **options}
    writer, teacher = language_model(student, **options), language_model(tiny("llama", 4), **options)
    found = [writer.write(given, seed=seed, round=0) for seed in range(3)]
    found.append([(r.rollout_ids, r.response_ids) for r in revised(writer, teacher, given, max_new_tokens=BUDGET)])
    mixed = MixedWriter(writer, teacher).write_mixed(given, seed=1, round=0)
    # the last digit of a number may depend on how many rows are read with its own
    found.append([(text.response_ids, *(f"{value:.9f}" for value in text.behaviour_log_probs)) for text in mixed])
    found.append(InterleavedWriter(writer, teacher, top_k=2).write_interleaved(given, seed=1, round=0))
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"greedy": True}, {"top_k": 3}, {"eos_token_id": [EOS, 5]}])
def test_the_same_text_token_by_token(family, options, monkeypatch):
    if options and family != "llama":
        pytest.skip("one family is enough")
    if "eos_token_id" in options:
        expected = language_model(tiny(family, 2), **options).write(prompts(9), seed=0, round=0)
        as_on_a_gpu(monkeypatch)
        assert language_model(tiny(family, 2), **options).write(prompts(9), seed=0, round=0) == expected
        return
    expected = texts(family, **options)
    lengths = {len(text) for batch in expected[:3] for text in batch}
    # some end within a block, some at its edge, some not at all
    assert len(lengths) > 3 or "greedy" in options
    as_on_a_gpu(monkeypatch)
    for block in (8, 5, BUDGET + 1):
        monkeypatch.setattr(decoding, "BLOCK", block)
        assert texts(family, **options) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_one_read_in_a_block(family, monkeypatch):
    """Of ragged prompts and of equally long ones; rows leave, and one budget is no multiple of a block."""
    model = tiny(family, 2)
    # of the four with a padding id, GPT-2 looks for it in what it is given
    model.config.pad_token_id = None
    as_on_a_gpu(monkeypatch)
    for given in ([[3] * n for n in (1, 5, 2, 7, 4, 4)], [[n, 4, 5] for n in range(3, 9)]):
        reader = Reader(trunk(model), output_head(model), given, room=BUDGET, pad_id=0)
        steps, advance = [], reader.advance
        reader.advance = lambda *a, steps=steps, advance=advance: steps.append(1) or advance(*a)  # type: ignore
        reads = HostReads()
        uniforms = torch.rand(6, BUDGET, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        with torch.no_grad(), reads:
            written = decode(
                [reader], [uniforms], language_model(model).sampling, budgets=[9, *[BUDGET] * 5], eos_ids=[EOS]
            )
        longest = max(map(len, written.tokens))
        assert reads.found == ["cpu"] * -(-longest // 8), reads.found
        assert longest - 1 <= len(steps) < longest + 8


@pytest.mark.parametrize("kind", ["plain", "mixed", "interleaved"])
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_logits_that_are_no_numbers_are_refused(kind, who, monkeypatch):
    """Later than on a CPU, but before anything of the text is used."""
    if (kind, who) == ("plain", "teacher"):
        pytest.skip("nobody else writes")
    pair = {"student": tiny("llama", 2), "teacher": tiny("gpt2", 2)}
    with torch.no_grad():
        pair[who].get_output_embeddings().weight.fill_(torch.nan)
    student, teacher = (language_model(model, vocab_size=11) for model in pair.values())
    writer = {
        "plain": student,
        "mixed": MixedWriter(student, teacher),
        "interleaved": InterleavedWriter(student, teacher),
    }
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot draw a token"):
            writer[kind].write(prompts(3), seed=0, round=0)
        as_on_a_gpu(monkeypatch)
