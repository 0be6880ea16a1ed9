"""Every definition and its fused twin of the same name: value and gradient, in float64."""

from __future__ import annotations

import inspect
import itertools
import math

import pytest
import torch

from mgsr.losses import DIVERGENCES, IGNORED, cross_entropy, global_mean, policy_gradient, tiled_objective
from tests.losses.dense import Problem, assert_same
from tests.losses.policy import call, counts_of, make_case

INF = math.inf
CROSS_ENTROPY, TOKEN, SPAN = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
# other than the defaults
VALUES = {"weight": 0.3, "beta": 0.2, "alpha": 0.4}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_cross_entropy(masked, temperature):
    problem = Problem()
    options = {"sft_mask": problem.truth if masked else None, "temperature": temperature}
    assert_same(problem, (0.1, 0.8), tiles=(1, 7, 100), weights=CROSS_ENTROPY, **options)
    # alone, as in supervised fine-tuning
    counted = problem.labels != IGNORED
    counted = counted & problem.truth if masked else counted
    want = global_mean(cross_entropy(problem.hidden @ problem.weight.T, problem.labels), counted)
    alone = (problem.hidden, problem.weight, None, None, problem.labels, None)
    got = tiled_objective(*alone, weights=CROSS_ENTROPY, sft_mask=options["sft_mask"], tile_size=7)
    torch.testing.assert_close(got.total, want, rtol=1e-12, atol=0.0)
    both = (torch.autograd.grad(total, problem.inputs) for total in (got.total, want))
    for mine, other in zip(*both, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("classes", [37, 300])
@pytest.mark.parametrize("form", ["normalised", "literal"])
@pytest.mark.parametrize("target", ["argmax", "label"])
@pytest.mark.parametrize("keep_target", [True, False])
@pytest.mark.parametrize("clip", [(0.1, 0.9), (-0.02, 0.5), (INF, 1.0), (0.05, 1.2), (-INF, INF)])
def test_fixed_bounds(shallow, classes, form, target, keep_target, clip):
    assert_same(Problem(classes=classes), clip, form=form, target=target, keep_target=keep_target)


@pytest.mark.parametrize("classes", [37, 300])
@pytest.mark.parametrize(
    "options",
    [
        {"ramp": "sigmoid", "sharpness": 0.05},
        {"quantile": "rank"},
        {"sharpness": 0.0},
        {"quantile": "rank", "sharpness": 0.0},
        {"temperature": 2.0},
        {"temperature": 0.7, "target": "label", "form": "literal"},
        {"span_norm": "l2"},
        {"span_relation": "cosine", "temperature": 1.5},
        {"span_relation": "trace", "span_norm": "l2"},
    ],
)
def test_every_option(shallow, classes, options):
    assert_same(Problem(classes=classes, seed=1), (0.1, 0.8), **options)


@pytest.mark.parametrize("classes", [37, 300])
@pytest.mark.parametrize("ramp", ["clipped", "sigmoid"])
@pytest.mark.parametrize("quantile", ["mass", "rank"])
@pytest.mark.parametrize("form", ["normalised", "literal"])
@pytest.mark.parametrize("target", ["argmax", "label"])
def test_dac_kl(shallow, classes, ramp, quantile, form, target):
    problem = Problem(classes=classes, seed=9)
    # no bound lies a ramp's reach from a rank k / V, where the clipped ramp has a kink
    ends = ((0.0011, 0.3007), (0.5003, 0.9011))
    bounds = [torch.linspace(*both, 41, dtype=torch.float64).requires_grad_() for both in ends]
    options = {"ramp": ramp, "quantile": quantile, "form": form, "target": target, "sharpness": 0.05}
    assert_same(problem, tuple(bounds), extra=bounds, weights=TOKEN, **options)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_every_divergence(name, temperature):
    known = inspect.signature(DIVERGENCES[name]).parameters
    others = {key: value for key, value in VALUES.items() if key in known}
    for kwargs in [None, others] if others else [None]:
        options = {"divergence": name, "divergence_kwargs": kwargs, "temperature": temperature}
        assert_same(Problem(), None, **options)
        assert_same(Problem(), None, weights=TOKEN, **options)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
@pytest.mark.parametrize("absent", ["", "teacher", "student", "both"])
def test_peaked_rows_and_absent_classes(name, scale, absent):
    """Probabilities that are 0 in one model, by underflow or by a logit of -inf."""
    draw = torch.Generator().manual_seed(3)
    teacher, student = (scale * torch.randn(6, 11, dtype=torch.float64, generator=draw) for _ in range(2))
    student.requires_grad_()
    biases = []
    for who in ("teacher", "student"):
        biases.append(torch.zeros(11, dtype=torch.float64))
        biases[-1][3] = -INF if absent in (who, "both") else 0.0
    want = DIVERGENCES[name](teacher + biases[0], student + biases[1])
    # states are unit vectors, so that the output layer holds the rows themselves
    state = torch.eye(6, dtype=torch.float64)
    arguments = (state, student.T, state, teacher.T, torch.zeros(6, dtype=torch.long), None)
    options = {"teacher_bias": biases[0], "student_bias": biases[1], "tile_size": 2, "collect_rows": True}
    got = tiled_objective(*arguments, weights=TOKEN, divergence=name, **options)
    assert got.rows is not None
    torch.testing.assert_close(got.rows.dac_kl, want.detach(), rtol=1e-9, atol=1e-12)
    if bool(torch.isfinite(want).all()):
        mine, other = (torch.autograd.grad(loss, student)[0] for loss in (got.total, want.mean()))
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_float32_loses_little_where_the_models_agree(name):
    draw = torch.Generator().manual_seed(4)
    teacher = 4 * torch.randn(8, 300, dtype=torch.float64, generator=draw)
    student = teacher + 0.01 * torch.randn(8, 300, dtype=torch.float64, generator=draw)
    want = DIVERGENCES[name](teacher, student)
    state = torch.eye(8)
    arguments = (state, student.float().T, state, teacher.float().T, torch.zeros(8, dtype=torch.long), None)
    got = tiled_objective(*arguments, weights=TOKEN, divergence=name, collect_rows=True)
    assert got.rows is not None
    torch.testing.assert_close(got.rows.dac_kl.double(), want, rtol=0.02, atol=2e-6)


@pytest.mark.parametrize(
    ("norm", "relation"), list(itertools.product(["l2_squared", "l2"], ["hadamard", "cosine", "trace"]))
)
@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_span_correlation(norm, relation, temperature):
    options = {"span_norm": norm, "span_relation": relation, "temperature": temperature}
    assert_same(Problem(seed=1), (0.1, 0.8), tiles=(1, 7, 100), weights=SPAN, **options)


@pytest.mark.parametrize("clip", [0.0, 0.2, INF])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_policy_gradient(seed, clip):
    case = make_case(seed, sequences=6, length=8)
    terms, leaves = call(case, importance_clip=clip, tile_size=3)
    student = leaves["h_s"] @ leaves["w_s"].T + leaves["b_s"]
    labels, truth = torch.tensor(case["labels"]), torch.tensor(case["truth"])
    written = labels.masked_fill(truth[:, None], IGNORED)
    values = policy_gradient(
        torch.tensor(case["teacher_logits"]),
        student,
        written,
        torch.tensor(case["behaviour"]),
        importance_clip=clip,
    )
    own = labels.masked_fill(~truth[:, None], IGNORED)
    counts = counts_of(case)
    want = [
        global_mean(loss, mask != IGNORED, count)
        for loss, mask, count in zip((cross_entropy(student, own), values), (own, written), counts, strict=True)
    ]
    torch.testing.assert_close(torch.stack([terms.sft, terms.dac_kl]), torch.stack(want).detach())
    both = [torch.autograd.grad(total, list(leaves.values())) for total in (terms.total, sum(want))]
    for mine, other in zip(*both, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["jensen_shannon", "skewed_forward_kl", "skewed_reverse_kl"])
def test_a_student_that_all_but_excludes_the_teachers_class(name):
    """In float32, where 1 - 6e-9 is 1: the ratio of the two must not come out as 0."""
    draw = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(4, 32_000, generator=draw) for _ in range(2))
    teacher[:, 7], student[:, 7] = 40.0, -8.0
    values, gradients = [], []
    for dtype in (torch.float32, torch.float64):
        row = student.to(dtype).requires_grad_()
        state = torch.eye(4, dtype=dtype)
        if dtype == torch.float64:
            value = DIVERGENCES[name](teacher.to(dtype), row).mean()
        else:
            arguments = (state, row.T, state, teacher.T, torch.zeros(4, dtype=torch.long), None)
            value = tiled_objective(*arguments, weights=TOKEN, divergence=name).total
        values.append(value.item())
        gradients.append(torch.autograd.grad(value, row)[0].double())
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-9)
