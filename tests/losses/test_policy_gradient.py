"""MiniLLM's policy objective and its gradient against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.losses.policy import call, counts_of, gradients, make_case, reference, with_logits

# -- the loss and its gradient against numpy ----------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.0, 0.2, math.inf])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_is_that_of_the_reference(seed: int, clip: float) -> None:
    case = make_case(seed, sequences=6, length=8)
    total, sft, policy, _ = reference(case, clip=clip, counts=(11.0, 7.0), weights=(0.5, 2.0))
    terms, _ = call(case, importance_clip=clip, counts=(11.0, 7.0), weights=(0.5, 2.0), tile_size=3)
    got = [value.item() for value in (terms.total, terms.sft, terms.dac_kl)]
    assert got == pytest.approx([total, sft, policy], rel=1e-12)
    assert float(terms.span) == 0 and float(terms.clip_penalty) == 0
    own, _ = call(case, importance_clip=clip)
    expected = reference(case, clip=clip, counts=counts_of(case))
    assert [float(own.sft), float(own.dac_kl)] == pytest.approx(expected[1:3], rel=1e-12)


@pytest.mark.parametrize("clip", [0.2, math.inf])
def test_gradient_is_that_of_the_reference_with_its_constants_frozen(clip: float) -> None:
    case = make_case(3, sequences=8)
    counts = counts_of(case)
    *_, frozen = reference(case, clip=clip, counts=counts)
    # clipping is in force on both sides, and neither
    assert any(w > 1.2 and a > 0 for w, a in frozen.values()) and any(
        w < 0.8 and a < 0 for w, a in frozen.values()
    )
    assert any(0.8 < w < 1.2 and a != 0 for w, a in frozen.values())
    got = gradients(case, importance_clip=clip)
    step = 1e-6
    for name, gradient in zip(("h_s", "w_s", "b_s"), got, strict=True):
        numeric = np.zeros(case[name].shape)
        for place in np.ndindex(numeric.shape):
            values = []
            for sign in (1, -1):
                moved = case | {name: case[name].copy()}
                moved[name][place] += sign * step
                values.append(reference(with_logits(moved), clip=clip, counts=counts, frozen=frozen)[0])
            numeric[place] = (values[0] - values[1]) / (2 * step)
        np.testing.assert_allclose(gradient.numpy(), numeric, rtol=1e-6, atol=1e-8, err_msg=name)


def test_where_clipping_is_in_force_the_single_step_part_alone_is_left() -> None:
    case = make_case(4, sequences=1, length=2)
    case["truth"][:] = False
    case["labels"][:] = [[1, 2]]
    # p~ so small that both ratios lie far above 1 + eps; a good advantage then has no long part
    case["behaviour"][:] = -6.0
    case["teacher_logits"][0, 1] = 0
    case["h_t"][0, 1] = 0
    case["h_s"][0, 1] = 0
    case["b_s"][:] = [0, 0, -2, 0, 0, 0]  # the student finds y_2 unlikely, the teacher does not: A_1 > 0
    case = with_logits(case)
    *_, constants = reference(case, clip=0.2, counts=(0, 2))
    assert constants[0, 0][1] > 0 and constants[0, 0][0] > 1.2
    clipped, plain = gradients(case, importance_clip=0.2), gradients(case, importance_clip=math.inf)
    assert not torch.allclose(clipped[0], plain[0])
    h = torch.tensor(case["h_s"], requires_grad=True)
    log_q = torch.log_softmax(h @ torch.tensor(case["w_s"]).T + torch.tensor(case["b_s"]), -1)
    log_p = torch.log_softmax(torch.tensor(case["teacher_logits"]), -1)
    w = torch.tensor([[constants[0, 0][0], constants[0, 1][0]]])
    kl = (log_q.exp() * (log_q - log_p)).sum(-1)
    single = torch.autograd.grad((w * kl).sum() / 2, h)[0]
    torch.testing.assert_close(clipped[0], single)
