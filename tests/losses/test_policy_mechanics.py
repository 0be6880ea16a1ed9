"""MiniLLM's policy objective in tiles and micro-batches, its masks, counts, types and errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mgsr.losses import policy_gradient_objective
from tests.losses.policy import (
    CLASSES,
    IGNORED,
    call,
    counts_of,
    gradients,
    log_softmax,
    make_case,
    reference,
    with_logits,
)

# -- tiles, micro-batches, memory ---------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000))
def test_tiles_change_nothing(tile_size: int, seed: int) -> None:
    case = make_case(seed, sequences=4, length=7)
    one, whole = (call(case, tile_size=size, collect_rows=True) for size in (tile_size, 1000))
    for name in ("total", "sft", "dac_kl"):
        torch.testing.assert_close(getattr(one[0], name), getattr(whole[0], name), rtol=1e-12, atol=1e-13)
    assert one[0].rows is not None and whole[0].rows is not None
    for name in ("index", "teacher_log_prob", "teacher_entropy", "dac_kl"):
        torch.testing.assert_close(getattr(one[0].rows, name), getattr(whole[0].rows, name))
    pairs = zip(gradients(case, tile_size=tile_size), gradients(case, tile_size=1000), strict=True)
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(6)), st.integers(1, 5))
def test_micro_batches_with_common_counts_add_up_to_the_batch(seed: int, order: list[int], cut: int) -> None:
    case = make_case(seed, sequences=6)
    counts = counts_of(case)
    names = ("h_s", "h_t", "labels", "truth", "behaviour", "student_logits", "teacher_logits")
    parts = [case | {name: case[name][list(rows)] for name in names} for rows in (order[:cut], order[cut:])]
    whole = call(case)[0]
    split = [call(part, counts=counts)[0] for part in parts]
    for name in ("total", "sft", "dac_kl"):
        torch.testing.assert_close(sum(getattr(terms, name) for terms in split), getattr(whole, name))
    grads = [gradients(part, counts=counts) for part in parts]
    for k, expected in enumerate(gradients(case)[1:], start=1):
        torch.testing.assert_close(grads[0][k] + grads[1][k], expected)
    torch.testing.assert_close(torch.cat([g[0] for g in grads])[np.argsort(order)], gradients(case)[0])


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.size = max(self.size, tensor.numel())
        return out


def test_no_tensor_holds_all_logits() -> None:
    b, t, h, v, tile = 4, 64, 8, 500, 16
    weight = torch.randn(v, h, requires_grad=True)
    states = torch.randn(b, t, h, requires_grad=True)
    labels = torch.randint(0, v, (b, t))
    truth = torch.tensor([True, False, False, False])
    with _Largest() as largest:
        terms = policy_gradient_objective(
            states, weight, states.detach(), weight.detach(), labels, torch.zeros(b, t), truth, tile_size=tile
        )
        terms.total.backward()
    assert 0 < largest.size <= v * max(h, tile) < b * t * v


# -- masks, counts, types, errors ---------------------------------------------------------------------------


def test_nothing_outside_the_responses_is_read() -> None:
    case = make_case(8)
    hole = case["labels"] == IGNORED
    other = {name: case[name].copy() for name in ("h_s", "h_t", "behaviour")}
    for values in other.values():
        values[hole] = 50.0
    # and no p~ of ground truth
    other["behaviour"][case["truth"]] = math.nan
    assert hole.any()
    a, b = call(case)[0], call(case | other)[0]
    assert torch.equal(a.total, b.total)
    for first, second in zip(gradients(case), gradients(case | other), strict=True):
        assert torch.equal(first, second)
    assert torch.equal(gradients(case)[0][torch.tensor(hole)], torch.zeros(int(hole.sum()), 3).double())


def test_ground_truth_carries_cross_entropy_and_model_text_the_policy_part_alone() -> None:
    case = make_case(9)
    sft, policy = (gradients(case, weights=weights)[0] for weights in ((1, 0), (0, 1)))
    truth = torch.tensor(case["truth"])
    response = torch.tensor(case["labels"] != IGNORED)
    assert (sft[~truth] == 0).all() and (policy[truth] == 0).all()
    assert (sft[truth][response[truth]] != 0).all() and (policy[~truth][response[~truth]] != 0).any()
    both = gradients(case, weights=(0.3, 2.0))[0]
    torch.testing.assert_close(both, 0.3 * sft + 2.0 * policy)


@pytest.mark.parametrize("truth", [True, False])
def test_a_count_of_zero_gives_a_zero_term_and_a_finite_gradient(truth: bool) -> None:
    case = make_case(10)
    case["truth"][:] = truth
    terms, _ = call(case, collect_rows=True)
    assert float(terms.dac_kl if truth else terms.sft) == 0 != float(terms.sft if truth else terms.dac_kl)
    assert all(bool(torch.isfinite(g).all()) for g in gradients(case))
    assert terms.rows is not None and terms.rows.index.numel() == (0 if truth else counts_of(case)[1])
    assert terms.rows.dac_kl.shape == terms.rows.teacher_log_prob.shape == terms.rows.index.shape


def test_without_any_response_the_gradient_is_zero_and_there() -> None:
    case = make_case(11)
    case["labels"][:] = IGNORED
    terms, _ = call(case)
    assert terms.total.item() == 0
    assert all(not g.any() for g in gradients(case))


def test_rows_are_the_model_written_tokens() -> None:
    case = make_case(12)
    rows = call(case, collect_rows=True, tile_size=2)[0].rows
    assert rows is not None
    length = case["labels"].shape[1]
    places = [(b, t) for b, t in np.ndindex(case["labels"].shape) if case["labels"][b, t] != IGNORED]
    places = [(b, t) for b, t in places if not case["truth"][b]]
    assert rows.index.tolist() == [b * length + t for b, t in places]
    for i, (b, t) in enumerate(places):
        log_q, log_p = log_softmax(case["student_logits"][b, t]), log_softmax(case["teacher_logits"][b, t])
        got = [float(getattr(rows, name)[i]) for name in ("teacher_log_prob", "teacher_entropy", "dac_kl")]
        kl = float((np.exp(log_q) * (log_q - log_p)).sum())
        expected = [log_p[case["labels"][b, t]], -float((np.exp(log_p) * log_p).sum()), kl]
        assert got == pytest.approx(expected, rel=1e-10)
    assert rows.lower is None and rows.retained_mass is None
    assert call(case)[0].rows is None


def test_dev_loss_needs_no_teacher() -> None:
    case = make_case(13)
    terms = policy_gradient_objective(
        torch.tensor(case["h_s"]),
        torch.tensor(case["w_s"]),
        None,
        None,
        torch.tensor(case["labels"]),
        None,
        torch.tensor(case["truth"]),
        student_bias=torch.tensor(case["b_s"]),
        weights=(1.0, 0.0),
    )
    assert float(terms.sft) == pytest.approx(float(call(case)[0].sft)) and float(terms.dac_kl) == 0
    assert not terms.total.requires_grad


def test_heads_scale_cap_and_width_are_those_of_the_models() -> None:
    case = make_case(14)
    wide = case | {
        "w_s": np.concatenate([case["w_s"], np.ones((2, 3))]),
        "b_s": np.concatenate([case["b_s"], np.ones(2)]),
    }
    options = {"student_scale": 0.7, "student_softcap": 2.0, "teacher_scale": 1.3, "teacher_softcap": 3.0}
    got = call(wide, vocab_size=CLASSES, **options)[0]
    inner = {
        "student_logits": 2.0 * np.tanh(0.7 * case["student_logits"] / 2.0),
        "teacher_logits": 3.0 * np.tanh(1.3 * case["teacher_logits"] / 3.0),
    }
    expected = reference(case | inner, clip=0.2, counts=counts_of(case))
    assert got.total.item() == pytest.approx(expected[0], rel=1e-12)
    assert not gradients(wide, vocab_size=CLASSES, **options)[1][CLASSES:].any()


def test_classes_that_both_models_rule_out_are_harmless() -> None:
    case = make_case(15)
    case["labels"][case["labels"] == 5] = 0
    case["b_s"][5] = -math.inf
    bias = torch.tensor([0.0] * 5 + [-math.inf]).double()
    terms, leaves = call(case, teacher_bias=bias, collect_rows=True)
    grads = torch.autograd.grad(terms.total, [leaves["h_s"], leaves["w_s"]])
    short = {"w_s": case["w_s"][:5], "w_t": case["w_t"][:5], "b_s": case["b_s"][:5]}
    expected = call(case | short)[0].total
    assert terms.total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert all(bool(torch.isfinite(g).all()) for g in grads)


def test_half_precision_states_are_computed_in_float32() -> None:
    case = make_case(16)
    names = ("h_s", "w_s", "h_t", "w_t")
    half = {name: torch.tensor(case[name]).bfloat16() for name in names}
    wide = {name: tensor.double().numpy() for name, tensor in half.items()}
    h = half["h_s"].requires_grad_()
    rest = (torch.tensor(case["labels"]), torch.tensor(case["behaviour"]).float(), torch.tensor(case["truth"]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = policy_gradient_objective(h, half["w_s"], half["h_t"], half["w_t"], *rest)
    expected = reference(with_logits(case | wide | {"b_s": np.zeros(6)}), clip=0.2, counts=counts_of(case))[0]
    assert terms.total.dtype == torch.float32 and terms.total.item() == pytest.approx(expected, rel=1e-5)
    assert torch.autograd.grad(terms.total, h)[0].dtype == torch.bfloat16


def test_what_does_not_fit_is_refused() -> None:
    case = make_case(17)
    arguments = [torch.tensor(case[name]) for name in ("h_s", "w_s", "h_t", "w_t", "labels", "behaviour", "truth")]

    def refuses(match: str, place: int, value: Any, **options: Any) -> None:
        with pytest.raises(ValueError, match=match):
            policy_gradient_objective(*[value if i == place else a for i, a in enumerate(arguments)], **options)

    refuses("need behaviour_log_probs", 5, None)
    refuses("behaviour_log_probs has shape", 5, arguments[5][:, 1:])
    refuses("rows, labels", 0, arguments[0][:, 1:])
    refuses("lies outside the 6 classes", 4, arguments[4].masked_fill(arguments[4] >= 0, 6))
    refuses("nan", 0, arguments[0], importance_clip=math.nan)
    refuses("two numbers each", 0, arguments[0], weights=(1.0, 1.0, 0.0))
    refuses("two numbers each", 0, arguments[0], counts=(1,))
    arguments[3] = None
    refuses("without a teacher", 2, None)
